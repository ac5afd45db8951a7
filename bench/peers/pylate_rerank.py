"""PyLate's exact scores of every document (rank.rerank): no index, embeddings in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pylate import rank

from bench.peers import inputs
from bench.peers.harness import Search, main


def _build(input: Path, index: Path, threads: int) -> Callable[[], object]:
    return lambda: inputs.save(index, "documents", inputs.load(input, "documents"))


def _open_index(input: Path, index: Path, threads: int, chunk: int) -> Search:
    """`chunk` documents are scored in one call, because rerank pads its input into one tensor."""
    torch.set_num_threads(threads)
    documents = inputs.in_memory(inputs.load(index, "documents"))
    tensors = [torch.from_numpy(documents[number]).float() for number in range(len(documents))]

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        return [one(torch.from_numpy(query), k) for query in queries]

    def one(query: torch.Tensor, k: int) -> list[int]:
        hits = []
        for start in range(0, len(tensors), chunk):
            some = tensors[start : start + chunk]
            hits += rank.rerank([list(range(start, start + len(some)))], [query], [some])[0][:k]
        return [hit["id"] for hit in sorted(hits, key=lambda hit: -hit["score"])[:k]]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
