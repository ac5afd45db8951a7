"""A small index with its own checkpoint, made in a few seconds for the tests of the service."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import describe_file, write_manifest
from tests.fixtures.tiny import WORDS, bert

QUERIES = ["what is late interaction?", "the bridge on the river of the city", "Does the drug help (in mice)?", "token"]


def make_index(
    folder: Path,
    num_docs: int = 400,
    num_shards: int = 4,
    first_title: str | None = None,
    metadata: Callable[[int], dict[str, Any]] = lambda row: {"row": row},
    lexical: bool = True,
) -> Path:
    """Make checkpoint, corpus, embeddings and index in `folder`; return the index."""
    bert(folder / "checkpoint")
    rng = np.random.default_rng(0)
    rows = [
        {
            "_id": f"doc-{i}",
            "title": " ".join(rng.choice(WORDS, 2)),
            "text": " ".join(rng.choice(WORDS, rng.integers(3, 30))),
            "metadata": metadata(i),
        }
        for i in range(num_docs)
    ]
    rows[0]["title"] = first_title or rows[0]["title"]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = EncoderConfig(checkpoint=str(folder / "checkpoint"))
    encode_corpus(str(folder / "corpus.jsonl"), str(folder / "embeddings"), encoder, docs_per_part=100)
    config = IndexConfig(num_shards=num_shards, clustering=ClusteringConfig(num_centroids=64), lexical=lexical)
    build_index(str(folder / "embeddings"), str(folder / "index"), config)
    return folder / "index"


def answers_in_process(index: Path, queries: list[str], k: int, version: int | None = None) -> list[list[tuple[str, float]]]:
    """Return ids and scores of the best k documents of each query, searched in this process by engine scan.

    Args:
        index: Folder of the index.
        queries: Texts of the queries.
        k: Documents of each query.
        version: Version of the index. None: the latest.
    """
    searcher = Searcher.open(str(index), version)
    embedded = Encoder.for_contract(searcher.manifest.contract).encode_queries(queries)
    answers = searcher.search(embedded, k, "scan")
    return [list(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True)) for answer in answers]


@contextmanager
def serve_started() -> Iterator[str]:
    """Yield the address of an empty Ray Serve on a free local port; it shuts down at the end."""
    from ray import serve  # most users of this module need no Ray

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def delete(index: Path, every: int, version: int = 2) -> None:
    """Add an index version in which every n-th document of each shard is deleted; LATEST does not change."""
    manifest = read_version(str(index))
    (index / "tombstones").mkdir()
    entries = []
    for number, shard in enumerate(manifest.shards):
        deleted = np.arange(0, shard.num_docs, every, dtype=np.uint32)
        np.save(index / "tombstones" / f"{number}.npy", deleted)
        tombstones = describe_file(str(index), f"tombstones/{number}.npy")
        entries.append(shard.model_copy(update={"num_deleted": len(deleted), "tombstones": tombstones}))
    num_docs = sum(entry.num_live for entry in entries)
    write_manifest(
        str(index / "versions" / str(version) / "manifest.json"),
        manifest.model_copy(update={"num_docs": num_docs, "shards": tuple(entries)}),
    )
