"""Training throughput: against other trainers, with two Ray Train workers against one, and the cost of attention weights in encoding.

    python -m bench.models.training DATA_FOLDER [--parts peers workers attention] [--batch 16] [--steps 8] [--work runs/bench]
                             [--output bench/results]

This project, PyLate and sentence-transformers train the same checkpoint on one batch of squad pairs repeatedly, in float32 and in bfloat16,
each in its own process. The report has the median of the steps after warm-up. Measurements stay in the work folder and are not repeated.
Run it on idle cores.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import torch

from bench.compare import THREAD_VARIABLES
from bench.comparison.environments import THIS, python_of
from bench.comparison.systems import SYSTEMS
from bench.machine import instructions, machine
from bench.models.encoding import saved_checkpoint
from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.encoder import Encoder
from ray_lir.training.source import TrainingSource, load_training_data

LENGTH, WARM_UP = 96, 2
TURNS = 3
WORKERS = ((1, 1), (2, 1), (2, 2))
"""Number of workers, and number of batches that they share."""
PRECISIONS = ("float32", "bfloat16")
"""Precision of matrix products; weights and losses are float32. Workers and encoding use the faster one here."""
TEXTS, RUNS = 64, 5
TRAINED = ("ray_lir", "pylate", "sentence-transformers")
"""Systems in the order of the report."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.training", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of squad in the BEIR layout")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    folder = options.work / "training"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "pairs.json").exists():
        data = load_training_data(TrainingSource(dataset=str(options.data / "squad")))
        pairs = [[query, data.documents[lists[0][0]]] for query, lists in zip(data.queries, data.lists_by_query(), strict=True)]
        every = len(pairs) // max(options.batch, TEXTS)
        (folder / "pairs.json").write_text(json.dumps(pairs[::every][: max(options.batch, TEXTS)]))
    for part in options.parts:
        PARTS[part](folder, options)
    report = {"machine": machine() | {"instructions": instructions()}, "batch": options.batch, "length": LENGTH, "warm_up": WARM_UP}
    report |= {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("result-*.json"))}
    (options.output / "training.json").write_text(json.dumps(report, indent=1) + "\n")
    (options.output / "training.md").write_text(markdown(report))
    print(markdown(report))


def measure_peers(folder: Path, options: argparse.Namespace) -> None:
    """Measure each system on one and on two cores, alternately, so that other work on the machine affects both."""
    pairs = folder / f"batch-{options.batch}.json"
    pairs.write_text(json.dumps(json.loads((folder / "pairs.json").read_text())[: options.batch]))
    pythons = {
        "ray_lir": Path(sys.executable),
        "pylate": python_of("pylate", options.work, SYSTEMS["PyLate PLAID"].base),
        "sentence-transformers": python_of("trainer", options.work, THIS),
    }
    for precision, threads in product(PRECISIONS, (1, 2)):
        results = {system: folder / f"result-{system}-{precision}-{threads}.json" for system in pythons}
        if all(result.exists() for result in results.values()):
            continue
        runs: dict[str, list[dict[str, Any]]] = {system: [] for system in pythons}
        for _, (system, python) in product(range(TURNS), pythons.items()):
            measured = folder / f"{system}-{precision}-{threads}.json"
            command = [str(python), "-m", "bench.peers.training", system, str(saved_checkpoint(folder)), str(pairs), str(measured)]
            command += ["--threads", str(threads), "--steps", str(options.steps), "--length", str(LENGTH)]
            command += ["--precision", precision]
            subprocess.run(["env", *(f"{name}={threads}" for name in THREAD_VARIABLES), *command], check=True, stdout=sys.stderr)
            runs[system].append(json.loads(measured.read_text()))
        for system, result in results.items():
            keep(result, runs[system], options.batch)


def keep(result: Path, runs: list[dict[str, Any]], batch: int) -> None:
    """Write the result of several runs: median rates of the timed steps, peak memory, and the losses of the first run.

    Args:
        result: JSON file to write.
        runs: Measurements of bench.peers.training, with `steps`, `losses` and `peak_bytes`.
        batch: Examples of a step.
    """
    timed = [step for run in runs for step in run["steps"][WARM_UP - 1 :]]  # step i starts at the end of step i - 1
    seconds, cpu_seconds = (statistics.median(step[name] for step in timed) for name in ("seconds", "cpu_seconds"))
    row = {"examples_per_second": round(batch / seconds, 2), "examples_per_cpu_second": round(batch / cpu_seconds, 2), "steps": len(timed)}
    row |= {"peak_bytes": max(run["peak_bytes"] for run in runs), "losses": [round(loss, 5) for loss in runs[0]["losses"]]}
    result.write_text(json.dumps(row) + "\n")


def measure_workers(folder: Path, options: argparse.Namespace) -> None:
    """Measure jobs.train with one and with two workers of one core each: two share the batch of one, or have one each."""
    for workers, batches in WORKERS:
        batch = batches * options.batch
        examples = folder / f"examples-{batch}.jsonl"
        pairs = json.loads((folder / "pairs.json").read_text())[:batch]
        examples.write_text("".join(json.dumps({"query": query, "positive": passage}) + "\n" for query, passage in pairs))
        result, output = folder / f"result-workers-{workers}-{batch}.json", folder / f"trained-{batch}-{options.steps}-{workers}"
        if not result.exists():
            shutil.rmtree(output, ignore_errors=True)
            command = [sys.executable, "-m", "jobs.train", "--examples", str(examples), "--output", str(output)]
            command += ["--encoder.checkpoint", str(saved_checkpoint(folder)), "--encoder.device", "cpu"]
            command += ["--encoder.query_length", "32", "--encoder.document_length", str(LENGTH), "--num_workers", str(workers)]
            command += ["--cpus_per_worker", "1", "--batch_size", str(batch), "--max_steps", str(options.steps), "--temperature", "1"]
            subprocess.run(command, check=True, stdout=sys.stderr)
            curve = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
            rates = [record["examples_per_second"] for record in curve[WARM_UP:]]
            row = {"examples_per_second": round(statistics.median(rates), 2), "steps": len(rates)}
            result.write_text(json.dumps(row | {"losses": [round(record["loss"], 5) for record in curve]}) + "\n")


def measure_attention(folder: Path, options: argparse.Namespace) -> None:
    """Measure encoding with and without attention weights, alternately, on one core; the least processor time counts."""
    result = folder / "result-attention.json"
    if result.exists():
        return
    texts = [passage for _, passage in json.loads((folder / "pairs.json").read_text())][:TEXTS]
    torch.set_num_threads(1)
    plain = Encoder.load(EncoderConfig(device="cpu"))
    encoders = {"maxsim": plain, "attention": plain.with_scorer("attention")}
    seconds: dict[str, list[float]] = {name: [] for name in encoders}
    for encoder in encoders.values():
        encoder.encode_documents(texts[:8])
    for _ in range(RUNS):
        for name, encoder in encoders.items():
            start = time.process_time()
            tokens = encoder.encode_documents(texts).num_tokens
            seconds[name].append(time.process_time() - start)
    least = {name: round(min(each), 3) for name, each in seconds.items()}
    row = {"texts": len(texts), "tokens": tokens, "seconds": least, "added": round(least["attention"] / least["maxsim"] - 1, 4)}
    result.write_text(json.dumps(row) + "\n")


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""

    def rows(found: Callable[[str], list[object]], names: list[str]) -> list[str]:
        return [f"| {' | '.join(map(str, found(name)))} |" for name in names if f"result-{name}" in report]

    def peer(name: str) -> list[object]:
        row, (system, precision, threads) = report[f"result-{name}"], name.rsplit("-", 2)
        return [system, precision, threads, row["examples_per_second"], row["examples_per_cpu_second"], f"{row['peak_bytes'] / 2**20:.0f}"]

    def workers(name: str) -> list[object]:
        rate, alone = (report.get(f"result-{each}", {}).get("examples_per_second") for each in (name, f"workers-1-{report['batch']}"))
        number, batch = map(int, name.split("-")[1:])
        return [number, batch, rate, f"{rate / alone / number:.0%}" if alone else ""]

    lines = [
        f"One batch of {report['batch']} squad pairs, passages of {report['length']} tokens at most; medians of the steps after "
        f"{report['warm_up']}, of {TURNS} alternating runs. {report['machine']['cpu']}, {report['machine']['cores']} cores.",
        "",
        "| system | products | threads | pairs/s | pairs a processor second | peak MB |",
        "|---|---|---|---|---|---|",
        *rows(peer, ["-".join(map(str, each)) for each in product(TRAINED, PRECISIONS, (1, 2))]),
        "",
        "| workers of one core | pairs a step | pairs/s | efficiency |",
        "|---|---|---|---|",
        *rows(workers, [f"workers-{number}-{batches * report['batch']}" for number, batches in WORKERS]),
    ]
    if attention := report.get("result-attention"):
        seconds = attention["seconds"]
        lines += [
            "",
            f"Encoding {attention['texts']} passages ({attention['tokens']:,} tokens) on one core: {seconds['maxsim']} processor seconds "
            f"without weights, {seconds['attention']} s with attention weights, {attention['added']:+.1%}.",
        ]
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "peers": measure_peers,
    "workers": measure_workers,
    "attention": measure_attention,
}

if __name__ == "__main__":
    main()
