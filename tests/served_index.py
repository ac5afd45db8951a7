"""A small index with a checkpoint of its own, made from nothing in a few seconds: what the tests of the service search."""

import json
from pathlib import Path

import numpy as np

from ray_lir.build import build_index
from ray_lir.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.encode import encode_corpus
from tests.fixtures.tiny import WORDS, bert

QUERIES = ["what is late interaction?", "the bridge on the river of the city", "Does the drug help (in mice)?", "token"]


def make_index(folder: Path, num_docs: int = 400, num_shards: int = 4, first_title: str | None = None) -> Path:
    """Checkpoint, corpus, embeddings and index below `folder`; returns the index."""
    bert(folder / "checkpoint")
    rng = np.random.default_rng(0)
    rows = [
        {
            "_id": f"doc-{i}",
            "title": " ".join(rng.choice(WORDS, 2)),
            "text": " ".join(rng.choice(WORDS, rng.integers(3, 30))),
            "metadata": {"row": i},
        }
        for i in range(num_docs)
    ]
    rows[0]["title"] = first_title or rows[0]["title"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = EncoderConfig(checkpoint=str(folder / "checkpoint"))
    encode_corpus(str(folder / "corpus.jsonl"), str(folder / "embeddings"), encoder, docs_per_part=100)
    config = IndexConfig(num_shards=num_shards, clustering=ClusteringConfig(num_centroids=64))
    build_index(str(folder / "embeddings"), str(folder / "index"), config)
    return folder / "index"
