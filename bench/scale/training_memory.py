"""Memory of jobs.train by number of triples: the process that reads the data, and each worker that trains on it.

    python -m bench.scale.training_memory [--triples 1000000 3000000 10000000] [--passages 8800000] [--steps 4]
                                          [--work runs/training_memory] [--output bench/results]

The triples are synthetic: texts of MS MARCO's lengths (queries of 35 characters, passages of 340), a different positive passage
for each query while there are enough, and a random negative. Separate processes measure three things for each size:

* reading: `cached_training_data`, which writes the Arrow files: seconds, and the peak of the process's memory;
* data: two processes map the same files and draw batches at the same time: the growth of a process's private memory;
* training: jobs.train with two workers and the default checkpoint: each worker's private memory, model and optimizer included.

Private memory is Private_Dirty of /proc/PID/smaps_rollup: pages that no other process shares and the system cannot drop. Pages of the
mapped files are clean: the system drops them when memory is short, and they exist once for all processes.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import Any

from bench.machine import machine

QUERY_CHARACTERS, PASSAGE_CHARACTERS = 35, 340
BATCH, BATCHES = 32, 1000
MEASURED = ("Private_Dirty", "Private_Clean", "Shared_Clean", "Rss")
SAMPLE_S = 0.5
TRAIN_BATCH, TRAIN_LENGTH = 8, 32
"""Small batches of short texts, so that activations do not hide the memory of the data."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.training_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--triples", type=int, nargs="+", default=[1_000_000, 3_000_000, 10_000_000])
    parser.add_argument("--passages", type=int, default=8_800_000)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--work", type=Path, default=Path("runs/training_memory"))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    parser.add_argument("--role", choices=["main", "read", "draw"], default="main", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role == "read":
        print(json.dumps(read(options.work / "triples.jsonl", options.work / "cache")))
    elif options.role == "draw":
        print(json.dumps(draw(options.work / "triples.jsonl", options.work / "cache")))
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        for count in options.triples:
            result = options.work / f"result-{count}.json"
            if not result.exists():
                result.write_text(json.dumps(_measure(count, options.passages, options.steps, options.work)) + "\n")
        rows = [json.loads((options.work / f"result-{count}.json").read_text()) for count in options.triples]
        report = {"machine": machine(), "passages": options.passages, "batch": BATCH, "sizes": rows}
        (options.output / "training_memory.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.output / "training_memory.md").write_text(markdown(report))
        print(markdown(report))


def _measure(count: int, passages: int, steps: int, work: Path) -> dict[str, Any]:
    """Measure one number of triples; the files are removed afterwards."""
    triples = work / "triples.jsonl"
    _make_triples(triples, count, passages)
    row: dict[str, Any] = {"triples": count, "source_mb": _mb(triples.stat().st_size)}
    try:
        row["reading"] = finish(_start_role("read", work))
        row["arrow_mb"] = _mb(sum(path.stat().st_size for path in (work / "cache").rglob("*.arrow")))
        row["data"] = [finish(process) for process in [_start_role("draw", work) for _ in range(2)]]
        row["training"] = _train(triples, work, steps)
    finally:
        triples.unlink()
        shutil.rmtree(work / "cache", ignore_errors=True)
        shutil.rmtree(work / "trained", ignore_errors=True)
    return row


def _make_triples(path: Path, count: int, passages: int) -> None:
    """Write triples with distinct queries. The positive of triple n is passage n modulo `passages`; its negative is random."""
    choose = random.Random(0)
    letters = "".join(choose.choices("etaoinshrdlu    ", k=1 << 20))

    def text(kind: str, number: int, length: int) -> str:
        start = number * 7919 % (len(letters) - length)
        return f"{kind} {number} {letters[start : start + length]}"[:length]

    with open(path, "w") as file:
        for number in range(count):
            query = text("query", number, QUERY_CHARACTERS)
            positive = text("passage", number % passages, PASSAGE_CHARACTERS)
            negative = text("passage", choose.randrange(passages), PASSAGE_CHARACTERS)
            file.write(f'{{"query":"{query}","positive":"{positive}","negative":"{negative}"}}\n')


def read(triples: Path, cache: Path) -> dict[str, Any]:
    """Write the Arrow files in this process, and return time and memory."""
    from ray_lir.base.config import TrainingSource
    from ray_lir.training.data_cache import cached_training_data

    before, start = memory("self")["Private_Dirty"], time.perf_counter()
    with cached_training_data(TrainingSource(examples=str(triples)), str(cache)) as cached:
        seconds = time.perf_counter() - start
        counts = {"queries": cached.manifest.queries, "documents": cached.manifest.documents}
    return counts | {"seconds": round(seconds, 1), "before_mb": _mb(before << 10), "after_mb": _mb(memory("self")["Private_Dirty"] << 10)}


def draw(triples: Path, cache: Path) -> dict[str, Any]:
    """Map the data and draw batches with their texts, like a worker; return the growth of private memory."""
    from ray_lir.base.config import TrainingSource
    from ray_lir.training.data import batches
    from ray_lir.training.data_cache import cached_training_data

    before = memory("self")
    with cached_training_data(TrainingSource(examples=str(triples)), str(cache)) as cached:
        data = cached.open()
    start = time.perf_counter()
    stream = batches(data, BATCH, 0, 1)  # kept until the end, because it holds the order of the epoch
    for batch in islice(stream, BATCHES):
        texts = [data.queries[query] for query in batch.queries] + [data.documents[document] for document in batch.documents.ravel()]
        assert len(texts) == 3 * BATCH
    milliseconds = 1000 * (time.perf_counter() - start) / BATCHES
    after = memory("self")
    return {f"{name}_mb": _mb((after[name] - before[name]) << 10) for name in MEASURED} | {"batch_ms": round(milliseconds, 2)}


def _train(triples: Path, work: Path, steps: int) -> dict[str, Any]:
    """Run jobs.train with two workers and return the largest memory of each."""
    command = [sys.executable, "-m", "jobs.train", "--examples", str(triples), "--output", str(work / "trained")]
    command += ["--data_cache", str(work / "cache"), "--num_workers", "2", "--cpus_per_worker", "1", "--batch_size", str(TRAIN_BATCH)]
    command += [
        "--num_negatives",
        "1",
        "--max_steps",
        str(steps),
        "--encoder.device",
        "cpu",
        "--encoder.document_length",
        str(TRAIN_LENGTH),
    ]
    start = time.perf_counter()
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr)
    most: dict[int, dict[str, int]] = {}
    driver = 0
    while job.poll() is None:
        driver = max(driver, memory(str(job.pid)).get("Private_Dirty", 0))
        for pid in workers(job.pid):
            found = memory(str(pid))
            if found.get("Private_Dirty", 0) > most.get(pid, {}).get("Private_Dirty", 0):
                most[pid] = found
        time.sleep(SAMPLE_S)
    if job.returncode:
        sys.exit(f"jobs.train ended with status {job.returncode}")
    seen = sorted(most.values(), key=lambda found: -found["Private_Dirty"])[:2]
    rows = [{f"{name}_mb": _mb(found[name] << 10) for name in MEASURED} for found in seen]
    return {"workers": rows, "driver_mb": _mb(driver << 10), "seconds": round(time.perf_counter() - start, 1), "steps": steps}


def workers(job: int) -> list[int]:
    """Process ids of Ray Train's workers that descend from a job, which started Ray itself."""
    parents: dict[int, int] = {}
    names: dict[int, bytes] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int(re.search(r"PPid:\s+(\d+)", (path / "status").read_text())[1])  # type: ignore[index]
            names[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    found = []
    for pid, name in names.items():
        ancestor = pid
        while ancestor not in (0, job):
            ancestor = parents.get(ancestor, 0)
        if ancestor == job and b"RayTrainWorker" in name:
            found.append(pid)
    return found


def memory(pid: str) -> dict[str, int]:
    """Return the kilobytes of a process by kind; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    return {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}


def _start_role(role: str, work: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "bench.scale.training_memory", "--role", role, "--work", str(work)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> dict[str, Any]:
    """Wait for a process; return its result, with the peak of its resident memory that the system reports."""
    assert process.stdout is not None
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"a measuring process ended with status {status}")
    return json.loads(out.splitlines()[-1]) | {"peak_rss_mb": round(usage.ru_maxrss / 1024)}


def _mb(num_bytes: int) -> int:
    return round(num_bytes / 2**20)


def markdown(report: dict[str, Any]) -> str:
    """Return the tables of a report."""
    lines = [
        f"Synthetic triples over up to {report['passages']:,} passages, batches of {report['batch']}. {report['machine']['cpu']}, "
        f"{report['machine']['cores']} cores. Megabytes are 2^20 bytes.",
        "",
        "| triples | passages | JSONL MB | Arrow MB | seconds to read | peak RSS of the reader MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["sizes"]:
        reading = row["reading"]
        lines.append(
            f"| {row['triples']:,} | {reading['documents']:,} | {row['source_mb']:,} | {row['arrow_mb']:,} | {reading['seconds']:,} "
            f"| {reading['peak_rss_mb']:,} |"
        )
    lines += [
        "",
        f"Memory that the data adds to each of two processes that draw {BATCHES:,} batches without a model. Then the memory of a worker of "
        "jobs.train",
        f"({TRAIN_BATCH} queries a batch, texts of {TRAIN_LENGTH} tokens, two workers):",
        "",
        "| triples | data: private MB | data: ms a batch | worker: private MB | worker: clean pages of files MB | driver: private MB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["sizes"]:
        data, training = row["data"], row["training"]
        private = max(each["Private_Dirty_mb"] for each in data)
        slowest = max(each["batch_ms"] for each in data)
        worker = max(training["workers"], key=lambda each: each["Private_Dirty_mb"])
        lines.append(
            f"| {row['triples']:,} | {private:,} | {slowest} | {worker['Private_Dirty_mb']:,} "
            f"| {worker['Private_Clean_mb'] + worker['Shared_Clean_mb']:,} | {training['driver_mb']:,} |"
        )
    return "\n".join([*lines, *(["", report["note"]] if "note" in report else [])]) + "\n"


if __name__ == "__main__":
    main()
