"""Compare this project with its peers: the same embeddings, machine, threads and measuring code.

    python -m bench.compare --dataset DATASET_FOLDER [--sizes small big] [--systems ray_lir fast-plaid ...] [--queries 300]
                            [--batch 300] [--threads 1 2] [--assembled] [--work runs/bench] [--output bench/results]
                            [--report] [--reference] [--name compare]

Every build and every setting is measured in its own process, in the environment of its system. The environment is created on
first use. Each measurement is a JSON file in the work folder and is not repeated, so a run can be split or killed at any time.
Remove a JSON file to measure again. Each run ends by writing the table, the plot and compare.json from all measurements.
The report names every system that cannot be installed or fails, with the reason. See bench/README.md.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.comparison.collection import SIZES, open_collection
from bench.comparison.environments import NotInstallable, python_of
from bench.comparison.report import OURS, REFERENCE, write_report
from bench.comparison.systems import LOWER_BOUND, SYSTEMS, System, slug

K = 100
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, help="folder in the BEIR layout; needed until the sizes are made")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["small", "big"])
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS), metavar="SYSTEM", help=", ".join(SYSTEMS))
    parser.add_argument("--settings", nargs="+", help="only the settings of these names")
    parser.add_argument("--queries", type=int, default=300, help="searched one at a time")
    parser.add_argument("--batch", type=int, default=300, help="searched in one call; 0: no throughput")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of the batches; single queries have one")
    parser.add_argument("--build-threads", type=int, default=os.cpu_count())
    parser.add_argument("--assembled", action="store_true", help="peers' indexes on ray_lir's centroids and codes, where that can be done")
    parser.add_argument(
        "--lower-bound", type=float, metavar="SECONDS", help="only the builds, each for so long at most: what they take at least"
    )
    parser.add_argument("--timeout", type=float, help="seconds for one build or setting, at most")
    parser.add_argument(
        "--no-recall", action="store_true", help="do without exact answers where there are none yet; those of huge take long"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    parser.add_argument(
        "--reference", action="store_true", help="after each setting of a peer, measure ray_lir's default again, for ratios of one run"
    )
    parser.add_argument("--name", default="compare", help="file name of the report, without its suffix")
    parser.add_argument("--report", action="store_true", help="measure nothing; write the report from what is there")
    arguments = parser.parse_args()
    for size in arguments.sizes:
        if not arguments.report:
            collection = open_collection(arguments.dataset, size, arguments.work)
            if not arguments.no_recall:
                collection.oracle()
            for name in arguments.systems:
                measure_system(name, SYSTEMS[name], arguments.work / size, arguments)
    write_report(arguments.work, arguments.output, arguments.name)


def measure_system(name: str, system: System, folder: Path, arguments: argparse.Namespace) -> None:
    """Measure the build and all settings of one system at one size; existing results are kept.

    Args:
        name: Name of the system in the report.
        system: How the system is built and searched.
        folder: Folder of the size, with the input of every system.
        arguments: Parsed command line.
    """
    results = folder / slug(name)
    results.mkdir(parents=True, exist_ok=True)
    try:
        python = python_of(system.environment, arguments.work, system.base) if system.environment else Path(sys.executable)
    except NotInstallable as error:
        keep(results / "build.json", {"error": str(error)})
        return
    command = [str(python), "-m", f"bench.peers.{system.module}"]
    where = [str(folder), str(results / "index")]
    built, flags = results / "build.json", {"--options": json.dumps(system.index)}
    build = [*command, "build"]
    if arguments.lower_bound:
        bound = results / LOWER_BOUND
        measure(bound, [*build, str(folder), str(results / "index-own"), str(bound)], arguments.build_threads, flags, arguments.lower_bound)
        shutil.rmtree(results / "index-own", ignore_errors=True)
        return
    if system.assembled and arguments.assembled:
        build, flags = [sys.executable, "-m", "bench.peers.assembled", system.module], {}
    if not measure(built, [*build, *where, str(built)], arguments.build_threads, flags, arguments.timeout):
        return
    for setting, options in system.settings.items():
        if arguments.settings and setting not in arguments.settings:
            continue
        for threads in sorted({1, *(arguments.threads if arguments.batch else ())}):
            path = results / f"{slug(setting)}-t{threads}-q{arguments.queries}-b{arguments.batch}.json"
            flags = {
                "--setting": setting,
                "--options": json.dumps(options),
                "--queries": arguments.queries if threads == 1 else 0,
                "--batch": arguments.batch if threads in arguments.threads else 0,
                "--k": K,
            }
            measure(path, [*command, "search", *where, str(path)], threads, flags, arguments.timeout)
            if arguments.reference and name != OURS and threads == 1:
                measure_reference(folder, results / REFERENCE / path.name, flags, options.get("k", K), arguments.timeout)


def measure_reference(folder: Path, path: Path, flags: dict[str, Any], k: int, timeout: float | None) -> None:
    """Measure single queries with the default of ray_lir, in the run of a peer's setting. The index of ray_lir must exist.

    Args:
        folder: Folder of the size.
        path: JSON file of the result.
        flags: Flags of the peer's search.
        k: Documents to return.
        timeout: Seconds after which the process is ended. None: no limit.
    """
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"bench.peers.{SYSTEMS[OURS].module}", "search", str(folder), str(folder / OURS / "index"), str(path)]
    measure(path, command, 1, {**flags, "--setting": "auto", "--options": json.dumps({"k": k}), "--batch": 0}, timeout)


def measure(path: Path, command: list[str], threads: int, flags: dict[str, Any], timeout: float | None) -> bool:
    """Run one measurement unless its JSON file exists. A failure is stored too, and the next run tries again.

    Args:
        path: JSON file of the result.
        command: Command that measures.
        threads: Threads that the process may use.
        flags: Further flags of the command, with their values.
        timeout: Seconds after which the process is ended. None: no limit.

    Returns:
        Whether there is a result.
    """
    if path.exists() and "error" not in json.loads(path.read_text()):
        return True
    print(f"{path.parent.parent.name} {path.parent.name} {path.stem}", file=sys.stderr, flush=True)
    words = [*command, "--threads", str(threads), *(str(word) for pair in flags.items() for word in pair)]
    environment = {**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads))}
    used = children_seconds()
    try:
        done = subprocess.run(words, check=False, stdout=sys.stderr, stderr=subprocess.PIPE, text=True, env=environment, timeout=timeout)
    except subprocess.TimeoutExpired:
        error = f"not done after {timeout:g} seconds, {children_seconds() - used:.0f} of a processor's"
    else:
        if not done.returncode:
            return True
        error = f"ended with {done.returncode}: {(done.stderr.strip().splitlines() or ['nothing said'])[-1][:300]}"
    error = error.replace(f"{Path.cwd()}/", "")
    print(f"  {error}", file=sys.stderr, flush=True)
    keep(path, {"setting": flags.get("--setting"), "error": error})
    return False


def children_seconds() -> float:
    """Return the processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def keep(path: Path, result: dict[str, Any]) -> None:
    """Write the reason for a missing measurement."""
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
