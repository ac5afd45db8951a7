"""Measure the cost of building an index by token, and compare the predictions of jobs.plan with builds and searches of two sizes.

    python -m bench.scale.planning [--output bench/results/planning.json]

Seconds are processor time on one thread, so that other work on the machine hardly changes them. The constants are fitted
to the small build; the large one is predicted with them. Copy the constants to ray_lir/planning/workload.py.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir.base.config import IndexConfig
from ray_lir.building.build import build_index
from ray_lir.building.clustering import Assigner
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.kernels import select
from ray_lir.planning.capacity import ENGINES
from ray_lir.planning.sizes import Collection, predict_bytes
from ray_lir.planning.workload import BuildCosts, build_seconds, comparisons, query_work, sampled_tokens
from ray_lir.search.searcher import Searcher

SIZES = (2_000, 8_000)
TOKENS_PER_DOC, DIM, NBITS, TEXT = 70, 128, 2, 600
QUERIES, QUERY_TOKENS, K = 30, 32, 10
STEPS = {"_sample_part": "sample", "_sums": "k-means", "_compress_part": "compress", "_assemble_shard": "assemble"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.planning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("bench/results/planning.json"))
    options = parser.parse_args()
    measured = [build(num_docs) for num_docs in SIZES]
    costs = fit(*measured[0][:2])
    report = {"kernels": select().name, "dim": DIM, "nbits": NBITS, "nanoseconds": asdict(costs), "builds": []}
    for of, seconds, num_bytes, searches in measured:
        predicted = {stage: round(value, 3) for stage, value in build_seconds(of, IndexConfig().clustering.num_iterations, costs).items()}
        report["builds"].append(
            {
                "num_docs": of.num_docs,
                "num_tokens": of.num_tokens,
                "num_centroids": of.num_centroids,
                "cpu_seconds": {stage: round(value, 3) for stage, value in seconds.items()},
                "predicted_seconds": predicted,
                "bytes": num_bytes,
                "predicted_bytes": predict_bytes(of).index,
                "query_cpu_ms": {engine: round(value, 2) for engine, value in searches.items()},
                "predicted_query_ms": {engine: round(query_work(engine, of, select().name, K).total, 2) for engine in searches},
            }
        )
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def build(num_docs: int) -> tuple[Collection, dict[str, float], int, dict[str, float]]:
    """Measure one build: its size, processor seconds of each stage, its bytes, and processor milliseconds of a query by engine."""
    rng = np.random.default_rng(num_docs)
    topics = rng.normal(size=(4096, DIM))
    vectors = topics[rng.integers(0, 4096, num_docs * TOKENS_PER_DOC)] + 0.7 * rng.normal(size=(num_docs * TOKENS_PER_DOC, DIM))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    documents = TokenEmbeddings.of(np.split(vectors.astype(np.float16), num_docs), [f"{number:08d}" for number in range(num_docs)])
    spent: dict[str, float] = defaultdict(float)

    def timed(function: Any, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            start = time.process_time()
            result = function(item)
            spent[STEPS[function.func.__name__]] += time.process_time() - start
            yield result

    with tempfile.TemporaryDirectory() as folder:
        save_embeddings(f"{folder}/embeddings", documents, texts=["x" * (TEXT - 10)] * num_docs)
        manifest = build_index(f"{folder}/embeddings", f"{folder}/index", IndexConfig(codec={"nbits": NBITS}), map=timed)
        searches = search(f"{folder}/index", documents)
    files = [manifest.codec, manifest.cluster_sizes, *(file for shard in manifest.shards for file in shard.files)]
    of = Collection.of(num_docs, TOKENS_PER_DOC, DIM, NBITS, manifest.num_centroids, TEXT)
    return of, dict(spent), sum(file.size for file in files), searches


def search(index: str, documents: TokenEmbeddings) -> dict[str, float]:
    """Return the median processor milliseconds of a query of 32 tokens, each near a token of one document."""
    searcher = Searcher.open(index)
    rng = np.random.default_rng(0)
    chosen = rng.integers(0, len(documents), QUERIES)
    near = [documents[number][:QUERY_TOKENS] + 0.05 * rng.normal(size=(QUERY_TOKENS, DIM)) for number in chosen]
    queries = TokenEmbeddings.of([tokens / np.linalg.norm(tokens, axis=1, keepdims=True) for tokens in near])
    return {engine: statistics.median(_milliseconds(searcher, queries, engine)) for engine in ENGINES}


def _milliseconds(searcher: Searcher, queries: TokenEmbeddings, engine: str) -> Iterator[float]:
    for number in range(len(queries)):
        start = time.process_time()
        searcher.search(queries.slice(number, number + 1), K, engine)
        yield 1e3 * (time.process_time() - start)


def fit(of: Collection, seconds: dict[str, float]) -> BuildCosts:
    """Return the constants that explain one build; the time of a comparison is measured separately."""
    compared = _compared(of.num_centroids)
    assign = comparisons(of.num_centroids) * compared
    sample, iterations = sampled_tokens(of), IndexConfig().clustering.num_iterations
    return BuildCosts(
        compared=round(compared, 2),
        sample=round(1e9 * seconds["sample"] / sample),
        sum=max(0, round(1e9 * seconds["k-means"] / iterations / sample - assign)),
        compress=max(0, round(1e9 * seconds["compress"] / of.num_tokens - assign)),
        assemble=round(1e9 * seconds["assemble"] / of.num_tokens),
    )


def _compared(num_centroids: int) -> float:
    """Return the nanoseconds for one vector and one centroid, with the assigner of a build."""
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(num_centroids, DIM)).astype(np.float32)
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    assigner = Assigner.over(centroids, IndexConfig().clustering.assign_nprobe, 0)
    vectors = rng.normal(size=(65536, DIM)).astype(np.float32)
    start = time.process_time()
    assigner(vectors)
    return 1e9 * (time.process_time() - start) / len(vectors) / comparisons(num_centroids)


if __name__ == "__main__":
    main()
