"""TACHIOM: token-aware clustering, product quantisation and a graph of centroids, in Rust."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tachiom import Tachiom

from bench.peers import inputs
from bench.peers.harness import Search, main


def _build(input: Path, index: Path, threads: int, **options: int) -> Callable[[], object]:
    documents = inputs.in_memory(inputs.load(input, "documents"))
    token_ids = np.load(input / inputs.TOKEN_IDS).astype(np.uint32)
    lengths = np.diff(documents.offsets).astype(np.int32)

    def run() -> None:
        index.mkdir(parents=True)
        Tachiom.build_from_arrays(documents.values.view(np.uint16), token_ids, lengths, **options).save(str(index / "index"))

    return run


def _open_index(input: Path, index: Path, threads: int, **options: float) -> Search:
    opened = Tachiom.load(str(index / "index"))

    def search(queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        ends = np.cumsum([0, *(len(query) for query in queries)]).astype(np.uint64)
        tokens = np.ascontiguousarray(np.concatenate(queries))
        _, numbers = opened.batch_search(tokens, len(queries), k, offsets=ends, num_threads=threads, **options)
        return [row[row < opened.len].astype(np.int64) for row in numbers]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
