"""xtr-warp-rs: WARP in Rust on libtorch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from xtr_warp.search import XTRWarp

from bench.peers import inputs
from bench.peers.harness import Search, main


def _build(input: Path, index: Path, threads: int, **options: int) -> Callable[[], object]:
    torch.set_num_threads(threads)
    documents = inputs.in_memory(inputs.load(input, "documents"))
    tensors = [torch.from_numpy(documents[number]) for number in range(len(documents))]
    return lambda: XTRWarp(str(index)).create(tensors, device="cpu", show_progress=False, **options)


def _open_index(input: Path, index: Path, threads: int, **options: float) -> Search:
    torch.set_num_threads(threads)
    opened = XTRWarp(str(index)).load(device="cpu")

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        tensors = [torch.from_numpy(query) for query in queries]
        answers = opened.search(tensors, top_k=k, num_threads=threads, show_progress=False, **options)
        return [[number for number, _ in answer] for answer in answers]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
