"""What a bulk search repeats when the driver, a worker or a machine is killed halfway, and what it fetches from S3.

    python -m bench.faults.bulk_search --index INDEX --queries FILE [--output bench/results]

The cluster is a head and three machines of one CPU, each a raylet. Each run searches all queries. One process or machine is killed when
half of the blocks are finished. The manifest must have the same bytes after every run. A block counts as repeated if its entry is written
again, or if its worker was killed while it searched the block. The S3 run starts with an empty cache against moto. Its two workers run on
one machine and share the copies.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest
from moto.s3.responses import S3Response

from bench.machine import machine
from ray_lir import storage
from ray_lir.index.versions import read_version
from ray_lir.search.bulk import QUERIES_PER_BLOCK
from ray_lir.storage.manifest import files_of
from tests.support.clusters import NOTICED_SOON, Machines, machines
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server

MACHINES = 3
WORKER = "_SearchWorker"
RUNS = {
    "undisturbed": (None, []),
    "worker killed": ("worker", []),
    "machine killed": ("machine", []),
    "driver killed, run again": ("driver", []),
    "2 groups of shards, undisturbed": (None, ["--workers.groups", "2"]),
    "2 groups of shards, machine killed": ("machine", ["--workers.groups", "2"]),
}
QUIET = {"RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S": "60"}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.bulk_search", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "runs": []}
    with machines(MACHINES, **NOTICED_SOON) as cluster:
        for name, (victim, flags) in RUNS.items():
            cluster.add(MACHINES - len(cluster.workers))
            with tempfile.TemporaryDirectory() as folder:
                run = Run(cluster, ["--index", options.index, "--queries", options.queries, *flags], Path(folder) / "hits")
                report["runs"].append({"run": name} | run.measure(victim))
            print(json.dumps(report["runs"][-1]), flush=True)
            write_report(report, options.output)
    report["s3"] = cold_cache(options.index, options.queries)
    write_report(report, options.output)
    print(table(report), file=sys.stderr)


def write_report(report: dict[str, Any], output: Path) -> None:
    """Write the finished runs, so that a run that is stopped keeps them. Exit if their hits differ."""
    if len({run["manifest_digest"] for run in report["runs"]}) != 1:
        raise SystemExit("the hits differ between runs")
    (output / "bulk_search_faults.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / "bulk_search_faults.md").write_text(table(report))


class Run:
    """A bulk search on a cluster, with a record of finished blocks."""

    def __init__(self, cluster: Machines, words: list[str], output: Path):
        self.cluster = cluster
        self.words = [*words, "--output", str(output), "--workers.num_workers", str(MACHINES if "--workers.groups" not in words else 1)]
        self.output = output
        self.entries: dict[str, int] = {}
        self.rewritten = 0

    def measure(self, victim: str | None) -> dict[str, Any]:
        """Run the search, kill the victim at half of the blocks, and return seconds and repeated blocks."""
        start, in_work = time.monotonic(), 0
        job = self._start()
        while job.poll() is None:
            self._look()
            if victim and len(self.entries) >= self._half():
                in_work = self._kill(victim, job)
                if victim == "driver":
                    job.communicate()
                    job = self._start()
                victim = None
            time.sleep(0.02)
        stdout, stderr = job.communicate()
        if job.returncode or victim:
            raise SystemExit(f"a search ended with status {job.returncode}:\n{stderr[-3000:]}")
        result = json.loads(stdout.splitlines()[-1])
        return {
            "seconds": round(time.monotonic() - start, 1),
            "blocks": result["num_blocks"],
            "repeated_blocks": self.rewritten + in_work,
            "repeated_share": round((self.rewritten + in_work) / result["num_blocks"], 3),
            "manifest_digest": result["manifest_digest"],
        }

    def _start(self) -> subprocess.Popen:
        return self.cluster.start("search", *self.words, **QUIET)

    def _half(self) -> int:
        return max(1, sum(1 for _ in open(self.words[3])) // QUERIES_PER_BLOCK // 2)

    def _look(self) -> None:
        for path in self.output.glob("_progress/*/block-*.json"):
            try:
                inode = path.stat().st_ino
            except FileNotFoundError:
                continue
            if self.entries.setdefault(path.name, inode) != inode:
                self.rewritten += 1
                self.entries[path.name] = inode

    def _kill(self, victim: str, job: subprocess.Popen) -> int:
        """Kill the victim; return the number of blocks that were in work there."""
        found = self.cluster.running(WORKER)
        if victim == "driver":
            job.send_signal(signal.SIGKILL)
            return len(found)
        lost, pid = found[0]
        if victim == "machine":
            self.cluster.lose(lost)
            if "--workers.groups" in self.words:
                self.cluster.add()
        else:
            os.kill(pid, signal.SIGKILL)
        return 1


def cold_cache(index: str, queries: str) -> dict[str, Any]:
    """Search an index on S3 by two workers of one machine with an empty cache; return the bytes of the index and those fetched."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        fetched: list[int] = []
        get = S3Response.get_object

        def get_object(response: S3Response) -> Any:
            answer = get(response)
            fetched.append(_sent(response.headers.get("Range"), len(answer[2])))  # moto cuts the range out of the object afterwards
            return answer

        patch.setattr(S3Response, "get_object", get_object)
        with moto_server() as url, as_endpoint(url, patch):
            root = f"{make_bucket()}/index"
            fs, path = storage.filesystem(root)
            fs.put(f"{index.rstrip('/')}/", path, recursive=True)
            words = ["--index", root, "--queries", queries, "--output", f"{folder}/hits", "--workers.num_workers", "2"]
            command = [sys.executable, "-m", "jobs.search", *words, "--workers.cache", f"{folder}/cache"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        result = json.loads(done.stdout.splitlines()[-1])
        return {
            "index_mb": round(sum(file.size for file in files_of(read_version(index))) / 1e6, 1),
            "fetched_mb": round(sum(fetched) / 1e6, 1),
            "seconds": result["seconds"],
            "manifest_digest": result["manifest_digest"],
        }


def _sent(requested: str | None, size: int) -> int:
    """Bytes of an object that a request with this Range header receives, such as `bytes=0-99`."""
    if requested is None:
        return size
    first, last = requested.removeprefix("bytes=").split("-")
    return min(int(last or size - 1), size - 1) - int(first) + 1


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        f"Bulk search on a head and {MACHINES} machines of one CPU each (raylets that share {report['machine']['cores']} cores, "
        f"{report['machine']['cpu']}). The victim is killed when half of the blocks are finished. All runs wrote the same manifest.",
        "",
        "| run | seconds | blocks | blocks repeated | share repeated |",
        "|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        lines.append(
            f"| {run['run']} | {run['seconds']:.0f} | {run['blocks']} | {run['repeated_blocks']} | {100 * run['repeated_share']:.0f}% |"
        )
    if s3 := report.get("s3"):
        lines += [
            "",
            f"Index on S3 (moto), empty cache, two workers of one machine: the files of the index have {s3['index_mb']:g} MB, and "
            f"{s3['fetched_mb']:g} MB were fetched, manifests included. Both workers use one copy.",
        ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
