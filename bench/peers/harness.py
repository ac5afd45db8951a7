"""Measuring code of all peers: runs one build or one search setting in this process and reports on it.

    python -m bench.peers.SYSTEM build  INPUT INDEX RESULT.json --threads N --options JSON
    python -m bench.peers.SYSTEM search INPUT INDEX RESULT.json --threads N --options JSON --setting NAME
                                         --queries N --batch N --k N

A system is two functions. One process measures one build or setting, so the memory is attributable. Every system is
measured by the same code.
"""

import argparse
import json
import os
import resource
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import inputs

Search = Callable[[Sequence[np.ndarray], int], Sequence[Sequence[int]]]
"""Function from queries, each [tokens, D] float32, and k to the numbers of the best documents of each query, best first."""
Build = Callable[..., Callable[[], object]]
"""Function from input folder, index folder, threads and **options to the timed function. It loads the input before it returns."""
Open = Callable[..., Search]
"""Function from input folder, index folder, threads and **options to a search function."""

WARM_UP = 3
"""Queries searched before timing starts."""


def main(build: Build, open_index: Open) -> None:
    """Measure what the command line names, and write the result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["build", "search"])
    parser.add_argument("input", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--options", type=json.loads, default={})
    parser.add_argument("--setting", default="", help="what the report calls these options")
    parser.add_argument("--queries", type=int, default=300, help="searched one at a time; 0: only the batch is timed")
    parser.add_argument("--batch", type=int, default=300, help="queries searched in one call; 0: none")
    parser.add_argument("--k", type=int, default=100)
    arguments = parser.parse_args()
    pin(arguments.threads)
    if arguments.what == "build":
        result = measure_build(build, arguments)
    else:
        result, numbers = measure_search(open_index, arguments)
        np.save(arguments.result.with_suffix(".npy"), numbers)
    partial = arguments.result.with_suffix(".part")
    partial.write_text(json.dumps({"setting": arguments.setting, "options": arguments.options, **result}, indent=1) + "\n")
    partial.replace(arguments.result)


def pin(threads: int) -> None:
    """Pin this process to one core for each allowed thread, because some libraries start more threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measure_build(build: Build, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return time, processor time, memory and size of a build; the index of an interrupted build is removed first."""
    shutil.rmtree(arguments.index, ignore_errors=True)
    arguments.index.parent.mkdir(parents=True, exist_ok=True)
    run = build(arguments.input, arguments.index, arguments.threads, **arguments.options)
    held, start, cpu_start = memory_bytes("VmRSS"), time.perf_counter(), cpu_seconds()
    run()
    return {
        "threads": arguments.threads,
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(cpu_seconds() - cpu_start, 2),
        "peak_bytes": memory_bytes("VmHWM"),
        "held_bytes": held,
        "disk_bytes": disk_bytes(arguments.index),
    }


def measure_search(open_index: Open, arguments: argparse.Namespace) -> tuple[dict[str, Any], np.ndarray]:
    """Return latency of single queries, throughput of a batch, memory, and the answers to single queries, [Q, k] (-1: none)."""
    texts = inputs.load(arguments.input, "queries")
    queries = [texts[number].astype(np.float32) for number in range(len(texts))]
    before, start = memory_bytes("VmRSS"), time.perf_counter()
    options = dict(arguments.options)
    k = options.pop("k", arguments.k)
    search = open_index(arguments.input, arguments.index, arguments.threads, **options)
    opened = time.perf_counter() - start
    search(queries[:WARM_UP], k)
    result: dict[str, Any] = {"threads": arguments.threads, "k": k, "open_seconds": round(opened, 3)}
    answers, wall, cpu = [], [], []
    for query in queries[: arguments.queries]:
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        (answer,) = search([query], k)
        wall.append(time.perf_counter() - wall_start)
        cpu.append(time.process_time() - cpu_start)
        answers.append(answer)
    if wall:
        result.update(queries=len(wall), latency_ms=percentiles_ms(wall), cpu_ms=percentiles_ms(cpu))
    if arguments.batch:
        batch = [queries[number % len(queries)] for number in range(arguments.batch)]
        wall_start, cpu_start = time.perf_counter(), time.process_time()
        search(batch, k)
        seconds, cpu_used = time.perf_counter() - wall_start, time.process_time() - cpu_start
        result["batch"] = {"size": arguments.batch, "seconds": round(seconds, 6), "cpu_seconds": round(cpu_used, 6)}
    result["memory_bytes"] = memory_bytes("VmHWM") - before
    return result, table(answers, k)


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Return mean, p50 and p95 in milliseconds."""
    values = np.asarray(seconds) * 1e3
    p50, p95 = np.percentile(values, [50, 95])
    return {"mean": round(float(values.mean()), 3), "p50": round(float(p50), 3), "p95": round(float(p95), 3)}


def table(answers: Sequence[Sequence[int]], k: int) -> np.ndarray:
    """Return document numbers [Q, k] int64, -1 after the end of a shorter answer."""
    numbers = np.full((len(answers), k), -1, np.int64)
    for row, answer in zip(numbers, answers, strict=True):
        row[: len(answer)] = answer[:k]
    return numbers


def best(scores: np.ndarray, k: int) -> np.ndarray:
    """Return the numbers of the k documents of highest score, best first, ties to the lower number; for systems that only score.

    Args:
        scores: [N] scores of all documents.
        k: Documents to return.
    """
    return np.argsort(-scores, kind="stable")[:k]


def cpu_seconds() -> float:
    """Return the processor seconds of this process and of its finished children."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def memory_bytes(field: str) -> int:
    """Return VmRSS (now) or VmHWM (peak) of this process. ru_maxrss would include the parent process."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def disk_bytes(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
