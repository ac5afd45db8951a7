"""Time lost when a machine disappears halfway: seconds of encode, build_index and train, with and without the loss.

    python -m bench.faults.node_loss [--jobs encode build_index train] [--work DIR]

The cluster is a head and three machines of one CPU, each a raylet. Ray's default applies: a machine is lost after 15 seconds
without an answer. No other machine joins. The first run of each job is not counted, because it fills the file caches.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.faults.small_jobs import Job, jobs, make_inputs, steps_repeated, tree_digest
from bench.machine import machine
from tests.support.clusters import Machines, machines

OUTPUT = Path("bench/results/node_loss.json")
SIGNS = {"encode": "_EncodingWorker", "build_index": "ray::_call", "train": "RayTrainWorker"}
NUM_DOCS, NUM_QUERIES, MACHINES = 1600, 100, 3


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.node_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", default=list(SIGNS), choices=list(SIGNS))
    parser.add_argument("--work", type=Path, default=Path("runs/node_loss"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    made = options.work.resolve()
    make_inputs(made, NUM_DOCS, NUM_QUERIES)
    report = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    report |= {"machine": machine(), "num_docs": NUM_DOCS, "machines": MACHINES}
    done = {run["job"]: run for run in report.get("runs", [])}
    with machines(MACHINES) as cluster:
        for name in options.jobs:
            cluster.add(MACHINES - len(cluster.workers))
            done[name] = _measure(cluster, jobs(made)[name], SIGNS[name], made)
            print(json.dumps(done[name]), flush=True)
            report["runs"] = [done[each] for each in SIGNS if each in done]
            OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
            OUTPUT.with_suffix(".md").write_text(table(report))
    print(table(report), file=sys.stderr)


def _measure(cluster: Machines, job: Job, sign: str, made: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=made, ignore_cleanup_errors=True) as folder:
        runs = [Path(folder) / name for name in ("warm", "undisturbed", "lost")]
        for output in runs:
            shutil.copytree(job.start_from, output) if job.start_from else output.mkdir()
        units, _, _ = _run(cluster, job, runs[0])
        _, undisturbed, _ = _run(cluster, job, runs[1])
        _, lost, repeated = _run(cluster, job, runs[2], units // 2, sign)
        return {
            "job": job.verb,
            "units": units,
            "undisturbed_s": round(undisturbed, 1),
            "lost_s": round(lost, 1),
            "steps_repeated": repeated,
            "equal": len({tree_digest(output) for output in runs}) == 1,
        }


def _run(cluster: Machines, job: Job, output: Path, lose_at: int | None = None, sign: str = "") -> tuple[int, float, int]:
    """Return units, seconds and repeated steps; a busy machine is lost once `lose_at` units are finished."""
    log = output.parent / f"{output.name}.log"
    start, most = time.monotonic(), 0
    with open(log, "w") as stderr:
        process = cluster.start(job.verb, *job.words(output), stderr=stderr)
    while process.poll() is None:
        most = max(most, job.num_done(output, log.read_text()))
        if lose_at and most >= lose_at and (found := cluster.running(sign)):
            cluster.lose(found[0][0])
            lose_at = None
        time.sleep(0.02)
    _check(process, log, lose_at)
    return most, time.monotonic() - start, steps_repeated(log.read_text())


def _check(process: subprocess.Popen, log: Path, not_lost: int | None) -> None:
    process.communicate()
    if process.returncode or not_lost:
        sys.exit(f"a job ended with status {process.returncode}{' before a machine was lost' * bool(not_lost)}:\n{log.read_text()[-3000:]}")


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        f"A head and {report['machines']} machines of one CPU; one machine is lost halfway and not replaced; "
        f"{report['num_docs']:,} documents of synthetic text, a tiny encoder. All processes shared {report['machine']['cores']} cores "
        f"({report['machine']['cpu']}) with other work, so the difference is Ray's time to notice "
        "the loss and the repeated work.",
        "",
        "| job | seconds undisturbed | seconds with the loss | time lost | training steps repeated | equal bytes |",
        "|---|---|---|---|---|---|",
    ]
    for run in report["runs"]:
        lines.append(
            f"| {run['job']} | {run['undisturbed_s']:g} | {run['lost_s']:g} | {run['lost_s'] - run['undisturbed_s']:.1f} s "
            f"| {run['steps_repeated']} | {'yes' if run['equal'] else 'NO'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
