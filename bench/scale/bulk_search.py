"""Queries a second of bulk search in one process and on Ray, by number of workers and layout.

    python -m bench.scale.bulk_search --index INDEX --queries FILE_OR_DATASET [--output bench/results]

Each run is a `jobs.search` in a process of its own, on Ray with a local cluster. `seconds` is the search phase. On Ray it includes the
start of the workers, which load the encoder and open the index. The manifests of all runs must be equal. Run it on a machine without
other work.
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
    "this process, all threads": [],
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
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    runs = {name: _search(options.index, options.queries, flags) for name, flags in LAYOUTS.items()}
    if len({run["manifest_digest"] for run in runs.values()}) != 1:
        raise SystemExit("the hits differ between layouts")
    one, two = (runs[name]["queries_per_second"] for name in list(LAYOUTS)[1:3])
    report = {"machine": machine(), "index": options.index, "queries": options.queries, "runs": runs, "scaling": round(two / one, 2)}
    (options.output / "bulk_search.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "bulk_search.md").write_text(table(report))
    print(json.dumps(report))


def _search(index: str, queries: str, flags: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "jobs.search", "--index", index, "--queries", queries, "--output", f"{folder}/hits", *flags]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout.splitlines()[-1])
    return {name: result[name] for name in ("num_queries", "engine", "seconds", "queries_per_second", "manifest_digest")}


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    found = next(iter(report["runs"].values()))
    lines = [
        f"{found['num_queries']:,} queries, engine {found['engine']}, k = 10.",
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores.",
        "All runs wrote the same manifest.",
        "",
        "| run | seconds | queries a second |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {run['seconds']:.0f} | {run['queries_per_second']:.0f} |" for name, run in report["runs"].items()]
    return "\n".join(lines) + f"\n\nTwo workers answer {report['scaling']:.2f} times as many queries a second as one.\n"


if __name__ == "__main__":
    main()
