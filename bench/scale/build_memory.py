"""Peak memory and time of jobs.build_index as the corpus grows.

    python -m bench.scale.build_memory CORPUS_FILE [--docs 20000 100000]
                                      [--work runs/build_memory] [--output bench/results/build_memory.json]

The embeddings are synthetic, because only their volume matters: each token id has a random vector (a random
projection of one-hot ids), mixed slightly with its neighbour's. Every build is one process with threads, so
the peak that the system reports is that of the whole build.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from ray_lir import storage
from ray_lir.base.config import DOCS_PER_PART
from ray_lir.embeddings.folder import external_contract, publish_part
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import Block, texts_table
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.storage.manifest import MANIFEST, write_manifest

DIM = 128
VOCABULARY = 30_522
"""Number of token ids of the default checkpoint."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.build_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus.jsonl.gz with enough documents")
    parser.add_argument("--docs", type=int, nargs="+", default=[20_000, 100_000])
    parser.add_argument("--work", type=Path, default=Path("runs/build_memory"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/build_memory.json"))
    parser.add_argument("--num-iterations", type=int, default=4, help="of k-means: they cost time, not memory")
    options = parser.parse_args()
    builds = []
    for num_docs in options.docs:
        embeddings = options.work / f"embeddings-{num_docs}"
        if not (embeddings / MANIFEST).exists():
            _make_embeddings(options.corpus, num_docs, embeddings)
        builds.append(_build(embeddings, options.work / f"index-{num_docs}", options.num_iterations))
        print(json.dumps(builds[-1]), file=sys.stderr, flush=True)
    report = {"machine": machine(), "dim": DIM, "builds": builds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def _make_embeddings(corpus: Path, num_docs: int, folder: Path) -> None:
    """Write a folder of synthetic token embeddings of the first documents, one part at a time."""
    tokenizer = Encoder.load().tokenizer
    vectors = np.random.default_rng(0).normal(size=(VOCABULARY, DIM)).astype(np.float32)
    contract = external_contract(DIM)
    parts = []
    documents = islice(_read(corpus), num_docs)
    while rows := list(islice(documents, DOCS_PER_PART)):
        tokens = tokenizer.documents([row["text"] for row in rows])
        matrices = []
        for ids in tokens:
            mixed = vectors[ids] + 0.5 * np.roll(vectors[ids], 1, axis=0)
            matrices.append(mixed / np.linalg.norm(mixed, axis=1, keepdims=True))
        texts = texts_table([row["_id"] for row in rows], [""] * len(rows), [row["text"] for row in rows], ["{}"] * len(rows))
        embeddings = TokenEmbeddings.of(matrices, [row["_id"] for row in rows])
        parts.append(publish_part(str(folder), len(parts), [Block(embeddings, texts)], contract.fingerprint))
    manifest = EmbeddingsManifest(
        contract=contract,
        dim=DIM,
        num_docs=sum(part.num_docs for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        parts=tuple(parts),
    )
    write_manifest(storage.join(str(folder), MANIFEST), manifest)


def _read(corpus: Path) -> Iterator[dict[str, str]]:
    with gzip.open(corpus, "rt") as file:
        yield from map(json.loads, file)


def _build(embeddings: Path, output: Path, num_iterations: int) -> dict[str, Any]:
    """Build in another process; return its result, peak memory and processor time."""
    subprocess.run(["rm", "-rf", str(output)], check=True)
    command = [sys.executable, "-m", "jobs.build_index", "--embeddings", str(embeddings), "--output", str(output), "--where", "here"]
    command += ["--clustering.num_iterations", str(num_iterations)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the build ended with status {status}")
    result = json.loads(out.splitlines()[-1])
    return {
        "num_docs": result["num_docs"],
        "num_tokens": result["num_tokens"],
        "num_centroids": result["num_centroids"],
        "num_iterations": num_iterations,
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "bytes_per_token": result["bytes_per_token"],
    }


if __name__ == "__main__":
    main()
