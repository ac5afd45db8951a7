"""Digests of the results of builds, searches and fits, equal for every number of threads (tests/conformance/test_determinism.py).

usage: python -m tests.support.computed_bits CORES      prints one JSON object
"""

import hashlib
import json
import os
import sys
import tempfile
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder import projection
from ray_lir.search import Searcher
from tests.support.synthetic import collection, queries_about

DIM = 128
NUM_CENTROIDS = 2100
"""Enough centroids that vectors are compared only with those of the nearest cells."""


def main(cores: int) -> dict[str, str]:
    os.sched_getaffinity = lambda _: set(range(cores))  # parallel.num_cores reads this
    torch.set_num_threads(cores)
    documents = collection(300, DIM, topics=200)
    ids = np.random.default_rng(2).integers(0, 300, documents.num_tokens).astype(np.int32)
    documents = TokenEmbeddings(documents.values, documents.offsets, documents.doc_ids, ids)
    queries = queries_about(documents, list(range(0, 300, 60)))
    digests = {}
    with tempfile.TemporaryDirectory() as folder:
        for method in ("k_means", "token_aware"):
            config = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=NUM_CENTROIDS, method=method))
            manifest = build_index(documents, f"{folder}/{method}", config, relation=relation())
            digests[f"build {method}"] = _digest(manifest.model_dump_json())
        searcher = Searcher.open(f"{folder}/k_means")
        for engine in ("exact", "warp"):
            found = [searcher.search(queries.slice(first, end), 20, engine) for first, end in ((0, len(queries)), (0, 1))]
            digests[f"search {engine}"] = _digest(*(array for tops in found for top in tops for array in (top.scores, top.documents)))
    encoder: Any = SimpleNamespace(contract=SimpleNamespace(dim=DIM), encode_documents=lambda texts: documents)
    moment = projection._second_moment(encoder, ["text"])
    digests["projection"] = _digest(moment, projection._leading_eigenvectors(moment, 100))
    return digests


def relation() -> Relation:
    rng = np.random.default_rng(3)
    rows = (rng.normal(size=DIM).astype(np.float32) for _ in range(4))
    inner, outer = (rng.normal(size=shape).astype(np.float32) / DIM for shape in ((DIM, 2 * DIM), (DIM, DIM)))
    return Relation(inner, *(next(rows) for _ in range(3)), outer, next(rows), 0.3, "combined")


def _digest(*parts: np.ndarray | str) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).tobytes())
    return sha.hexdigest()[:16]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
