"""Qdrant Edge: points with one multivector each, compared by max_sim: every point, or a graph of points (HNSW) that the optimizer makes."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from qdrant_edge import (
    Distance,
    EdgeConfig,
    EdgeShard,
    EdgeVectorParams,
    MultiVectorComparator,
    MultiVectorConfig,
    Point,
    Query,
    SearchRequest,
    UpdateOperation,
)

from bench.peers import inputs
from bench.peers.harness import Search, main

POINTS = 256
"""Points in one update."""


def _build(input: Path, index: Path, threads: int, graph: bool = False) -> Callable[[], object]:
    documents = inputs.load(input, "documents")
    multivector = MultiVectorConfig(comparator=MultiVectorComparator.MaxSim)
    vectors = EdgeVectorParams(size=documents.dim, distance=Distance.Dot, multivector_config=multivector)

    def run() -> None:
        index.mkdir(parents=True)
        shard = EdgeShard.create(str(index), EdgeConfig(vectors=vectors, max_search_threads=threads))
        for start in range(0, len(documents), POINTS):
            numbers = range(start, min(start + POINTS, len(documents)))
            points = [Point(id=number, vector=documents[number].astype(np.float32).tolist()) for number in numbers]
            shard.update(UpdateOperation.upsert_points(points))
        if graph:
            shard.optimize()
        shard.flush()
        shard.close()

    return run


def _open_index(input: Path, index: Path, threads: int) -> Search:
    shard = EdgeShard.load(str(index))

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        requests = [SearchRequest(query=Query.Nearest(query.tolist()), limit=k) for query in queries]
        return [[hit.id for hit in shard.search(request)] for request in requests]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
