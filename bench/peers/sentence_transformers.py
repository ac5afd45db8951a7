"""sentence-transformers' exact scores of every document (util.maxsim): no index, embeddings in memory."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sentence_transformers.util.similarity import maxsim

from bench.peers import inputs
from bench.peers.harness import Search, best, main


def _build(input: Path, index: Path, threads: int) -> Callable[[], object]:
    return lambda: inputs.save(index, "documents", inputs.load(input, "documents"))


def _open_index(input: Path, index: Path, threads: int, dtype: str) -> Search:
    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    documents = inputs.in_memory(inputs.load(index, "documents"))
    tensors = [torch.from_numpy(documents[number]).to(kind) for number in range(len(documents))]

    def search(queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        with torch.inference_mode():
            scores_QN = maxsim([torch.from_numpy(query).to(kind) for query in queries], tensors).numpy()
        return [best(row, k) for row in scores_QN]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
