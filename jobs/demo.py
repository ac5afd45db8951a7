"""Tries everything on this machine: collects documentation of Python packages, encodes it, indexes it, serves it and searches it."""

import json
import logging
import shlex
import socket
import textwrap
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config
from ray_lir.base.extras import require

from . import build_index, encode
from .cli import main

QUESTIONS = (
    "how do I read a csv file line by line",
    "wait until several coroutines have finished",
    "copy a directory with everything in it",
    "run a command and capture what it prints",
    "which value occurs most often in a list",
    "replace the missing values of a table",
)
SERVING = f"{(__package__ or '').removesuffix('jobs')}serving.app"
APPLICATION = "ray_lir-demo"
DEFAULT_PORT = 8000

logger = logging.getLogger("ray_lir.demo")


class DemoJob(Config):
    """Searches the documentation of installed Python packages: from source files to answers over HTTP. If it runs again, finished steps
    are skipped."""

    output: str = "demo"
    """Folder for the corpus, the embeddings and the index."""
    num_docs: int = Field(4000, ge=1)
    """Number of documents of the corpus, at most."""
    k: int = Field(3, ge=1)
    """Number of hits to print for each question."""
    document_length: int = Field(128, ge=3)
    """Length limit of documents, in tokens with special tokens."""


def run(job: DemoJob) -> dict[str, Any]:
    """Run the demo and return where its files are, sizes, seconds of each phase, and the first hit of each question."""
    require("ray", "serving the demo")
    folder = storage.local_output(job.output) / f"{job.num_docs}-documents"
    corpus, embeddings, index = folder / "corpus.jsonl", folder / "embeddings", folder / "index"
    log: list[dict[str, Any]] = []
    with logs.phase("demo, corpus", log) as record:
        record["file"] = corpus
        collect_corpus(corpus, job.num_docs)
    with logs.phase("demo, encode", log) as record:
        encoder = {"document_length": job.document_length}
        record["folder"] = embeddings
        encoded = encode.run(encode.EncodeJob(corpus=str(corpus), output=str(embeddings), encoder=encoder))
    with logs.phase("demo, index", log) as record:
        record["folder"] = index
        built = build_index.run(build_index.BuildIndexJob(embeddings=str(embeddings), output=str(index)))
    from ray_lir.distributed.runtime import ray_session  # Ray takes seconds to load

    answers = []
    with ray_session(), served(index) as url:
        for question in QUESTIONS:
            answers.append(ask(url, question, job.k))
            print(format_hits(answers[-1]), flush=True)
    print(farewell(folder), flush=True)
    return {
        "corpus": str(corpus),
        "embeddings": str(embeddings),
        "index": str(index),
        "num_docs": built["num_docs"],
        "num_tokens": built["num_tokens"],
        **{name: encoded[name] for name in ("num_truncated_docs", "num_tokens_dropped", "dropped_is_minimum", "dropped_fraction")},
        "seconds": {record["stage"].removeprefix("demo, "): record["seconds"] for record in log},
        "answers": [{"query": answer["query"], "ms": answer["ms"], "doc_id": answer["hits"][0]["doc_id"]} for answer in answers],
    }


def collect_corpus(file: Path, num_docs: int) -> None:
    """Write the docstring corpus as JSON lines, unless the file exists."""
    if file.exists():
        return
    from ray_lir.corpus import docstring_corpus

    logger.info("demo, corpus: reading the sources of the standard library, %s", ", ".join(docstring_corpus.PACKAGES))
    rows = [
        {"_id": document.doc_id, "title": document.title, "text": document.text, "metadata": document.metadata}
        for document in docstring_corpus.collect(num_docs)
    ]
    storage.write_bytes(str(file), "".join(json.dumps(row) + "\n" for row in rows).encode())


@contextmanager
def served(index: Path) -> Iterator[str]:
    """Run the search service over an index for the body of a `with` block, and yield its address."""
    from ray import serve

    port = free_port(DEFAULT_PORT)
    url = f"http://127.0.0.1:{port}"
    with logs.phase("demo, serve") as record:
        record["url"] = url
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(import_module(SERVING).build({"index": str(index)}), name=APPLICATION)
    try:
        yield url
    finally:
        serve.delete(APPLICATION)


def free_port(preferred: int) -> int:
    """Return the preferred port if it is free, otherwise any free port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", preferred))
        except OSError:
            probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def ask(url: str, query: str, k: int) -> dict[str, Any]:
    """Search the service and return the query, its hits, and the milliseconds of the request.

    Args:
        url: Address of the service.
        query: Text of the query.
        k: Number of hits, at most.
    """
    body = json.dumps({"query": query, "k": k}).encode()
    request = urllib.request.Request(f"{url}/search", body, {"Content-Type": "application/json"})
    start = time.perf_counter()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the service is on this machine, which a proxy cannot reach
    with direct.open(request, timeout=60) as response:
        (hits,) = json.load(response)["results"]
    return {"query": query, "ms": round(1000 * (time.perf_counter() - start), 1), "hits": hits}


def format_hits(answer: dict[str, Any]) -> str:
    """Return a question and its hits as text."""
    lines = [f"\n{answer['query']}?  ({answer['ms']:.0f} ms)"]
    for hit in answer["hits"]:
        summary = " ".join(hit["text"].partition("\n\n")[0].split())
        lines.append(f"  {hit['score']:6.2f}  {hit['title']}")
        lines.append(textwrap.shorten(summary, 110, initial_indent=" " * 10, placeholder=" ..."))
    return "\n".join(lines)


def farewell(folder: Path) -> str:
    """Return where the files are, and the commands that serve the index again."""
    command = shlex.join(["serve", "run", f"{SERVING}:build", f"index={folder / 'index'}"])
    question = shlex.quote(json.dumps({"query": "open a zip file", "k": 3}))
    return f"""
The corpus, the embeddings and the index are in {folder}. To serve the index again:
  {command}
  curl -s http://127.0.0.1:{DEFAULT_PORT}/search -H 'Content-Type: application/json' -d {question}
"""


if __name__ == "__main__":
    main(DemoJob, run)
