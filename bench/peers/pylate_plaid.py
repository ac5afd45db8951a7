"""PyLate's PLAID index, on its own release of fast-plaid."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from pylate import indexes

from bench.peers import inputs
from bench.peers.harness import Search, main

NAME = "index"


def _build(input: Path, index: Path, threads: int, **options: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    documents = inputs.in_memory(inputs.load(input, "documents"))
    tensors = [torch.from_numpy(documents[number]) for number in range(len(documents))]
    doc_ids = [str(number) for number in range(len(documents))]
    return lambda: indexes.PLAID(str(index), NAME, override=True, **options, device="cpu", show_progress=False).add_documents(
        doc_ids, tensors
    )


def _open_index(input: Path, index: Path, threads: int, **options: int) -> Search:
    torch.set_num_threads(threads)
    opened = indexes.PLAID(str(index), NAME, device="cpu", num_threads=threads, show_progress=False, **options)

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        answers = opened([torch.from_numpy(query) for query in queries], k=k)
        return [[int(hit["id"]) for hit in answer] for answer in answers]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
