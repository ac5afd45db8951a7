"""Encoding against PyLate, sentence-transformers, ONNX Runtime and OpenVINO: the same checkpoint and texts; JSON and tables.

    python -m bench.models.encoding DATASET_FOLDER [--documents 256] [--checkpoint NAME] [--set avx2] [--threads 1,2]
        [--systems ray_lir,openvino] [--work runs/bench] [--output bench/results/encoding.json]

Every measurement runs in its own process. The report keeps one run for each processor, instruction set and checkpoint. `--set avx2` limits
torch, oneDNN and this project's kernels to AVX2. ONNX Runtime and OpenVINO cannot be limited, so they are left out then. Speed is counted
in seconds of processor time, which a busy machine disturbs less. Run it on idle cores all the same.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from bench.compare import THREAD_VARIABLES
from bench.comparison.environments import THIS, NotInstallable, python_of
from bench.comparison.systems import SYSTEMS
from bench.machine import instructions, machine
from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.records import corpus_files
from ray_lir.corpus.scan import sample_texts, scan

SETTINGS = {
    "ray_lir": ("float32", "bfloat16", "int8"),
    "pylate": ("float32", "bfloat16"),
    "sentence-transformers": ("float32", "bfloat16"),
    "onnxruntime": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
}
"""The precisions of each system."""
SETS: dict[str, dict[str, str]] = {
    "all": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "RAY_LIR_KERNELS": "native:avx2",
    },
}
"""Environment variables that limit the instruction set."""
UNLIMITED = ("onnxruntime", "openvino")
"""Systems that choose instructions without reading these variables."""
LENGTH = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.encoding", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("dataset", help="folder in the BEIR layout")
    parser.add_argument("--documents", type=int, default=256)
    parser.add_argument("--checkpoint", default=EncoderConfig().checkpoint)
    parser.add_argument("--set", choices=SETS, default="all", help="instruction set")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--systems", default=",".join(SETTINGS))
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/encoding.json"))
    options = parser.parse_args()
    folder = (options.work / "encoding" / Path(options.checkpoint).name).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    texts = folder / "texts.json"
    texts.write_text(json.dumps(sample_texts(scan(corpus_files(options.dataset), 512, map), options.documents)))
    checkpoint = saved_checkpoint(folder, options.checkpoint)
    run: dict[str, Any] = {
        "machine": machine() | {"instructions": instructions()},
        "set": options.set,
        "checkpoint": Path(options.checkpoint).name,
        "length": LENGTH,
        "load": round(os.getloadavg()[0], 1),
        "missing": {},
        "rows": [],
    }
    for system in options.systems.split(","):
        try:
            if options.set != "all" and system in UNLIMITED:
                raise NotInstallable("its instruction set cannot be limited")
            python = _python(system, options.work)
        except NotInstallable as error:
            run["missing"][system] = str(error)
            continue
        for precision in SETTINGS[system]:
            if options.set != "avx2" or precision != "bfloat16":  # AVX2 has no products of bfloat16
                for threads in map(int, options.threads.split(",")):
                    run["rows"].append(_measure(system, python, checkpoint, texts, precision, threads, SETS[options.set]))
                    _write(run, options.output)  # what is measured remains if the rest is interrupted
    print(markdown([run]))


def _write(run: dict[str, Any], output: Path) -> None:
    """Put a run into the report, in place of an earlier one of the same kind."""
    report = json.loads(output.read_text()) if output.exists() else []
    report = [other for other in report if _key(other) != _key(run)] + [run]
    output.write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(markdown(report))


def _key(run: dict[str, Any]) -> tuple[Any, ...]:
    """Return the values that identify a run: a later one replaces it."""
    return run["machine"]["cpu"], tuple(run["machine"]["instructions"]), run["set"], run["checkpoint"]


def _python(system: str, work: Path) -> Path:
    """Return the interpreter that a system runs in."""
    if system == "pylate":
        return python_of("pylate", work, SYSTEMS["PyLate PLAID"].base)
    return python_of("inference", work, THIS) if system in UNLIMITED else Path(sys.executable)


def saved_checkpoint(folder: Path, name: str = EncoderConfig().checkpoint) -> Path:
    """Save a checkpoint in a layout for all systems, with float32 weights, because peers keep the stored type."""
    saved = folder / "checkpoint"
    if not saved.exists():
        from ray_lir.encoder.encoder import Encoder

        Encoder.load(EncoderConfig(checkpoint=name, precision="float32", device="cpu")).save(saved)
    return saved


def _measure(
    system: str, python: Path, checkpoint: Path, texts: Path, precision: str, threads: int, limits: dict[str, str]
) -> dict[str, Any]:
    """Measure one system at one setting, and the distance of its vectors from this project's in float32."""
    result = texts.parent / f"{system}-{precision}-{threads}.json"
    command = [str(python), "-m", "bench.peers.encoding", system, str(checkpoint), str(texts), str(result)]
    command += ["--threads", str(threads), "--precision", precision, "--length", str(LENGTH)]
    subprocess.run(command, check=True, env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, str(threads)), **limits})
    row = json.loads(result.read_text())
    reference, vectors = np.load(texts.parent / "ray_lir-float32-1.npy"), np.load(result.with_suffix(".npy"))
    similarity = float((reference * vectors).sum(axis=1).mean()) if reference.shape == vectors.shape else None
    row = {"system": system, "precision": precision, "threads": threads, **row, "similarity": similarity}
    return row | {"tokens_per_second": round(row["tokens"] / row["seconds"])}


def markdown(report: list[dict[str, Any]]) -> str:
    """Return the report as Markdown, a section a run."""
    lines: list[str] = []
    for run in report:
        about = run["machine"]
        limit = "" if run["set"] == "all" else f", limited to {run['set'].upper()}"
        lines += [f"## {run['checkpoint']}, {about['cpu']} ({', '.join(about['instructions'])}){limit}", ""]
        if run.get("load", 0) > about["cores"]:
            lines += [f"Load average {run['load']:.0f} on {about['cores']} cores: read tokens a CPU second and ratios, not tokens/s.", ""]
        lines += ["| system | precision | threads | tokens a CPU second | times ray_lir in float32 | tokens/s | peak MB | cosine |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        speeds = {(row["system"], row["precision"], row["threads"]): row["tokens"] / row["cpu_seconds"] for row in run["rows"]}
        for row in run["rows"]:
            speed = speeds[row["system"], row["precision"], row["threads"]]
            ratio = speed / speeds["ray_lir", "float32", row["threads"]]
            similarity = "other tokens" if row["similarity"] is None else f"{row['similarity']:.5f}"
            name = f"{row['system']} {row['version']}" if row.get("version") else row["system"]
            cells = [name, row["precision"], row["threads"], f"{speed:,.0f}", f"{ratio:.2f}", f"{row['tokens_per_second']:,}"]
            lines += ["| " + " | ".join(map(str, [*cells, f"{row['peak_bytes'] / 2**20:.0f}", similarity])) + " |"]
        lines += ["", *(f"* Without {system}: {reason}." for system, reason in run["missing"].items()), ""]
    return "\n".join(lines).replace("\n\n\n", "\n\n").rstrip() + "\n"


if __name__ == "__main__":
    main()
