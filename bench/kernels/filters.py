"""Filters: time of the first and of a repeated evaluation over one shard's documents, and memory.

python -m bench.kernels.filters [--documents 100000] [--output bench/results/filters.json]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.machine import machine
from ray_lir.index.filter_evaluation import FilteredDocuments
from ray_lir.index.filters import Filters

WHERE: dict[str, Any] = {
    "equal text": {"op": "eq", "field": "language", "value": "en"},
    "number from": {"op": "ge", "field": "year", "value": 2010},
    "nested field": {"op": "prefix", "field": "author.name", "value": "author 1"},
    "in a list": {"op": "contains", "field": "tags", "value": "tag 7"},
    "one of 100": {"op": "in", "field": "author.id", "values": list(range(100))},
    "three together": {
        "op": "and",
        "filters": [
            {"op": "ge", "field": "year", "value": 2010},
            {"op": "eq", "field": "language", "value": "en"},
            {"op": "not", "filter": {"op": "contains", "field": "tags", "value": "tag 7"}},
        ],
    },
}
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--output", default="bench/results/filters.json")
    options = parser.parse_args()
    table = documents(options.documents)
    FilteredDocuments(table.slice(0, 10), None).rows(Filters.model_validate({"where": WHERE["equal text"]}))  # imports DuckDB
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak that making the documents left
    before = peak_mb()
    results = [_measure(table, name, where) for name, where in WHERE.items()]
    report = {
        "machine": machine(),
        "documents": options.documents,
        "metadata_bytes": table.column("metadata").nbytes,
        "peak_mb_more": round(peak_mb() - before, 1),
        "filters": results,
    }
    Path(options.output).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def documents(number: int) -> pa.Table:
    """Return ids and metadata of synthetic documents."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "year": int(rng.integers(1990, 2025)),
            "language": str(rng.choice(["en", "de", "fr"])),
            "author": {"name": f"author {rng.integers(0, 500)}", "id": int(rng.integers(0, 10_000))},
            "tags": [f"tag {tag}" for tag in rng.integers(0, 50, 3)],
        }
        for _ in range(number)
    ]
    return pa.table({"doc_id": [f"doc-{row}" for row in range(number)], "metadata": [json.dumps(row) for row in rows]})


def _measure(table: pa.Table, name: str, where: dict[str, Any]) -> dict[str, Any]:
    filters = Filters.model_validate({"where": where})
    first = [_timed(FilteredDocuments(table, None), filters) for _ in range(REPEATS)]
    kept = FilteredDocuments(table, None)
    _timed(kept, filters)
    return {
        "filter": name,
        "let_through": len(kept.rows(filters)),
        "first_ms": round(float(np.median(first)), 1),
        "again_ms": round(float(np.median([_timed(kept, filters) for _ in range(REPEATS)])), 3),
    }


def _timed(documents: FilteredDocuments, filters: Filters) -> float:
    start = time.perf_counter()
    documents.rows(filters)
    return 1000 * (time.perf_counter() - start)


def peak_mb() -> float:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    main()
