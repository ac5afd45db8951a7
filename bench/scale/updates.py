"""The cost of updates: adding, deleting, and searching an index with delta shards and after compaction.

    python -m bench.scale.updates --index INDEX --embeddings EMBEDDINGS [--work runs/updates] [--output bench/results/updates.json]

The index is copied with hard links, because its files never change. 1,000 documents of the embeddings, under new ids, are added at
a time, and 1, 100 and 10,000 are deleted at a time. A search is one query on one core, ids included; queries are the first
tokens of documents.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from ray_lir.building.compact import compact_index
from ray_lir.building.update import update_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.engines import SERVED
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, read_manifest

DELTAS = 20
ADDED = 1000
QUERIES, QUERY_TOKENS = 50, 24


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.updates", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/updates"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/updates.json"))
    options = parser.parse_args()
    index = options.work / "index"
    subprocess.run(["rm", "-rf", str(options.work)], check=True)
    options.work.mkdir(parents=True)
    subprocess.run(["cp", "-rl", str(options.index), str(index)], check=True)
    (index / "LATEST").unlink()
    (index / "LATEST").write_text("1\n")
    documents = head(options.embeddings, DELTAS * ADDED)
    queries = _questions(documents)
    built = read_version(str(index))
    report: dict[str, Any] = {"machine": machine(), "num_docs": built.num_docs, "num_tokens": built.num_tokens, "dim": built.dim}
    report["search_ms"] = {"before": search(index, queries)}
    report["delete"] = [_timed_delete(index, count, first) for count, first in ((1, 0), (100, 1), (10_000, 101))]
    report["search_ms"]["with 10,101 deleted"] = search(index, queries)
    report["add"] = [_timed_add(options.work, index, documents, number) for number in range(DELTAS)]
    report["search_ms"][f"and {DELTAS} delta shards"] = search(index, queries)
    start = time.perf_counter()
    compact_index(str(index))
    report["compact_seconds"] = round(time.perf_counter() - start, 2)
    report["search_ms"]["after compaction"] = search(index, queries)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(report))
    print(json.dumps(report))
    print(table(report), file=sys.stderr)


def head(folder: Path, num_docs: int) -> TokenEmbeddings:
    """Return the first documents of a folder of embeddings."""
    manifest = read_manifest(str(folder / MANIFEST), EmbeddingsManifest, "jobs.encode")
    blocks: list[TokenEmbeddings] = []
    for part in manifest.parts:
        blocks += [block.embeddings for block in read_blocks(str(folder / part.name))]
        if sum(map(len, blocks)) >= num_docs:
            break
    return concatenate(blocks).slice(0, num_docs)


def _questions(documents: TokenEmbeddings) -> TokenEmbeddings:
    chosen = np.linspace(0, len(documents) - 1, QUERIES).astype(int)
    return TokenEmbeddings.of([documents[number][:QUERY_TOKENS] for number in chosen])


def _timed_delete(index: Path, count: int, first: int) -> dict[str, Any]:
    """Delete documents spread over the whole index."""
    searcher = Searcher.open(str(index))
    numbers = np.unique(np.linspace(first, searcher.manifest.num_numbers - 1 - first, count).astype(int))
    ids = searcher.doc_ids(numbers)
    start = time.perf_counter()
    change = update_index(str(index), delete=ids).change
    return {"asked": len(ids), "deleted": change.num_deleted, "seconds": round(time.perf_counter() - start, 3)}


def _timed_add(work: Path, index: Path, documents: TokenEmbeddings, number: int) -> dict[str, Any]:
    part = documents.slice(number * ADDED, (number + 1) * ADDED)
    renamed = TokenEmbeddings(part.values, part.offsets, [f"new-{number}-{doc_id}" for doc_id in part.doc_ids], part.token_ids)
    folder = work / f"add-{number}"
    save_embeddings(str(folder), renamed, read_version(str(index)).contract)
    start = time.perf_counter()
    change = update_index(str(index), str(folder)).change
    return {"documents": change.num_added, "tokens": change.added_tokens, "seconds": round(time.perf_counter() - start, 3)}


def search(index: Path, queries: TokenEmbeddings) -> dict[str, dict[str, float]]:
    """Return median and 95th percentile of each served engine, after a warm-up round."""
    searcher = Searcher.open(str(index))
    found = {}
    for engine in SERVED:
        times = []
        for number in (*range(5), *range(QUERIES)):
            start = time.perf_counter()
            searcher.doc_ids(searcher.search(queries.slice(number, number + 1), 10, engine)[0].documents)
            times.append(1e3 * (time.perf_counter() - start))
        cuts = statistics.quantiles(times[5:], n=20)
        found[engine] = {"p50": round(statistics.median(times[5:]), 2), "p95": round(cuts[-1], 2)}
    return found


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    adds = [add["seconds"] for add in report["add"]]
    lines = [
        f"An index of {report['num_docs']:,} documents, {report['num_tokens']:,} tokens of {report['dim']} dimensions; "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores.",
        "",
        "| change | seconds |",
        "|---|---|",
        *(f"| delete {each['deleted']:,} documents | {each['seconds']:g} |" for each in report["delete"]),
        f"| add {ADDED:,} documents (embeddings) for the first time | {adds[0]:g} |",
        f"| the same, median and last of {DELTAS} times | {statistics.median(adds):g}, {adds[-1]:g} |",
        f"| compact | {report['compact_seconds']:g} |",
        "",
        "| milliseconds of a search, median (95th percentile) | " + " | ".join(SERVED) + " |",
        "|---|" + "---|" * len(SERVED),
    ]
    for name, found in report["search_ms"].items():
        lines.append(f"| {name} | " + " | ".join(f"{found[engine]['p50']:g} ({found[engine]['p95']:g})" for engine in SERVED) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
