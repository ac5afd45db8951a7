"""Training centroids: k-means over a sample of token vectors, spread through a map, and assignment of tokens to them.

The sample is split into pieces (one a part of the embeddings); a mapped call holds one piece and two tables of centroids,
whatever the corpus. Sums are added in the order of the pieces, so the result does not depend on where the calls ran.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_lir.base.parallel import Map, one_blas_thread
from ray_lir.index.faiss_threads import one_faiss_thread
from ray_lir.kernels import Kernels, select

Piece = tuple[np.ndarray, np.ndarray | None]
"""[T, D] float16 vectors of the sample and, if they are known, their vocabulary ids [T]."""
Reader = Callable[[str], Piece]

EXACT_CENTROIDS = 2048
CELL_ITERATIONS = 4
BLOCK_VECTORS = 65536
"""Vectors assigned together: enough for each cell to have a matrix product of its own."""


def default_num_centroids(num_tokens: int, method: str = "k_means") -> int:
    """8 sqrt(T), in sixteens; twice as many with token_aware.

    Half of the number in docs/algorithms.md#22-residual-codec: a query's table of centroid scores then fits in a core's cache, and a
    build takes half as long, for the same recall (bench/README.md). It is no power of two, so clusters grow with the square root of the
    tokens.
    """
    return 16 * max(1, round(math.sqrt(max(1, num_tokens)) / 2)) * (2 if method == "token_aware" else 1)


def sample_size(num_docs: int) -> int:
    """Documents to train on: min(1 + floor(16 sqrt(120 N)), N) (docs/algorithms.md#22-residual-codec)."""
    return min(1 + math.floor(16 * math.sqrt(120 * num_docs)), num_docs)


@dataclass(frozen=True)
class Assigner:
    """Finds a vector's nearest centroid.

    A few centroids are all compared. Many are grouped into about sqrt(C) cells, and a vector is compared with the centroids
    of its `nprobe` nearest cells alone: 8 of 128 cells are a sixteenth of the work.

    Attributes:
        centroids: [C, D] float32, those of a cell side by side.
        numbers: [C] int64, the number of each of them outside.
        cells: [cells, D] float32 centres of the cells.
        offsets: [cells + 1] int64; cell c owns centroids offsets[c] to offsets[c + 1].
    """

    centroids: np.ndarray
    numbers: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray
    nprobe: int

    @classmethod
    def over(cls, centroids: np.ndarray, nprobe: int, seed: int) -> "Assigner":
        """With `nprobe` 0 or as many as there would be cells, or with few centroids, every centroid is compared."""
        num_centroids, dim = centroids.shape
        if nprobe == 0 or num_centroids <= EXACT_CENTROIDS or nprobe >= math.isqrt(num_centroids):
            return cls(centroids, np.arange(num_centroids), np.zeros((1, dim), np.float32), np.array([0, num_centroids]), 1)
        import faiss  # takes a fifth of a second to load; loaded here, its BLAS is among those that are limited to one thread

        with one_faiss_thread(), one_blas_thread():
            kmeans = faiss.Kmeans(dim, math.isqrt(num_centroids), niter=CELL_ITERATIONS, seed=seed + 1)
            kmeans.train(centroids)
        cell_of = select().assign(centroids, kmeans.centroids, euclidean=True)[0]
        numbers = np.argsort(cell_of, kind="stable")
        offsets = np.searchsorted(cell_of[numbers], np.arange(kmeans.k + 1))
        return cls(centroids[numbers], numbers, kmeans.centroids, offsets, nprobe)

    def centroids_of(self, codes: np.ndarray) -> np.ndarray:
        """[T, D] float32: the centroids with these numbers."""
        return self.centroids[np.argsort(self.numbers)[codes]]

    def __call__(self, vectors: np.ndarray, token_ids: np.ndarray | None = None) -> np.ndarray:
        """[T] int64 for [T, D] vectors: smallest L2 distance, which is the largest dot product when centroids have unit length."""
        kernels = select()
        codes = np.empty(len(vectors), np.int64)
        with one_blas_thread() if kernels.uses_blas else nullcontext():
            for start in range(0, len(vectors), BLOCK_VECTORS):
                block = vectors[start : start + BLOCK_VECTORS]
                codes[start : start + len(block)] = self._assign(block, kernels)
        return self.numbers[codes]

    def _assign(self, vectors: np.ndarray, kernels: Kernels) -> np.ndarray:
        if len(self.cells) == 1:
            return kernels.assign(vectors, self.centroids, euclidean=True)[0]
        return kernels.assign_in_cells(vectors, self.centroids, self.offsets, kernels.nearest_cells(vectors, self.cells, self.nprobe))


Assign = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Vectors [T, D] and their vocabulary ids to the numbers [T] of their centroids."""


def step(centroids: np.ndarray, assigner: Assign, groups: Sequence[Sequence[str]], read: Reader, map: Map) -> np.ndarray:
    """The centroids [C, D] float32 after one iteration of k-means (L2, as in docs/algorithms.md#22-residual-codec).

    Args:
        assigner: finds a vector's centroid among these.
        groups: names of the sample's pieces; each group is one mapped call, and returns one table of sums.
        read: picklable function from a piece's name to the piece.
        map: how calls are spread.
    """
    sums = np.zeros(centroids.shape, np.float64)
    counts = np.zeros(len(centroids), np.int64)
    for group_sums, group_counts in map(partial(_sums, assigner, centroids.shape, read), groups):
        sums += group_sums
        counts += group_counts
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)  # an empty cluster stays where it was


@one_blas_thread()
def _sums(assigner: Assign, shape: tuple[int, int], read: Reader, group: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums [C, D] float32 and counts [C] of the group's vectors by centroid."""
    sums = np.zeros(shape, np.float32)
    counts = np.zeros(len(sums), np.int64)
    for piece in group:
        vectors, token_ids = read(piece)
        vectors = vectors.astype(np.float32)
        codes = assigner(vectors, token_ids)
        sizes = np.bincount(codes, minlength=len(sums))
        present = np.flatnonzero(sizes)
        if len(present):
            starts = np.concatenate([[0], np.cumsum(sizes)])[present]
            sums[present] += np.add.reduceat(vectors[np.argsort(codes, kind="stable")], starts, axis=0)
        counts += sizes
    return sums, counts
