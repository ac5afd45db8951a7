"""LateWeave's exact scores of every document: its packed MaxSim kernel on float32 vectors, without candidate generation."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from lateweave import maxsim_scores_packed

from bench.peers import inputs
from bench.peers.harness import Search, best, main


def _build(input: Path, index: Path, threads: int) -> Callable[[], object]:
    return lambda: inputs.save(index, "documents", inputs.load(input, "documents"))


def _open_index(input: Path, index: Path, threads: int) -> Search:
    documents = inputs.load(index, "documents")
    vectors_TD, lengths = documents.values.astype(np.float32), np.diff(documents.offsets)

    def search(queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        return [best(maxsim_scores_packed(query, vectors_TD, lengths, threads=threads), k) for query in queries]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
