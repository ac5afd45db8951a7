"""Token-aware clustering: every vocabulary id has its own centroids, and a token is compared only with the centroids of its id.

A token is compared with tens of centroids instead of tens of thousands, so its cost does not grow with their number (TACHIOM,
SIGIR 2026, arXiv 2604.28142, describes the idea). It needs about twice as many centroids as k-means for the same residuals.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ray_lir.base.short_repr import ShortRepr
from ray_lir.building.clustering import Assigner, SamplePart
from ray_lir.kernels import select

BUDGET_EXPONENT = 0.75


def centroids_per_id(counts_V: np.ndarray, num_centroids: int) -> np.ndarray:
    """Return the number of centroids of each vocabulary id, [V] int64.

    It is proportional to count^0.75, at least one for an id that occurs, and at most the number of its tokens.
    """
    shares = counts_V**BUDGET_EXPONENT
    numbers = np.floor(shares * num_centroids / max(1.0, shares.sum())).astype(np.int64)
    return np.minimum(np.maximum(numbers, counts_V > 0), counts_V)


def first_centroids(sample: Iterable[SamplePart], budgets_V: np.ndarray) -> np.ndarray:
    """Return the initial centroids [C, D] float32: the first vectors of each vocabulary id in the sample, in the order of ids."""
    offsets = np.concatenate([[0], np.cumsum(budgets_V)])
    taken = np.zeros(len(budgets_V), np.int64)
    centroids: np.ndarray | None = None
    for vectors, token_ids in sample:
        assert token_ids is not None
        if centroids is None:
            centroids = np.zeros((offsets[-1], vectors.shape[1]), np.float32)
        order = np.argsort(token_ids, kind="stable")
        ids = token_ids[order]
        rank = np.arange(len(ids)) - np.searchsorted(ids, ids) + taken[ids]
        chosen = rank < budgets_V[ids]
        centroids[(offsets[ids] + rank)[chosen]] = vectors[order[chosen]]
        taken += np.bincount(ids, minlength=len(taken))
    assert centroids is not None
    return centroids


@dataclass(frozen=True, eq=False, repr=False)
class TokenAssigner(ShortRepr):
    """Finds a token's nearest centroid among those of its vocabulary id.

    Attributes:
        centroids: [C, D] float32, in the order of ids.
        offsets: [V + 1] int64; id v owns centroids offsets[v] to offsets[v + 1].
        fallback: Assigner for tokens with an id that is not in the sample; None in training, where the sample holds every id.
    """

    centroids: np.ndarray
    offsets: np.ndarray
    fallback: Assigner | None

    def centroids_of(self, codes: np.ndarray) -> np.ndarray:
        """Return the centroids with these codes, [T, D] float32."""
        return self.centroids[codes]

    def __call__(self, vectors: np.ndarray, token_ids: np.ndarray | None) -> np.ndarray:
        """Return the codes of [T, D] vectors with vocabulary ids [T], [T] int64."""
        assert token_ids is not None
        known = token_ids < len(self.offsets) - 1
        codes = select().assign_in_cells(vectors, self.centroids, self.offsets, np.where(known, token_ids, 0)[:, None])
        unassigned = np.flatnonzero(~known | (codes < 0))
        if len(unassigned):
            assert self.fallback is not None
            codes[unassigned] = self.fallback(vectors[unassigned])
        return codes
