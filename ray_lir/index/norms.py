"""Lengths of token vectors: what a build makes of rows of zeros and of vectors that are not of unit length.

A codec compresses directions. A token's length is a factor of its two scales, so that a decoded token is as long as the vector it was made
from, and exact scores are dot products with it. Candidates that engines find by centroids alone need the lengths too: `norm_codes` numbers
the pairs of centroid and length that a shard holds, so that kernels which look up one score a code score directions times lengths.

T tokens, D dimensions, C centroids, L lanes of a table of centroid scores.
"""

from dataclasses import dataclass, replace

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.shard import IndexShard

UNIT_TOLERANCE = 5e-3
"""Vectors whose length differs from one by less are unit vectors that float16 or bfloat16 has rounded: their length is not kept."""
NEARLY_UNIT = 0.1
"""An index in which no length differs from one by more finds candidates by directions alone."""
SMALLEST_NORM = 2.0**-14
"""Shorter vectors are rows of zeros: a scale in float16 does not hold them to three digits."""
LARGEST_NORM = 2.0**15
"""Scales of longer vectors could overflow float16."""
STEPS = 4
"""Lengths that `norm_codes` tells apart in each factor of two: a length is off by 9% at most, far less than a centroid is."""


def norms(vectors_TD: np.ndarray) -> np.ndarray:
    """[T] float32: the length of each vector."""
    vectors_TD = vectors_TD.astype(np.float32)
    return np.sqrt(np.einsum("td,td->t", vectors_TD, vectors_TD))


def kept_norms(vectors_TD: np.ndarray) -> np.ndarray:
    """[T] float32: the length of each vector; exactly one for unit vectors that were rounded, and for zeros."""
    lengths_T = norms(vectors_TD)
    return np.where((np.abs(lengths_T - 1) <= UNIT_TOLERANCE) | (lengths_T == 0), np.float32(1), lengths_T)


def directions(vectors_TD: np.ndarray, norms_T: np.ndarray) -> np.ndarray:
    """[T, D]: vectors over their `kept_norms`; the same array if all of these are one."""
    return vectors_TD if (norms_T == 1).all() else vectors_TD.astype(np.float32) / norms_T[:, None]


def without_zero_rows(embeddings: TokenEmbeddings) -> TokenEmbeddings:
    """Documents without their rows of zeros (padding, or values too small for float16); the same object if there are none.

    Raises:
        ConfigError: if a vector is too long for the codec's scales; the message names the document.
    """
    lengths_T = norms(embeddings.values)
    longest = int(lengths_T.argmax()) if len(lengths_T) else 0
    if len(lengths_T) and lengths_T[longest] > LARGEST_NORM:
        raise ConfigError(
            f"a token vector of document {embeddings.owner_of(longest)!r} has length {lengths_T[longest]:g}, and an index holds lengths up "
            f"to {LARGEST_NORM:g}; scale all embeddings down"
        )
    kept_T = lengths_T >= SMALLEST_NORM
    if kept_T.all():
        return embeddings
    return TokenEmbeddings(
        embeddings.values[kept_T],
        np.concatenate([[0], np.cumsum(kept_T)]).astype(np.int64)[embeddings.offsets],
        embeddings.doc_ids,
        None if embeddings.token_ids is None else embeddings.token_ids[kept_T],
        None if embeddings.weights is None else embeddings.weights[kept_T],
    )


@dataclass(frozen=True)
class NormCodes:
    """The pairs (centroid, rounded length) of a shard's tokens, numbered by centroid, then by length.

    Attributes:
        shard: the same documents with P pairs and one more, which no token has, in place of centroids. Of its scales the first is one and
            the second the residual's own, so that postings of a pair score its centroid score plus the scaled residual.
        centroids: [P + 1] int64.
        lengths: [P + 1] float32; 0 for the last.
        offsets: [C + 1] int64; centroid c has pairs offsets[c] to offsets[c + 1].
    """

    shard: IndexShard
    centroids: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, shard: IndexShard) -> "NormCodes":
        steps_T = np.round(STEPS * np.log2(shard.scales[:, 0].astype(np.float32))).astype(np.int64)
        lowest = int(steps_T.min(initial=0))
        width = int(steps_T.max(initial=0)) - lowest + 1
        pairs, codes_T = np.unique(shard.codes.astype(np.int64) * width + (steps_T - lowest), return_inverse=True)
        centroids = pairs // width
        scales = shard.scales.copy()
        scales[:, 0] = 1
        return cls(
            replace(
                shard, codes=codes_T.astype(np.uint16 if len(pairs) < 1 << 16 else np.uint32), scales=scales, num_centroids=len(pairs) + 1
            ),
            np.append(centroids, 0),
            np.append(2.0 ** ((pairs % width + lowest) / STEPS), 0).astype(np.float32),
            np.searchsorted(centroids, np.arange(shard.num_centroids + 1)),
        )

    def table(self, table_CL: np.ndarray) -> np.ndarray:
        """[P + 1, L]: the scores of pairs, from those of centroids, in the same type."""
        return (table_CL[self.centroids].astype(np.float32) * self.lengths[:, None]).astype(table_CL.dtype)

    def expand(self, cells: np.ndarray, cell_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of each query token's cells, and their scores.

        Args:
            cells: [n, nprobe] centroids.
            cell_scores: [n, nprobe] float32.

        Returns:
            Pairs [n, most] int64, filled up with the pair that no token has, and their scores [n, most] float32.
        """
        counts = np.diff(self.offsets)[cells]
        most = max(1, int(counts.sum(axis=1).max(initial=0)))
        pairs = np.full((len(cells), most), len(self.centroids) - 1)
        scores = np.zeros((len(cells), most), np.float32)
        for row in range(len(cells)):
            places = np.repeat(self.offsets[cells[row]] - np.concatenate([[0], np.cumsum(counts[row])[:-1]]), counts[row])
            mine = places + np.arange(len(places))
            pairs[row, : len(mine)] = mine
            scores[row, : len(mine)] = np.repeat(cell_scores[row], counts[row]) * self.lengths[mine]
        return pairs, scores


@derived
def norm_codes(shard: IndexShard) -> NormCodes:
    """Return the centroid-length pairs of a shard. Engines need them in an index whose vectors differ in length."""
    return NormCodes.of(shard)
