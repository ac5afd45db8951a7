"""Fixed-dimensional encodings of MUVERA (arXiv 2405.19504, section 2): one vector a text, with dot products that approximate MaxSim.

The paper calls MaxSim without normalisation the Chamfer similarity. A repetition partitions the space by the signs of k_sim random dot
products (SimHash). A query's vector holds the sum of its tokens in each partition, and a document's vector the mean of its tokens there. A
partition without tokens of the document gets the token that differs in the fewest signs. So each query token meets one vector of the
document, which is probably near its best match.

N texts with T tokens, D dimensions, R repetitions, H = R k_sim signs, B = 2^k_sim partitions, P projected dimensions, F final dimensions.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from bench.peers.inputs import Texts

BLOCK_TEXTS = 64
"""Texts that are encoded together, which bounds memory."""


@dataclass(frozen=True, eq=False)
class FixedDimensionalEncoding:
    """The random numbers of an encoding; documents and queries need the same.

    Attributes:
        planes_DH: [D, R k_sim] normal vectors of the hyperplanes.
        projection_DRP: [D, R P] entries +-1 / sqrt(P); None: tokens are not projected, so P = D.
        repetitions: R.
        bucket_F: [R B P] output dimension of each dimension before the final projection; None: there is no final projection.
        sign_F: [R B P] entries +-1 of the final projection.
        final_dim: Dimensions of the encoding.
    """

    planes_DH: np.ndarray
    projection_DRP: np.ndarray | None
    repetitions: int
    bucket_F: np.ndarray | None
    sign_F: np.ndarray | None
    final_dim: int

    @classmethod
    def random(cls, dim: int, repetitions: int, k_sim: int, d_proj: int | None = None, final_dim: int | None = None, seed: int = 0) -> Self:
        """Return an encoding with random planes and projections.

        Args:
            dim: Dimensions of a token vector.
            repetitions: Independent partitions of the space.
            k_sim: Signs that name a partition.
            d_proj: Dimensions of a token after the inner projection; None: no projection.
            final_dim: Dimensions after the final projection, a count sketch: each dimension is added to a random one with a random
                sign. The paper's dense projection costs a query more. None: no projection.
            seed: Seed of the random numbers.
        """
        random = np.random.default_rng(seed)
        planes_DH = random.normal(size=(dim, repetitions * k_sim)).astype(np.float32)
        projection_DRP = None
        if d_proj is not None:
            projection_DRP = (random.choice([-1, 1], (dim, repetitions * d_proj)) / np.sqrt(d_proj)).astype(np.float32)
        full = repetitions * 2**k_sim * (d_proj or dim)
        if final_dim is None:
            return cls(planes_DH, projection_DRP, repetitions, None, None, full)
        bucket_F, sign_F = random.integers(0, final_dim, full), random.choice([-1, 1], full).astype(np.float32)
        return cls(planes_DH, projection_DRP, repetitions, bucket_F, sign_F, final_dim)

    @property
    def num_partitions(self) -> int:
        """Return B."""
        return 2 ** (self.planes_DH.shape[1] // self.repetitions)

    def encode_queries(self, texts: Texts) -> np.ndarray:
        """Return [N, final_dim] float32: sums over the tokens of each partition."""
        return np.concatenate([self._finish(self._sums(block)[0]) for block in _blocks(texts)])

    def encode_documents(self, texts: Texts) -> np.ndarray:
        """Return [N, final_dim] float32: means over the tokens of each partition; empty partitions are filled. No text may be empty."""
        return np.concatenate([self._finish(self._means(block)) for block in _blocks(texts)])

    def _partitions(self, values_TD: np.ndarray) -> np.ndarray:
        """Return the partition of each token in each repetition, [T, R]."""
        signs_TRH = (values_TD @ self.planes_DH > 0).reshape(len(values_TD), self.repetitions, -1)
        return signs_TRH @ (1 << np.arange(signs_TRH.shape[2], dtype=np.int32))

    def _projected(self, values_TD: np.ndarray) -> np.ndarray:
        """Return the tokens after the inner projection, [T, R, P]."""
        if self.projection_DRP is None:
            return np.repeat(values_TD[:, None], self.repetitions, axis=1)
        return (values_TD @ self.projection_DRP).reshape(len(values_TD), self.repetitions, -1)

    def _sums(self, texts: Texts) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return sums [N, R, B, P] and numbers of tokens [N, R, B] of the partitions, and partitions and projected vectors of tokens."""
        values_TD = np.asarray(texts.values, np.float32)
        partitions_TR, projected_TRP = self._partitions(values_TD), self._projected(values_TD)
        text_T = np.repeat(np.arange(len(texts)), np.diff(texts.offsets))
        keys = ((text_T[:, None] * self.repetitions + np.arange(self.repetitions)) * self.num_partitions + partitions_TR).ravel()
        shape = (len(texts), self.repetitions, self.num_partitions)
        counts_NRB = np.bincount(keys, minlength=int(np.prod(shape))).reshape(shape)
        order = np.argsort(keys, kind="stable")
        filled = np.flatnonzero(counts_NRB)
        starts = np.cumsum(counts_NRB.ravel()[filled]) - counts_NRB.ravel()[filled]
        dim = projected_TRP.shape[2]
        sums = np.zeros((counts_NRB.size, dim), np.float32)
        sums[filled] = np.add.reduceat(projected_TRP.reshape(-1, dim)[order], starts, axis=0)
        return sums.reshape(*shape, dim), counts_NRB, partitions_TR, projected_TRP

    def _means(self, texts: Texts) -> np.ndarray:
        """Return the mean token of each partition, [N, R, B, P]; an empty partition gets the nearest token by Hamming distance."""
        sums_NRBP, counts_NRB, partitions_TR, projected_TRP = self._sums(texts)
        means_NRBP = sums_NRBP / np.maximum(counts_NRB, 1)[..., None]
        differences_TRB = np.bitwise_count(partitions_TR[:, :, None] ^ np.arange(self.num_partitions, dtype=np.int32)).astype(np.int32)
        differences_TRB *= len(partitions_TR)
        differences_TRB += np.arange(len(partitions_TR), dtype=np.int32)[:, None, None]  # ties go to the first token
        nearest_NRB = np.minimum.reduceat(differences_TRB, texts.offsets[:-1], axis=0) % len(partitions_TR)
        text, repetition, partition = np.nonzero(counts_NRB == 0)
        means_NRBP[text, repetition, partition] = projected_TRP[nearest_NRB[text, repetition, partition], repetition]
        return means_NRBP

    def _finish(self, vectors_NRBP: np.ndarray) -> np.ndarray:
        """Return [N, final_dim], scaled such that dot products are means over repetitions."""
        vectors_NF = vectors_NRBP.reshape(len(vectors_NRBP), -1) / np.float32(np.sqrt(self.repetitions))
        return self.final_projection(vectors_NF)

    def final_projection(self, vectors_NF: np.ndarray) -> np.ndarray:
        """Return the final projection, [N, final_dim], of encodings without it, [N, R B P]; unchanged if there is none."""
        if self.bucket_F is None:
            return vectors_NF
        signed_NF = vectors_NF * self.sign_F
        return np.stack([np.bincount(self.bucket_F, row, self.final_dim) for row in signed_NF]).astype(np.float32)


def _blocks(texts: Texts) -> list[Texts]:
    """Return the texts in blocks."""
    blocks = []
    for first in range(0, len(texts), BLOCK_TEXTS):
        offsets = texts.offsets[first : first + BLOCK_TEXTS + 1]
        blocks.append(Texts(texts.values[offsets[0] : offsets[-1]], offsets - offsets[0]))
    return blocks
