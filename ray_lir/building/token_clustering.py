"""Token-aware clustering: every vocabulary id has centroids of its own, and a token is compared with those alone.

A token is compared with tens of centroids instead of tens of thousands, so its cost does not grow with their number (TACHIOM,
SIGIR 2026, arXiv 2604.28142, describes the idea). It takes about twice as many centroids for the same residuals as k-means.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ray_lir.building.clustering import Assigner, Piece
from ray_lir.kernels import select

BUDGET_EXPONENT = 0.75


def budgets(counts_V: np.ndarray, num_centroids: int) -> np.ndarray:
    """[V] int64: centroids of each id, in proportion to count^.75, at least one where there is a token, never more than tokens."""
    shares = counts_V**BUDGET_EXPONENT
    wanted = np.floor(shares * num_centroids / max(1.0, shares.sum())).astype(np.int64)
    return np.minimum(np.maximum(wanted, counts_V > 0), counts_V)


def first_centroids(pieces: Iterable[Piece], budgets_V: np.ndarray) -> np.ndarray:
    """[C, D] float32: for each vocabulary id, in the order of ids, its first vectors in the sample, as many as its budget."""
    offsets = np.concatenate([[0], np.cumsum(budgets_V)])
    taken = np.zeros(len(budgets_V), np.int64)
    centroids: np.ndarray | None = None
    for vectors, token_ids in pieces:
        if centroids is None:
            centroids = np.zeros((offsets[-1], vectors.shape[1]), np.float32)
        order = np.argsort(token_ids, kind="stable")
        ids = token_ids[order]
        rank = np.arange(len(ids)) - np.searchsorted(ids, ids) + taken[ids]
        chosen = rank < budgets_V[ids]
        centroids[(offsets[ids] + rank)[chosen]] = vectors[order[chosen]]
        taken += np.bincount(ids, minlength=len(taken))
    return centroids


@dataclass(frozen=True)
class TokenAssigner:
    """Finds a token's nearest centroid among those of its vocabulary id.

    Attributes:
        centroids: [C, D] float32, those of an id side by side.
        offsets: [V + 1] int64; id v owns centroids offsets[v] to offsets[v + 1].
        others: for tokens whose id was not in the sample; None while training, when every id was.
    """

    centroids: np.ndarray
    offsets: np.ndarray
    others: Assigner | None

    def centroids_of(self, codes: np.ndarray) -> np.ndarray:
        """[T, D] float32: the centroids with these numbers."""
        return self.centroids[codes]

    def __call__(self, vectors: np.ndarray, token_ids: np.ndarray | None) -> np.ndarray:
        """[T] int64 for [T, D] vectors and their vocabulary ids [T]."""
        known = token_ids < len(self.offsets) - 1
        codes = select().assign_in_cells(vectors, self.centroids, self.offsets, np.where(known, token_ids, 0)[:, None])
        strangers = np.flatnonzero(~known | (codes < 0))
        if len(strangers):
            codes[strangers] = self.others(vectors[strangers])
        return codes
