"""Training centroids with k-means over a sample of token vectors, and assigning tokens to centroids.

Each part of the embeddings gives one part of the sample. A mapped call holds one sample part and two tables of centroids, for any size of
corpus. Sums are added in the order of sample parts, so the result does not depend on where the calls ran.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_lir.base.parallel import Map, one_blas_thread
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index import faiss_gpu
from ray_lir.index.faiss_threads import one_faiss_thread
from ray_lir.kernels import Kernels, select

SamplePart = tuple[np.ndarray, np.ndarray | None]
"""[T, D] float16 vectors and, if the clustering needs them, their vocabulary ids [T]."""
Reader = Callable[[str], SamplePart]

NearestCells = Callable[[np.ndarray, np.ndarray, int], np.ndarray]
"""Function with the arguments and the result of `Kernels.nearest_cells`."""

EXACT_CENTROIDS = 2048
CELL_ITERATIONS = 4
BLOCK_VECTORS = 65536
"""Number of vectors to assign together: large enough that each cell takes one matrix product."""


def default_num_centroids(num_tokens: int, method: str = "k_means") -> int:
    """Return 8 sqrt(T), rounded to a multiple of 16; twice as many with token_aware.

    This is half of the papers' number (docs/algorithms.md#22-residual-codec). A query's table of centroid scores then fits in a core's
    cache and a build takes half as long, with the same recall (bench/README.md). Multiples of 16 instead of powers of two let clusters
    grow with the square root of the tokens.
    """
    return 16 * max(1, round(math.sqrt(max(1, num_tokens)) / 2)) * (2 if method == "token_aware" else 1)


def sample_size(num_docs: int) -> int:
    """Return the number of documents to train on: min(1 + floor(16 sqrt(120 N)), N) (docs/algorithms.md#22-residual-codec)."""
    return min(1 + math.floor(16 * math.sqrt(120 * num_docs)), num_docs)


@dataclass(frozen=True, eq=False, repr=False)
class Assigner(ShortRepr):
    """Finds the nearest centroid of a vector.

    A vector is compared with every centroid if there are few. Otherwise the centroids form about sqrt(C) cells, as in an inverted file
    (FAISS IVF), and a vector is compared only with the centroids of its `nprobe` nearest cells: 8 of 128 cells are a sixteenth of the
    work.

    Attributes:
        centroids: [C, D] float32, in the order of cells.
        numbers: [C] int64, the code of each of these centroids.
        cells: [B, D] float32, the centres of B cells.
        offsets: [B + 1] int64; cell b owns centroids offsets[b] to offsets[b + 1].
        nprobe: Cells to search for each vector.
    """

    centroids: np.ndarray
    numbers: np.ndarray
    cells: np.ndarray
    offsets: np.ndarray
    nprobe: int

    @classmethod
    def over(cls, centroids: np.ndarray, nprobe: int, seed: int) -> "Assigner":
        """Return an assigner.

        Args:
            centroids: [C, D] float32.
            nprobe: Cells to search for each vector; 0 compares every centroid.
            seed: Seed of the clustering of centroids into cells.
        """
        num_centroids, dim = centroids.shape
        if nprobe == 0 or num_centroids <= EXACT_CENTROIDS or nprobe >= math.isqrt(num_centroids):
            return cls(centroids, np.arange(num_centroids), np.zeros((1, dim), np.float32), np.array([0, num_centroids]), 1)
        import faiss  # takes 0.2 s to load; must be loaded before BLAS libraries are limited to one thread

        with one_faiss_thread(), one_blas_thread():
            kmeans = faiss.Kmeans(dim, math.isqrt(num_centroids), niter=CELL_ITERATIONS, seed=seed + 1)
            kmeans.train(centroids)
        centres = kmeans.centroids
        assert centres is not None
        cell_of = select().assign(centroids, centres, euclidean=True)[0]
        numbers = np.argsort(cell_of, kind="stable")
        offsets = np.searchsorted(cell_of[numbers], np.arange(kmeans.k + 1))
        return cls(centroids[numbers], numbers, centres, offsets, nprobe)

    def centroids_of(self, codes: np.ndarray) -> np.ndarray:
        """Return the centroids with these codes, [T, D] float32."""
        return self.centroids[np.argsort(self.numbers)[codes]]

    def __call__(self, vectors: np.ndarray, token_ids: np.ndarray | None = None) -> np.ndarray:
        """Return the codes of [T, D] vectors, [T] int64: the centroids at the smallest L2 distance."""
        kernels = select()
        nearest = kernels.nearest_cells
        if len(self.cells) > 1 and kernels.name != "cuda" and faiss_gpu.num_gpus():
            nearest = faiss_gpu.nearest_cells
        codes = np.empty(len(vectors), np.int64)
        with one_blas_thread() if kernels.uses_blas else nullcontext():
            for start in range(0, len(vectors), BLOCK_VECTORS):
                block = vectors[start : start + BLOCK_VECTORS]
                codes[start : start + len(block)] = self._assign(block, kernels, nearest)
        return self.numbers[codes]

    def _assign(self, vectors: np.ndarray, kernels: Kernels, nearest: NearestCells) -> np.ndarray:
        if len(self.cells) == 1:
            return kernels.assign(vectors, self.centroids, euclidean=True)[0]
        return kernels.assign_in_cells(vectors, self.centroids, self.offsets, nearest(vectors, self.cells, self.nprobe))


Assign = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Function from vectors [T, D] and their vocabulary ids [T] to their codes [T]."""


def step(centroids: np.ndarray, assigner: Assign, groups: Sequence[Sequence[str]], read: Reader, map: Map) -> np.ndarray:
    """Run one iteration of k-means (L2).

    Source: docs/algorithms.md#22-residual-codec.

    Args:
        centroids: [C, D] float32.
        assigner: Finds the nearest of these centroids.
        groups: Names of sample parts; each group is one mapped call.
        read: Picklable function from a name to the sample part.
        map: Where the calls run.
    Returns:
        The new centroids [C, D] float32. The centroid of an empty cluster does not change.
    """
    sums = np.zeros(centroids.shape, np.float64)
    counts = np.zeros(len(centroids), np.int64)
    for group_sums, group_counts in map(partial(_sums, assigner, centroids.shape, read), groups):
        sums += group_sums
        counts += group_counts
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)


@one_blas_thread()
def _sums(assigner: Assign, shape: tuple[int, int], read: Reader, group: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums [C, D] float32 and counts [C] of the group's vectors by centroid."""
    sums = np.zeros(shape, np.float32)
    counts = np.zeros(len(sums), np.int64)
    for name in group:
        vectors, token_ids = read(name)
        vectors = vectors.astype(np.float32)
        codes = assigner(vectors, token_ids)
        sizes = np.bincount(codes, minlength=len(sums))
        present = np.flatnonzero(sizes)
        if len(present):
            starts = np.concatenate([[0], np.cumsum(sizes)])[present]
            sums[present] += np.add.reduceat(vectors[np.argsort(codes, kind="stable")], starts, axis=0)
        counts += sizes
    return sums, counts
