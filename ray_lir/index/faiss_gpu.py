"""FAISS on a GPU. The package faiss-gpu replaces faiss-cpu and sees the GPUs that this process may use."""

from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.residuals import normalize

if TYPE_CHECKING:
    import faiss

MAX_RESULTS = 2048
"""Results a query that FAISS returns from a GPU, at most."""
_one_call = Lock()
"""FAISS's resources on a GPU serve one call at a time."""


def num_gpus() -> int:
    """Return the number of GPUs that FAISS sees; 0 with faiss-cpu. In a Ray task or actor these are the reserved GPUs."""
    import faiss

    return int(faiss.get_num_gpus())


def nearest_cells(vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
    """Return `Kernels.nearest_cells`, found on the GPU: vectors are scaled to length one.

    Args:
        vectors_TD: [T, D] float16 or float32.
        cells_BD: [B, D] float32, the centres of B cells.
        nprobe: Number of cells to find for each vector, at most 2,048.
    Returns:
        [T, nprobe] int64, nearest first.
    """
    import faiss

    with _one_call:
        index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), cells_BD.shape[1])
        index.add(np.ascontiguousarray(cells_BD, np.float32))
        return np.asarray(index.search(normalize(np.ascontiguousarray(vectors_TD, np.float32)), nprobe)[1])


@dataclass(frozen=True, eq=False, repr=False)
class _Block(ShortRepr):
    """Vectors first to first + len(vectors) on the GPU, with a copy on the host."""

    first: int
    vectors: np.ndarray
    index: "faiss.Index"


class GpuVectors:
    """Vectors on the GPU, for exact search by inner product. It returns any number of results, although FAISS returns 2,048.

    Args:
        dim: Dimensions of a vector.
    """

    def __init__(self, dim: int):
        import faiss

        self.dim = dim
        self._resources = faiss.StandardGpuResources()
        self._blocks: list[_Block] = []
        self._num_vectors = 0

    def add(self, vectors_TD: np.ndarray) -> None:
        """Add [T, D] float32 vectors."""
        self._blocks.append(self._block(self._num_vectors, np.ascontiguousarray(vectors_TD, np.float32)))
        self._num_vectors += len(vectors_TD)

    def search(self, queries_nD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the k vectors with the largest inner products.

        Every block gives 2,048 results. A block that may hold more of the best k is halved, until none does.

        Args:
            queries_nD: [n, D] float32.
            k: Results a query.

        Returns:
            Vector numbers [n, k] int64, -1 where there are fewer vectors, and inner products [n, k] float32, largest first.
        """
        queries = np.ascontiguousarray(queries_nD, np.float32)
        none = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
        waiting = list(self._blocks)
        complete: list[tuple[np.ndarray, np.ndarray]] = [none]
        while waiting:
            found = [self._search_block(block, queries, k) for block in waiting]
            scores = np.concatenate([scores for scores, _ in [*complete, *found]], axis=1)
            lowest = -np.partition(-scores, k - 1, axis=1)[:, k - 1]
            halves: list[_Block] = []
            for block, answer in zip(waiting, found, strict=True):
                num_results = answer[0].shape[1]
                if num_results == min(k, len(block.vectors)) or (answer[0][:, -1] <= lowest).all():
                    complete.append(answer)
                else:
                    middle = len(block.vectors) // 2
                    halves += [self._block(block.first, block.vectors[:middle]), self._block(block.first + middle, block.vectors[middle:])]
            waiting = halves
        scores, numbers = (np.concatenate(parts, axis=1) for parts in zip(*complete, strict=True))
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(numbers, order, axis=1), np.take_along_axis(scores, order, axis=1)

    def _block(self, first: int, vectors: np.ndarray) -> _Block:
        import faiss

        with _one_call:
            index = faiss.GpuIndexFlatIP(self._resources, self.dim)
            index.add(vectors)
        return _Block(first, vectors, index)

    def _search_block(self, block: _Block, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and numbers of the best vectors of a block, at most 2,048."""
        with _one_call:
            scores, numbers = block.index.search(queries, min(k, MAX_RESULTS, len(block.vectors)))
        return scores, numbers + block.first
