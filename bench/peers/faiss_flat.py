"""FAISS-flat token search: the nearest document tokens of every query token give candidates, scored by MaxSim."""

from collections.abc import Callable, Sequence
from pathlib import Path

import faiss
import numpy as np

from bench.peers import inputs
from bench.peers.harness import Search, main

ADDED = 65_536
"""Tokens converted to float32 at a time."""


def _build(input: Path, index: Path, threads: int) -> Callable[[], object]:
    faiss.omp_set_num_threads(threads)
    documents = inputs.load(input, "documents")

    def run() -> None:
        flat = faiss.IndexFlatIP(documents.dim)
        for start in range(0, documents.num_tokens, ADDED):
            flat.add(documents.values[start : start + ADDED].astype(np.float32))
        index.mkdir(parents=True)
        faiss.write_index(flat, str(index / "tokens.faiss"))
        np.save(index / "offsets.npy", documents.offsets)

    return run


def _open_index(input: Path, index: Path, threads: int, tokens: int) -> Search:
    """The documents of the `tokens` nearest tokens of each query token are the candidates."""
    faiss.omp_set_num_threads(threads)
    flat = faiss.read_index(str(index / "tokens.faiss"))
    offsets = np.load(index / "offsets.npy")
    vectors_TD = faiss.rev_swig_ptr(flat.get_xb(), flat.ntotal * flat.d).reshape(flat.ntotal, flat.d)
    lengths = np.diff(offsets)
    owners_T = np.repeat(np.arange(len(lengths)), lengths)

    def search(queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        _, found = flat.search(np.concatenate(queries), tokens)
        ends = np.cumsum([len(query) for query in queries])[:-1]
        candidates = [np.unique(owners_T[rows]) for rows in np.split(found, ends)]
        return [numbers[best(query, numbers)[:k]] for query, numbers in zip(queries, candidates, strict=True)]

    def best(query_nD: np.ndarray, numbers: np.ndarray) -> np.ndarray:
        starts = np.concatenate([[0], np.cumsum(lengths[numbers])[:-1]])
        rows = np.concatenate([np.arange(offsets[number], offsets[number + 1]) for number in numbers])
        scores = np.maximum.reduceat(vectors_TD[rows] @ query_nD.T, starts, axis=0).sum(axis=1)
        return np.argsort(-scores, kind="stable")

    return search


if __name__ == "__main__":
    main(_build, _open_index)
