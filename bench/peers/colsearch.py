"""colsearch: a learned router (LEMUR), FAISS and exact MaxSim in Rust, at its defaults. Licence CC BY-NC 4.0: measured only."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from colsearch import Index

from bench.peers import inputs
from bench.peers.harness import Search, main


def _build(input: Path, index: Path, threads: int, **options: object) -> Callable[[], object]:
    torch.set_num_threads(threads)
    documents = inputs.in_memory(inputs.load(input, "documents"))
    vectors = [documents[number].astype(np.float32) for number in range(len(documents))]

    def run() -> None:
        opened = Index(str(index), dim=documents.dim, engine="shard", **options)
        opened.add(vectors, ids=list(range(len(vectors))))
        opened.close()

    return run


def _open_index(input: Path, index: Path, threads: int, **options: object) -> Search:
    torch.set_num_threads(threads)
    dim = inputs.load(input, "documents").dim
    opened = Index(str(index), dim=dim, engine="shard", **options)

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        return [[hit.doc_id for hit in opened.search(query, k=k)] for query in queries]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
