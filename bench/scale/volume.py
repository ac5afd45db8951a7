"""Time and peak memory of every process as the volume grows: jobs.encode and jobs.build_index, by documents and workers.

    python -m bench.scale.volume CORPUS_FILE [--docs 10000 30000 129000] [--workers 1 2] [--work runs/volume] [--minutes 7]

The encoder is a tiny random checkpoint, because only volume matters. Every job is a process with its own Ray
cluster. Twice a second the script reads peak memory and processor time of all its processes, because seconds mean little
on a shared machine. Existing measurements are not repeated,
so a run can be split: with --minutes no job starts after that time.
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

from bench.machine import machine
from tests.fixtures.tiny import bert
from tests.support.processes import descendants

DOCUMENT_LENGTH = 64
SECONDS_BETWEEN_LOOKS = 0.5
KINDS = {"ray::": "workers", "raylet": "raylet", "gcs_server": "gcs"}
OUTPUT = Path("bench/results/volume.json")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.volume", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="corpus.jsonl.gz with enough documents")
    parser.add_argument("--docs", type=int, nargs="+", default=[10_000, 30_000, 129_000])
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/volume"))
    parser.add_argument("--minutes", type=float, default=1e9)
    options = parser.parse_args()
    begin = time.monotonic()
    if not (options.work / "checkpoint").exists():
        bert(options.work / "checkpoint")
    report = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {"machine": machine(), "document_length": DOCUMENT_LENGTH, "runs": []}
    for num_docs, workers, job in _steps(options.docs, options.workers):
        if any((run["docs"], run["workers"], run["job"]) == (num_docs, workers, job) for run in report["runs"]):
            continue
        if time.monotonic() - begin > 60 * options.minutes:
            break
        report["runs"].append(_measure(options.work, options.corpus, num_docs, workers, job))
        OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
        OUTPUT.with_suffix(".md").write_text(table(report))
        print(json.dumps(report["runs"][-1]), flush=True)


def _steps(docs: list[int], workers: list[int]) -> Iterator[tuple[int, int, str]]:
    return ((num_docs, number, job) for num_docs in docs for number in workers for job in ("encode", "build_index"))


def _measure(work: Path, corpus: Path, num_docs: int, workers: int, job: str) -> dict[str, Any]:
    """Run one job; return its result, its stages, and the peaks of its processes in MB."""
    folder = work / f"{num_docs}-{workers}"
    words = {
        "encode": ["--corpus", _head(work, corpus, num_docs), "--output", folder / "embeddings"]
        + ["--encoder.checkpoint", work / "checkpoint", "--encoder.document_length", DOCUMENT_LENGTH],
        "build_index": ["--embeddings", folder / "embeddings", "--output", folder / "index"],
    }[job]
    output = folder / ("embeddings" if job == "encode" else "index")
    subprocess.run(["rm", "-rf", str(output)], check=True)
    start = time.perf_counter()
    environment = os.environ | {"RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": workers})}
    command = [sys.executable, "-m", f"jobs.{job}", *map(str, words), "--where", "ray"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    load = os.getloadavg()[0]
    peaks, cpu_seconds = watch(process)
    result = json.loads(process.stdout.read().splitlines()[-1])
    seconds = time.perf_counter() - start
    provenance = output / ("provenance.json" if job == "encode" else "versions/1/provenance.json")
    return {
        "docs": num_docs,
        "workers": workers,
        "job": job,
        "tokens": result["num_tokens"],
        "bytes": result["bytes"],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "load_before": round(load, 1),
        "stages": by_stage(json.loads(provenance.read_text())["stages"]),
        "peak_mb": peaks,
    }


def by_stage(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each stage, summed by name."""
    return {
        name: round(sum(each["seconds"] for each in records if each["stage"] == name), 1)
        for name in dict.fromkeys(r["stage"] for r in records)
    }


def watch(process: subprocess.Popen) -> tuple[dict[str, int], float]:
    """Return the highest peak of each kind of process until the job ends, and the processor time of all.

    Pages of Ray's shared object store count in every process that accessed them.
    """
    peaks: dict[str, int] = {}
    spent: dict[int, float] = {}
    while process.poll() is None:
        there = {process.pid: "driver", **{pid: _kind_of(name) for pid, name in descendants(process.pid).items()}}
        for pid, kind in there.items():
            peaks[kind] = max(peaks.get(kind, 0), _peak_mb(pid))
            spent[pid] = max(spent.get(pid, 0.0), _cpu_seconds_of(pid))
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if process.returncode:
        sys.exit(f"the job ended with status {process.returncode}")
    return peaks, sum(spent.values())


def _kind_of(command: str) -> str:
    return next((kind for sign, kind in KINDS.items() if sign in command.split("\0")[0]), "other")


def _peak_mb(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) // 1024 for line in lines if line.startswith("VmHWM")), 0)


def _cpu_seconds_of(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _head(work: Path, corpus: Path, num_docs: int) -> Path:
    """Write the first documents of the corpus into a file."""
    path = work / f"corpus-{num_docs}.jsonl"
    if not path.exists():
        with gzip.open(corpus, "rb") as file:
            path.write_bytes(b"".join(islice(file, num_docs)))
    return path


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        f"Documents of {report['document_length']} tokens at most, a tiny random encoder of 32 dimensions; {report['machine']['cpu']}, "
        f"{report['machine']['cores']} cores. Peaks in MB; a worker's peak includes accessed pages of the shared object store.",
        "",
        "| job | documents | workers | tokens | bytes | core-seconds | seconds | load before | seconds by stage | driver | worker |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for run in sorted(report["runs"], key=lambda run: (run["job"] != "encode", run["workers"], run["docs"])):
        stages = ", ".join(f"{name} {seconds:g}" for name, seconds in run["stages"].items())
        peaks = run["peak_mb"]
        lines.append(
            f"| {run['job']} | {run['docs']:,} | {run['workers']} | {run['tokens']:,} | {run['bytes']:,} | {run['cpu_seconds']:g} "
            f"| {run['seconds']:g} | {run['load_before']:g} | {stages} | {peaks.get('driver', 0)} | {peaks.get('workers', 0)} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
