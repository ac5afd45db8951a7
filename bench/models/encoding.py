"""Encoding against PyLate: the same checkpoint and texts, tokens a second on one and two cores; JSON and a table.

    python -m bench.models.encoding DATASET_FOLDER [--documents 256] [--work runs/bench] [--output bench/results/encoding.json]

Every measurement runs in its own process. PyLate's environment is that of bench.compare. Run it on idle cores.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.compare import THREAD_VARIABLES
from bench.comparison.environments import python_of
from bench.comparison.systems import SYSTEMS
from bench.machine import instructions, machine
from ray_lir.corpus.records import corpus_files
from ray_lir.corpus.scan import sample_texts, scan

PRECISIONS = ("float32", "bfloat16")
THREADS = (1, 2)
LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.encoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="folder in the BEIR layout")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/encoding.json"))
    options = parser.parse_args()
    folder = options.work / "encoding"
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(sample_texts(scan(corpus_files(options.dataset), 512, map), options.documents)))
    checkpoint = saved_checkpoint(folder)
    peer = python_of("pylate", options.work, SYSTEMS["PyLate PLAID"].base)
    pythons = {"ray_lir": Path(sys.executable), "pylate": peer}
    rows = [
        _measure(system, python, checkpoint, texts, folder, precision, threads)
        for precision in PRECISIONS
        for threads in THREADS
        for system, python in pythons.items()
    ]
    report = {"machine": machine() | {"instructions": instructions()}, "checkpoint": "all-MiniLM-L6-v2", "length": LENGTH, "rows": rows}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


def saved_checkpoint(folder: Path) -> Path:
    """Save the default checkpoint in a layout for both systems, with float32 weights, because the peer keeps the stored type."""
    saved = folder / "checkpoint"
    if not saved.exists():
        from ray_lir.base.config import EncoderConfig
        from ray_lir.encoder.encoder import Encoder

        Encoder.load(EncoderConfig(precision="float32")).save(saved)
    return saved


def _measure(system: str, python: Path, checkpoint: Path, texts: Path, folder: Path, precision: str, threads: int) -> dict[str, Any]:
    """Measure one system at one setting, and the distance of its vectors from this project's in float32."""
    result = folder / f"{system}-{precision}-{threads}.json"
    command = [str(python), "-m", "bench.peers.encoding", system, str(checkpoint), str(texts), str(result)]
    command += ["--threads", str(threads), "--precision", precision, "--length", str(LENGTH)]
    subprocess.run(["env", *(f"{name}={threads}" for name in THREAD_VARIABLES), *command], check=True)
    row = json.loads(result.read_text())
    reference, vectors = np.load(folder / "ray_lir-float32-1.npy"), np.load(result.with_suffix(".npy"))
    similarity = float((reference * vectors).sum(axis=1).mean()) if reference.shape == vectors.shape else None
    row = {"system": system, "precision": precision, "threads": threads, **row, "similarity": similarity}
    return row | {"tokens_per_second": round(row["tokens"] / row["seconds"])}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    lines = [
        "| system | precision | threads | tokens/s | documents/s | peak MB | cosine with ray_lir in float32 |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = f"{row['tokens_per_second']:,} | {row['documents'] / row['seconds']:.1f} | {row['peak_bytes'] / 2**20:.0f}"
        similarity = "other tokens" if row["similarity"] is None else f"{row['similarity']:.5f}"
        lines.append(f"| {row['system']} | {row['precision']} | {row['threads']} | {speed} | {similarity} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
