"""Time from a command to its result: help, search, encode, build, update, compact and serve, cold and warm.

    python -m bench.scale.starting --index INDEX --dataset DATASET [--tree before=DIR ...] [--work runs/starting]

A row is one command, in a process of its own, in this source tree (`after`) and in every other tree of --tree. Cold: the kernel's cache is
emptied of the files of all packages, of the tree and of the index first; files that another process maps stay. Warm: the median of the runs
that follow. CPU seconds are those of the process and, for a service, of all processes that it started. A service is measured until it
prints its address.

Imports are divided by package with `python -X importtime`: a module's own time counts for its package. The rest of the CPU seconds is the
work.
"""

import argparse
import gzip
import json
import os
import re
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from bench.machine import machine

QUERY = "how do vaccines protect against infection"
PACKAGES = (
    "torch",
    "transformers",
    "ray",
    "numpy",
    "scipy",
    "pyarrow",
    "pandas",
    "sympy",
    "fastapi",
    "pydantic",
    "faiss",
    "duckdb",
    "ray_lir",
    "jobs",
)
"""Packages with a column of their own."""
IMPORT_LINE = re.compile(r"import time:\s+(\d+) \|\s+\d+ \|\s+(\S+)")
DOCS = (50, 4000)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.starting", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--index", type=Path, required=True)
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--tree", action="append", default=[], help="name=DIR of another checkout")
    parser.add_argument("--only", nargs="*", help="names of rows; the others are kept as they are")
    parser.add_argument("--runs", type=int, default=3, help="warm runs")
    parser.add_argument("--work", type=Path, default=Path("runs/starting"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/starting.json"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    trees = {name: Path(place).resolve() for name, place in (each.split("=", 1) for each in options.tree)} | {"after": Path.cwd()}
    report: dict[str, Any] = json.loads(options.output.read_text()) if options.output.exists() else {"rows": {}}
    report["machine"] = machine()
    for name, tree in trees.items():
        for row, words in commands(options.work.resolve() / name, options.index.resolve(), options.dataset.resolve()).items():
            if options.only is None or row in options.only:
                result = measure(row, words, tree, options.work.resolve() / name, options.index.resolve(), options.runs)
                report["rows"].setdefault(row, {})[name] = result
                print(row, name, json.dumps(result), flush=True)
                options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(report))


def commands(work: Path, index: Path, dataset: Path) -> dict[str, list[str]]:
    """Return the words after `python -m` of each row. A folder named OUT is new in every run.

    Args:
        work: Folder for outputs.
        index: Index that is searched and served.
        dataset: Collection in the BEIR layout.
    """
    corpora = {count: head(dataset, count, work.parent / f"{count}.jsonl") for count in DOCS}
    return {
        "help": ["jobs", "--help"],
        "search": ["jobs", "search", "--index", str(index), QUERY],
        **{f"encode {count}": ["jobs.encode", "--corpus", str(file), "--output", f"{work}/OUT"] for count, file in corpora.items()},
        "build_index 50": ["jobs.build_index", "--embeddings", f"{work}/embeddings", "--output", f"{work}/OUT"],
        "update 50": ["jobs.update", "--index", f"{work}/index", "--add", str(corpora[50])],
        "serve": ["serving", "--index", str(index)],
        "serve on Ray": ["serving", "--index", str(index), "--where", "ray"],
    }


def head(dataset: Path, count: int, file: Path) -> Path:
    """Write the first documents of a collection to a file, and return the file.

    Args:
        dataset: Collection in the BEIR layout.
        count: Number of documents.
        file: The file.
    """
    with gzip.open(dataset / "corpus.jsonl.gz", "rb") as lines:
        file.write_bytes(b"".join(islice(lines, count)))
    return file


def measure(row: str, words: list[str], tree: Path, work: Path, index: Path, runs: int) -> dict[str, Any]:
    """Return seconds of a cold run and of warm runs, CPU seconds, and CPU seconds of imports by package.

    Args:
        row: Name of the row.
        words: The command after `python -m`.
        tree: Source tree to run in.
        work: Folder for outputs.
        index: Index that is searched.
        runs: Number of warm runs.
    """
    if row == "serve on Ray" and "where:" not in (tree / "serving" / "options.py").read_text():
        return {}
    work.mkdir(parents=True, exist_ok=True)
    if row in ("build_index 50", "update 50"):
        prepare(tree, work)
    evict([Path(sysconfig.get_path("purelib")), *(Path(each) for each in sys.path if each.endswith("site-packages")), tree, index])
    found = [once(words, tree, work) for _ in range(1 + runs)]
    warm = found[1:]
    return {
        "cold_s": found[0]["seconds"],
        "warm_s": statistics.median(each["seconds"] for each in warm),
        "cpu_s": statistics.median(each["cpu"] for each in warm),
        **({"stages": warm[-1]["stages"]} if warm[-1]["stages"] else {}),
        "imports_s": imports(words, tree, work) if words[0] != "serving" else {},
    }


def prepare(tree: Path, work: Path) -> None:
    """Make the embeddings and the index that build_index and update need."""
    if not (work / "embeddings").exists():
        run = [sys.executable, "-m", "jobs.encode", "--corpus", str(work.parent / "50.jsonl"), "--output", str(work / "embeddings")]
        subprocess.run(run, cwd=tree, check=True, env=environment(), capture_output=True)
    if not (work / "index").exists():
        run = [sys.executable, "-m", "jobs.build_index", "--embeddings", str(work / "embeddings"), "--output", str(work / "index")]
        subprocess.run(run, cwd=tree, check=True, env=environment(), capture_output=True)
    if not (work / "index-copy").exists():
        shutil.copytree(work / "index", work / "index-copy")


def once(words: Sequence[str], tree: Path, work: Path) -> dict[str, Any]:
    """Run a command once. Return its seconds, its CPU seconds, and the seconds of its stages from its log.

    Args:
        words: The command after `python -m`.
        tree: Source tree to run in.
        work: Folder for outputs.
    """
    shutil.rmtree(work / "OUT", ignore_errors=True)
    if words[0] == "jobs.update":
        shutil.rmtree(work / "index")
        shutil.copytree(work / "index-copy", work / "index")
    if words[0] == "serving":
        return serve(words, tree)
    before, start = children_cpu(), time.perf_counter()
    done = subprocess.run([sys.executable, "-m", *words], cwd=tree, env=environment(), capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(done.stderr)
    stages = {name: float(value) for name, value in re.findall(r"\d\d (\w[\w-]*): .*seconds=([\d.]+)", done.stderr)}
    return {"seconds": round(seconds, 2), "cpu": round(children_cpu() - before, 2), "stages": stages}


def serve(words: Sequence[str], tree: Path) -> dict[str, Any]:
    """Start a service, and stop it as soon as it prints its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    start = time.perf_counter()
    command = [sys.executable, "-m", *words, "--port", port]
    process = subprocess.Popen(command, cwd=tree, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    line = process.stdout.readline()
    seconds, cpu = time.perf_counter() - start, tree_cpu(process.pid)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    if "is ready" not in line:
        sys.exit("the service did not start")
    return {"seconds": round(seconds, 2), "cpu": round(cpu, 2), "stages": {}}


def environment() -> dict[str, str]:
    """Return the environment of a command: no cluster is named."""
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {"RAY_USAGE_STATS_ENABLED": "0"}


def children_cpu() -> float:
    """Return the CPU seconds of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def tree_cpu(pid: int) -> float:
    """Return the CPU seconds of a process and its running descendants."""
    total = 0.0
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += sum(tree_cpu(int(child)) for child in (task / "children").read_text().split())
    return total


def imports(words: Sequence[str], tree: Path, work: Path) -> dict[str, float]:
    """Return the seconds of importing each package in the command's own process, largest first.

    Args:
        words: The command after `python -m`.
        tree: Source tree to run in.
        work: Folder for outputs.
    """
    shutil.rmtree(work / "OUT", ignore_errors=True)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *words], cwd=tree, env=environment(), capture_output=True, text=True, check=True
    )
    spent: Counter[str] = Counter()
    for microseconds, module in IMPORT_LINE.findall(done.stderr):
        package = module.partition(".")[0]
        spent[package if package in PACKAGES else "other"] += int(microseconds)
    return {name: round(value / 1e6, 3) for name, value in spent.most_common() if value > 5000}


def evict(folders: Sequence[Path]) -> None:
    """Empty the kernel's cache of the files of these folders."""
    for folder in dict.fromkeys(folders):
        for path in folder.rglob("*"):
            with suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    file = os.open(path, os.O_RDONLY)
                    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
                    os.close(file)


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    where = report["machine"]
    lines = [
        "# Starting",
        "",
        f"{where['cpu']}, {where['cores']} cores. Seconds from a command to its end or, for a service, to its address.",
        *(["", report["note"]] if "note" in report else []),
        "",
        "| command | tree | cold s | warm s | CPU s | imports, seconds of one run |",
        "|---|---|---|---|---|---|",
    ]
    for row, trees in report["rows"].items():
        for name, found in trees.items():
            if found:
                parts = ", ".join(f"{package} {seconds:.2f}" for package, seconds in list(found["imports_s"].items())[:6])
                seconds = " | ".join("" if found[key] is None else f"{found[key]:.2f}" for key in ("cold_s", "warm_s", "cpu_s"))
                lines.append(f"| {row} | {name} | {seconds} | {parts} |")
    stages = [(row, name, found["stages"]) for row, trees in report["rows"].items() for name, found in trees.items() if found.get("stages")]
    lines += ["", "Seconds of the stages that the jobs log:", "", "| command | tree | stages |", "|---|---|---|"]
    lines += [f"| {row} | {name} | {', '.join(f'{stage} {value:g}' for stage, value in each.items())} |" for row, name, each in stages]
    if load := report.get("service_under_load"):
        lines += ["", f"Answers a second, p50 and p95 in ms of one process and of Ray Serve (`--where ray`): {load['how']}."]
        lines += ["", "| clients | one process | Ray Serve |", "|---|---|---|"]
        for clients, single in load["one_process"].items():
            cells = (f"{rate:g}, p50 {p50:g}, p95 {p95:g}" for rate, p50, p95 in (single, load["ray_serve"][clients]))
            lines.append(f"| {clients} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
