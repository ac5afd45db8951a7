"""Norms of token vectors: rows of zeros, and vectors that do not have unit length.

A codec compresses directions. A token's norm is a factor of its two scales, so decoded tokens have the norm of the original vectors, and
exact scores are dot products with them. Engines that find candidates by centroids need norms too. `norm_codes` therefore numbers the
pairs of centroid and norm in a shard. Kernels look up one score for each number, which is the score of a direction times a norm.

T tokens, D dimensions, C centroids, L lanes of a table of centroid scores.
"""

from dataclasses import dataclass, replace

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.shard import IndexShard

UNIT_TOLERANCE = 5e-3
"""A norm that differs from one by less is taken for the rounding of a unit vector to float16 or bfloat16, and is not stored."""
NEARLY_UNIT = 0.1
"""If no norm differs from one by more, the index finds candidates by directions alone."""
SMALLEST_NORM = 2.0**-14
"""Shorter vectors count as rows of zeros: float16 scales do not hold three digits of them."""
LARGEST_NORM = 2.0**15
"""Scales of longer vectors could overflow float16."""
STEPS = 4
"""Norms that `norm_codes` distinguishes within a factor of two: the error is at most 9%, far less than that of a centroid."""


def norms(vectors_TD: np.ndarray) -> np.ndarray:
    """Return the norm of each vector, [T] float32."""
    vectors_TD = vectors_TD.astype(np.float32)
    return np.sqrt(np.einsum("td,td->t", vectors_TD, vectors_TD))


def kept_norms(vectors_TD: np.ndarray) -> np.ndarray:
    """Return the norms to store, [T] float32; exactly one for rounded unit vectors and for zeros."""
    lengths_T = norms(vectors_TD)
    return np.where((np.abs(lengths_T - 1) <= UNIT_TOLERANCE) | (lengths_T == 0), np.float32(1), lengths_T)


def directions(vectors_TD: np.ndarray, norms_T: np.ndarray) -> np.ndarray:
    """Return vectors divided by their `kept_norms`, [T, D]; the same array if all norms are one."""
    return vectors_TD if (norms_T == 1).all() else vectors_TD.astype(np.float32) / norms_T[:, None]


def without_zero_rows(embeddings: TokenEmbeddings) -> TokenEmbeddings:
    """Return documents without rows of zeros (padding, or values too small for float16); the same object if there are none.

    Raises:
        ConfigError: A vector is too long for the codec's scales; the message names the document.
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
        attention=None if embeddings.attention is None else embeddings.attention[kept_T],
    )


@dataclass(frozen=True, eq=False, repr=False)
class NormCodes(ShortRepr):
    """The P pairs (centroid, rounded norm) of a shard's tokens, numbered by centroid, then by norm.

    Attributes:
        shard: The same documents with pairs in place of centroids. Pair P belongs to no token. The first scale is one and the second is the
            residual's own, so a posting scores the pair's score plus the scaled residual.
        centroids: [P + 1] int64, the centroid of each pair.
        lengths: [P + 1] float32, the norm of each pair; 0 for the last.
        offsets: [C + 1] int64; centroid c has pairs offsets[c] to offsets[c + 1].
    """

    shard: IndexShard
    centroids: np.ndarray
    lengths: np.ndarray
    offsets: np.ndarray

    @classmethod
    def of(cls, shard: IndexShard) -> "NormCodes":
        """Return the pairs of a shard."""
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
        """Return the scores of pairs [P + 1, L], from the scores of centroids, in the same type."""
        return (table_CL[self.centroids].astype(np.float32) * self.lengths[:, None]).astype(table_CL.dtype)

    def expand(self, clusters: np.ndarray, cluster_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the pairs of each query token's probed clusters.

        Args:
            clusters: [n, nprobe] int64.
            cluster_scores: [n, nprobe] float32.
        Returns:
            Pairs [n, most] int64, padded with the pair that belongs to no token, and their scores [n, most] float32.
        """
        counts = np.diff(self.offsets)[clusters]
        most = max(1, int(counts.sum(axis=1).max(initial=0)))
        pairs = np.full((len(clusters), most), len(self.centroids) - 1)
        scores = np.zeros((len(clusters), most), np.float32)
        for row in range(len(clusters)):
            places = np.repeat(self.offsets[clusters[row]] - np.concatenate([[0], np.cumsum(counts[row])[:-1]]), counts[row])
            numbers = places + np.arange(len(places))
            pairs[row, : len(numbers)] = numbers
            scores[row, : len(numbers)] = np.repeat(cluster_scores[row], counts[row]) * self.lengths[numbers]
        return pairs, scores


@derived
def norm_codes(shard: IndexShard) -> NormCodes:
    """Return the pairs of centroid and norm of a shard. Engines use them if the vectors of the index differ in norm."""
    return NormCodes.of(shard)
