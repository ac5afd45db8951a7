"""Kill jobs at random points (driver, worker process or machine), finish them, and compare them with an undisturbed run.

    python -m bench.faults.chaos [--jobs encode build_index mine update compact train] [--seed 0] [--work DIR]

Every job runs on a Ray cluster of a head and two machines, each a raylet. The undisturbed run counts the units of work: files
under their final names, or training steps. The disturbed run is interrupted after a random number of units. Drivers and
workers get SIGKILL. A lost machine loses all its processes, and another one joins. A job without a driver is restarted.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.faults.small_jobs import Job, finished_files, jobs, make_inputs, steps_repeated, tree_digest
from bench.machine import machine
from tests.support.clusters import NOTICED_SOON, Machines, machines

OUTPUT = Path("bench/results/chaos.json")
KILLS = {
    "encode": ["driver", "worker", "machine"],
    "build_index": ["driver", "worker", "machine"],
    "mine": ["driver", "driver"],
    "update": ["driver", "worker", "machine"],
    "compact": ["driver", "worker"],
    "train": ["driver", "worker", "machine"],
}
"""Kills of each job, in order; mine computes in its driver."""
WORKERS = ("ray::_call", "ray::MapWorker", "RayTrainWorker", "ray::")
NUM_DOCS, NUM_QUERIES = 1600, 4000


@dataclass
class Report:
    """The result of one job.

    Attributes:
        kills: Kind of each kill, and the units finished at that time.
        resumes: Number of restarts.
        repeated: Finished units that were repeated.
    """

    job: str
    units: int
    undisturbed_s: float
    disturbed_s: float = 0.0
    kills: list[tuple[str, int]] = field(default_factory=list)
    resumes: int = 0
    repeated: int = 0
    equal: bool = False


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.chaos", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", nargs="+", default=list(KILLS), choices=list(KILLS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"))
    options = parser.parse_args()
    report = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    report |= {"machine": machine(), "seed": options.seed, "num_docs": NUM_DOCS}
    done = {run["job"]: run for run in report.get("runs", [])}
    options.work.mkdir(parents=True, exist_ok=True)
    make_inputs(options.work.resolve(), NUM_DOCS, NUM_QUERIES)
    with machines(2, **NOTICED_SOON) as cluster:
        for name in options.jobs:
            found = disturb(cluster, options.work.resolve(), name, KILLS[name], random.Random(f"{options.seed} {name}"))
            done[name] = asdict(found)
            print(json.dumps(done[name]), flush=True)
            report["runs"] = [done[each] for each in KILLS if each in done]
            OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
            OUTPUT.with_suffix(".md").write_text(table(report))
    print(table(report), file=sys.stderr)
    if not all(run["equal"] for run in report["runs"]):
        sys.exit("an output differs from that of the undisturbed run")


def disturb(cluster: Machines, made: Path, name: str, kinds: list[str], rng: random.Random) -> Report:
    """Run a job undisturbed, and again with kills, and compare the outputs.

    Args:
        cluster: Cluster with at least two machines.
        made: Folder of `make_inputs`.
        name: Verb of the job.
        kinds: Kinds of the kills in order: driver, worker or machine.
        rng: Chooses the moments and victims of the kills.
    """
    job = jobs(made)[name]
    with tempfile.TemporaryDirectory(dir=made, ignore_cleanup_errors=True) as folder:
        undisturbed, disturbed = Path(folder) / "undisturbed", Path(folder) / "disturbed"
        for output in (undisturbed, disturbed):
            shutil.copytree(job.start_from, output) if job.start_from else output.mkdir()
        log = Path(folder) / "log"
        report = _undisturbed(cluster, job, undisturbed, log)
        log.write_text("")
        start = time.monotonic()
        _disturbed(cluster, job, disturbed, log, report, kinds, rng)
        report.disturbed_s = round(time.monotonic() - start, 1)
        if name == "train":  # it overwrites its files, so the log tells which steps were repeated
            report.repeated = steps_repeated(log.read_text())
        report.equal = tree_digest(undisturbed) == tree_digest(disturbed)
    return report


def _undisturbed(cluster: Machines, job: Job, output: Path, log: Path) -> Report:
    first, most = job.num_done(output, ""), 0
    start = time.monotonic()
    process = _start(cluster, job, output, log)
    while process.poll() is None:
        most = max(most, job.num_done(output, log.read_text()))
        time.sleep(0.02)
    _check(process, log)
    return Report(job.verb, most - first, round(time.monotonic() - start, 1))


def _disturbed(cluster: Machines, job: Job, output: Path, log: Path, report: Report, kinds: list[str], rng: random.Random) -> None:
    """Make each kill after a random number of finished units, in ascending order, and let the job finish."""
    first = job.num_done(output, "")
    points = sorted(rng.sample(range(1, report.units), len(kinds)))
    left = list(zip(kinds, points, strict=True))
    before: dict[Path, int] = {}
    process = _start(cluster, job, output, log)
    while True:
        ended = process.poll() is not None
        now = finished_files(output)
        report.repeated += sum(now[path] > when for path, when in before.items() if path in now and _is_work(path))
        before.update(now)
        if ended:
            break
        done = job.num_done(output, log.read_text()) - first
        if left and done >= left[0][1] and _kill(cluster, process, left[0][0], rng):
            report.kills.append((left.pop(0)[0], done))
            if process.poll() is not None:
                process = _start(cluster, job, output, log)
                report.resumes += 1
        time.sleep(0.02)
    _check(process, log)


def _is_work(path: Path) -> bool:
    """Return whether a file is the result of a finished unit; other files hold the job's state."""
    return path.suffix in (".parquet", ".npy", ".json", ".arrow") and path.name not in ("manifest.json", "provenance.json", "config.json")


def _kill(cluster: Machines, process: subprocess.Popen, kind: str, rng: random.Random) -> bool:
    """Kill something of this kind; return whether there was any."""
    if kind == "driver":
        process.kill()
        process.communicate()
        return True
    if kind == "machine":
        busy = [found for sign in WORKERS[:3] for found, _ in cluster.running(sign)] or cluster.workers
        cluster.lose(rng.choice(sorted(set(busy), key=lambda found: found.node_id)))
        cluster.add()
        return True
    for sign in WORKERS:
        if found := [pid for _, pid in cluster.running(sign)]:
            subprocess.run(["kill", "-KILL", str(rng.choice(sorted(found)))], check=False)
            return True
    return False


def _start(cluster: Machines, job: Job, output: Path, log: Path) -> subprocess.Popen:
    with open(log, "a") as stderr:
        return cluster.start(job.verb, *job.words(output), stderr=stderr)


def _check(process: subprocess.Popen, log: Path) -> None:
    process.communicate()
    if process.returncode:
        sys.exit(f"a job ended with status {process.returncode}:\n{log.read_text()[-3000:]}")


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    runs = report["runs"]
    kills, resumes = sum(len(run["kills"]) for run in runs), sum(run["resumes"] for run in runs)
    repeated, units = sum(run["repeated"] for run in runs), sum(run["units"] for run in runs)
    lines = [
        f"{kills} kills, {resumes} restarts, {repeated} of {units} finished units repeated "
        f"({100 * repeated / units:.1f}%), outputs equal byte for byte: {'all' if all(run['equal'] for run in runs) else 'NOT all'}. "
        f"A head and two machines of one CPU on {report['machine']['cpu']}, {report['machine']['cores']} cores, shared with other "
        "work. A unit is a file that the job finishes, or a step of training.",
        "",
        "| job | units | killed (finished units at that time) | restarts | finished units repeated | equal | seconds | undisturbed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        killed = ", ".join(f"{kind} ({done})" for kind, done in run["kills"])
        lines.append(
            f"| {run['job']} | {run['units']} | {killed} | {run['resumes']} | {run['repeated']} "
            f"| {'yes' if run['equal'] else 'NO'} | {run['disturbed_s']:g} | {run['undisturbed_s']:g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
