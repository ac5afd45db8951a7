"""Training centroids: k-means over a sample of token vectors, spread through a map, and assignment of tokens to them.

The sample is split into pieces (one a part of the embeddings); a mapped call holds one piece and two tables of centroids,
whatever the corpus. Sums are added in the order of the pieces, so the result does not depend on where the calls ran.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import faiss
import numpy as np

from ray_lir.config import ClusteringConfig
from ray_lir.kernels import reference
from ray_lir.parallel import Map, one_blas_thread

Reader = Callable[[str], np.ndarray]

EXACT_CENTROIDS = 2048
COARSE_ITERATIONS = 4


def default_num_centroids(num_tokens: int) -> int:
    """2^floor(log2(16 sqrt(T))) (ALGORITHMS 2.2)."""
    return 2 ** max(0, math.floor(math.log2(16 * math.sqrt(max(1, num_tokens)))))


def sample_size(num_docs: int) -> int:
    """Documents to train on: min(1 + floor(16 sqrt(120 N)), N) (ALGORITHMS 2.2)."""
    return min(1 + math.floor(16 * math.sqrt(120 * num_docs)), num_docs)


@dataclass(frozen=True)
class Assigner:
    """Finds a vector's nearest centroid.

    A few centroids are all compared. Many are grouped into cells around `coarse` vectors, and a vector is compared with
    the centroids of its `nprobe` nearest cells alone: about C / (sqrt(C) nprobe) times less work.

    Attributes:
        centroids: [C, D] float32.
        coarse: [about sqrt(C), D] float32, or None to compare with every centroid.
    """

    centroids: np.ndarray
    coarse: np.ndarray | None
    nprobe: int

    @classmethod
    def over(cls, centroids: np.ndarray, nprobe: int, seed: int) -> "Assigner":
        if nprobe == 0 or len(centroids) <= EXACT_CENTROIDS:
            return cls(centroids, None, nprobe)
        with one_blas_thread():
            num_cells = math.isqrt(len(centroids))
            kmeans = faiss.Kmeans(centroids.shape[1], num_cells, niter=COARSE_ITERATIONS, seed=seed + 1, min_points_per_centroid=1)
            kmeans.train(centroids)
        return cls(centroids, kmeans.centroids, nprobe)

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """[T] int64 for [T, D] vectors: smallest L2 distance, which is the largest dot product when centroids have unit length."""
        with one_blas_thread():
            vectors = np.ascontiguousarray(vectors, np.float32)
            if self.coarse is None:
                return _nearest(vectors, self.centroids)
            dim = self.centroids.shape[1]
            cells = faiss.IndexFlatL2(dim)
            cells.add(self.coarse)
            index = faiss.IndexIVFFlat(cells, dim, len(self.coarse), faiss.METRIC_L2)
            index.add(self.centroids)
            index.nprobe = self.nprobe
            return index.search(vectors, 1)[1][:, 0]


def step(centroids: np.ndarray, groups: Sequence[Sequence[str]], config: ClusteringConfig, read: Reader, map: Map) -> np.ndarray:
    """The centroids [C, D] float32 after one iteration of k-means (L2, as in ALGORITHMS 2.2).

    Args:
        groups: names of the sample's pieces; each group is one mapped call, and returns one table of sums.
        read: picklable function from a piece's name to its [T, D] float16 vectors.
        map: how calls are spread.
    """
    assigner = Assigner.over(centroids, config.assign_nprobe, config.seed)
    sums = np.zeros(centroids.shape, np.float64)
    counts = np.zeros(len(centroids), np.int64)
    for group_sums, group_counts in map(partial(_sums, assigner, read), groups):
        sums += group_sums
        counts += group_counts
    means = sums / np.maximum(counts, 1)[:, None]
    return np.where(counts[:, None] > 0, means, centroids).astype(np.float32)  # an empty cluster stays where it was


def _sums(assigner: Assigner, read: Reader, group: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Sums [C, D] float32 and counts [C] of the group's vectors by centroid."""
    sums = np.zeros(assigner.centroids.shape, np.float32)
    counts = np.zeros(len(sums), np.int64)
    for piece in group:
        vectors = read(piece).astype(np.float32)
        codes = assigner(vectors)
        sizes = np.bincount(codes, minlength=len(sums))
        present = np.flatnonzero(sizes)
        if len(present):
            starts = np.concatenate([[0], np.cumsum(sizes)])[present]
            sums[present] += np.add.reduceat(vectors[np.argsort(codes, kind="stable")], starts, axis=0)
        counts += sizes
    return sums, counts


def _nearest(vectors: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """As `kernels.assign`, for centroids of any length."""
    half_norms = np.einsum("cd,cd->c", centroids, centroids) / 2
    codes = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), reference.BLOCK_TOKENS):
        block = vectors[start : start + reference.BLOCK_TOKENS]
        codes[start : start + len(block)] = (block @ centroids.T - half_norms).argmax(axis=1)
    return codes
