"""Milvus Lite: documents as arrays of vectors (embedding lists), compared by MAX_SIM_IP."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from pymilvus import DataType, MilvusClient
from pymilvus.client.embedding_list import EmbeddingList

from bench.peers import inputs
from bench.peers.harness import Search, main

ROWS = 256
"""Rows in one insertion."""


def _build(input: Path, index: Path, threads: int) -> Callable[[], object]:
    documents = inputs.load(input, "documents")

    def run() -> None:
        index.mkdir(parents=True)
        client = MilvusClient(str(index / "documents.db"))
        schema = MilvusClient.create_schema(auto_id=False)
        schema.add_field("id", DataType.INT64, is_primary=True)
        token = MilvusClient.create_struct_field_schema()
        token.add_field("vector", DataType.FLOAT_VECTOR, dim=documents.dim)
        schema.add_field("tokens", DataType.ARRAY, element_type=DataType.STRUCT, struct_schema=token, max_capacity=512)
        params = client.prepare_index_params()
        params.add_index("tokens[vector]", index_type="HNSW", metric_type="MAX_SIM_IP")
        client.create_collection("documents", schema=schema, index_params=params)
        for start in range(0, len(documents), ROWS):
            numbers = range(start, min(start + ROWS, len(documents)))
            rows = [{"id": number, "tokens": [{"vector": vector} for vector in documents[number].tolist()]} for number in numbers]
            client.insert("documents", rows)
        client.close()

    return run


def _open_index(input: Path, index: Path, threads: int) -> Search:
    client = MilvusClient(str(index / "documents.db"))

    def search(queries: Sequence[np.ndarray], k: int) -> list[list[int]]:
        lists = [EmbeddingList(list(query)) for query in queries]
        return [[hit["id"] for hit in hits] for hits in client.search("documents", lists, anns_field="tokens[vector]", limit=k)]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
