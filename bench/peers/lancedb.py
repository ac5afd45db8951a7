"""LanceDB: a multivector column and cosine MaxSim, without an index (every row is scored) or with an index of all token vectors."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from bench.peers import inputs
from bench.peers.harness import Search, main


def _build(input: Path, index: Path, threads: int, index_type: str | None = None) -> Callable[[], object]:
    _limit(threads)
    import lancedb

    documents = inputs.load(input, "documents")

    def run() -> None:
        index.mkdir(parents=True)
        flat = pa.array(np.asarray(documents.values).reshape(-1), pa.float16())
        vectors = pa.FixedSizeListArray.from_arrays(flat, documents.dim)
        column = pa.ListArray.from_arrays(pa.array(documents.offsets, pa.int32()), vectors)
        rows = pa.table({"id": pa.array(np.arange(len(documents))), "vector": column})
        table = lancedb.connect(str(index)).create_table("documents", rows)
        if index_type:
            table.create_index(metric="cosine", vector_column_name="vector", index_type=index_type)

    return run


def _open_index(input: Path, index: Path, threads: int, **options: int) -> Search:
    _limit(threads)
    import lancedb

    table = lancedb.connect(str(index)).open_table("documents")

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        return [one(query, k) for query in queries]

    def one(query: np.ndarray, k: int) -> list[int]:
        request = table.search(query.astype(np.float16)).distance_type("cosine").select(["id"]).limit(k)
        for name, value in options.items():
            request = getattr(request, name)(value)
        return request.to_arrow()["id"].to_pylist()

    return search


def _limit(threads: int) -> None:
    """Limit the threads of Lance, which reads these variables when it is imported."""
    os.environ |= {"LANCE_CPU_THREADS": str(threads), "TOKIO_WORKER_THREADS": str(threads)}


if __name__ == "__main__":
    main(_build, _open_index)
