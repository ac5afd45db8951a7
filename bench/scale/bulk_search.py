"""Queries a second of bulk search on Ray, by number of workers and layout.

    python -m bench.scale.bulk_search --index INDEX --queries FILE_OR_DATASET [--output bench/results/bulk_search.json]

Each run is a `jobs.search` process with its own local Ray cluster. `seconds` is the search phase: it includes the start of the
workers, which load the encoder and open the index. The manifests of all runs must be equal. Run it on a machine without other work.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.machine import machine

LAYOUTS = {
    "1 worker, whole index": ["--workers.num_workers", "1"],
    "2 workers, whole index": ["--workers.num_workers", "2"],
    "1 worker, 2 groups of shards": ["--workers.num_workers", "1", "--workers.groups", "2"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.bulk_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--output", type=Path, default=Path("bench/results/bulk_search.json"))
    options = parser.parse_args()
    runs = {name: _search(options.index, options.queries, flags) for name, flags in LAYOUTS.items()}
    if len({run["manifest_digest"] for run in runs.values()}) != 1:
        raise SystemExit("the hits differ between layouts")
    one, two = (runs[name]["queries_per_second"] for name in list(LAYOUTS)[:2])
    report = {"machine": machine(), "index": options.index, "queries": options.queries, "runs": runs, "scaling": round(two / one, 2)}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def _search(index: str, queries: str, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.search", "--index", index, "--queries", queries, "--output", f"{folder}/hits", *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {name: result[name] for name in ("num_queries", "engine", "seconds", "queries_per_second", "manifest_digest")}


if __name__ == "__main__":
    main()
