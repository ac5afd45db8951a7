"""Measure the quality of every engine on BEIR folders against exact MaxSim over uncompressed embeddings.

    python -m bench.quality DATASET_FOLDER ... [--checkpoint CHECKPOINT] [--shards 1 4] [--work runs/quality] [--output FILE]

Run it from the repository root. It runs the real jobs: encode, build_index with 1 and 4 shards, evaluate. The work folder keeps
their outputs, and a second run continues from them. Remove the folder to measure again.
"""

import argparse
import importlib.metadata
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from bench.machine import machine
from ray_lir.base.config import DEFAULT_CHECKPOINT, EncoderConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.evaluation import metrics, oracle
from ray_lir.evaluation.runs import Run, read_run, write_run
from ray_lir.storage.manifest import MANIFEST, read_manifest

ENGINES = {
    "exact": ["--engine", "exact"],
    "scan": ["--engine", "scan"],
    "plaid": ["--engine", "plaid"],
    "warp": ["--engine", "warp"],
    "warp, rescore 0": ["--engine", "warp", "--warp.rescore", "0"],
}
DEPTH = 100
PACKAGES = ("numpy", "torch", "transformers", "ray", "faiss-cpu", "pyarrow", "ir-measures")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", type=Path, help="folders in the BEIR layout")
    parser.add_argument("--split", help="split with judgements (default: test, or dev if there is no test)")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/quality.json"))
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="encoder (%(default)s)")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 4], help="numbers of shards; the engines' measures are of the first")
    options = parser.parse_args()
    collections = [
        _measure(dataset, options.split or _split_of(dataset), options.work / dataset.name, options.checkpoint, options.shards)
        for dataset in options.datasets
    ]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    report = {"machine": machine(), "versions": versions, "checkpoint": options.checkpoint, "collections": collections}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(report, indent=1).replace(options.checkpoint, Path(options.checkpoint).name)
    options.output.write_text(portable(text, options.datasets).replace(str(options.work), "runs/quality") + "\n")
    options.output.with_suffix(".md").write_text(markdown(collections))
    print(markdown(collections))


def _split_of(dataset: Path) -> str:
    return "test" if (dataset / "qrels" / "test.tsv").exists() else "dev"


def _measure(dataset: Path, split: str, work: Path, checkpoint: str, shards: list[int]) -> dict[str, Any]:
    """Measure one collection: the oracle, and every engine over an index for each number of shards."""
    work.mkdir(parents=True, exist_ok=True)
    embeddings, judgements = work / "embeddings", load_dataset(str(dataset), split).qrels
    encode = ["--corpus", dataset, "--output", embeddings, "--encoder.checkpoint", checkpoint, "--where", "here"]
    jobs = {"encode": job(work / "encode.json", "encode", *encode)}
    for number in shards:
        name = f"build_index-{number}"
        output = ["--embeddings", embeddings, "--output", work / f"index-{number}", "--num-shards", number, "--where", "here"]
        jobs[name] = job(work / f"{name}.json", "build_index", *output)
    best = _oracle_run(dataset, split, work, checkpoint)
    return {
        "name": dataset.name,
        "split": split,
        "queries": len(judgements),
        "oracle": metrics.means(metrics.evaluate(best, judgements)),
        "engines": [_measure_engine(engine, dataset, split, work, best, shards) for engine in ENGINES],
        "jobs": jobs,
    }


def _measure_engine(engine: str, dataset: Path, split: str, work: Path, best: Run, shards: list[int]) -> dict[str, Any]:
    """Return an engine's measures over the first index, its overlap with the oracle, and whether the other indexes give the same run."""
    evaluations = {}
    for number in shards:
        name = f"{engine.replace(', ', '-').replace(' ', '-')}-{number}"
        where = ["--index", work / f"index-{number}", "--dataset", dataset, "--split", split, "--run", work / f"{name}.run", "--k", DEPTH]
        timed = [] if number == shards[0] else ["--latency_queries", 0]
        evaluations[work / f"{name}.run"] = job(work / f"{name}.json", "evaluate", *where, *ENGINES[engine], *timed)
    runs = [path.read_bytes() for path in evaluations]
    found = read_run(str(next(iter(evaluations))))
    return {
        **next(iter(evaluations.values()))["result"],
        "engine": engine,
        "oracle_recall@10": oracle.overlap(found, best, 10),
        "oracle_recall@100": oracle.overlap(found, best, 100),
        "same_run_for_all_shards": len(set(runs)) == 1 if len(runs) > 1 else None,
        "commands": [evaluation["command"] for evaluation in evaluations.values()],
    }


def job(result: Path, verb: str, *args: object) -> dict[str, Any]:
    """Run `python -m jobs.VERB` unless the work folder has its result; return its command and JSON."""
    if not result.exists():
        command = ["python", "-m", f"jobs.{verb}", *map(str, args)]
        print("$", shlex.join(command), file=sys.stderr, flush=True)
        done = subprocess.run([sys.executable, *command[1:]], check=False, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            sys.exit(f"jobs.{verb} ended with code {done.returncode}")
        result.write_text(json.dumps({"command": shlex.join(command), "result": json.loads(done.stdout.splitlines()[-1])}))
    return json.loads(result.read_text())


def _oracle_run(dataset: Path, split: str, work: Path, checkpoint: str) -> Run:
    """Rank by exact MaxSim over the uncompressed embeddings, stored as a run file."""
    path = work / "oracle.run"
    if not path.exists():
        from ray_lir.encoder.encoder import Encoder

        print(f"oracle of {dataset.name}", file=sys.stderr, flush=True)
        manifest = read_manifest(str(work / "embeddings" / MANIFEST), EmbeddingsManifest, "jobs.encode")
        questions = load_dataset(str(dataset), split).queries
        queries = Encoder.load(EncoderConfig(checkpoint=checkpoint)).encode_queries(list(questions.values()), list(questions))
        blocks = oracle.read_embeddings(str(work / "embeddings"), manifest)
        write_run(str(path), oracle.exact_run(blocks, queries, DEPTH), "oracle")
    return read_run(str(path))


def portable(text: str, datasets: list[Path]) -> str:
    """Return the text without paths of this machine."""
    for dataset in datasets:
        if dataset.parent != Path():
            text = text.replace(str(dataset), f"$RAY_LIR_DATA/{dataset.name}")
    return text.replace(f"{Path.cwd()}/", "")


def markdown(collections: list[dict[str, Any]]) -> str:
    """Return one row for each engine and collection; the first row of a collection is the oracle."""
    lines = [
        "| collection | engine | nDCG@10 | R@100 | overlap with the uncompressed top 10 | p50 ms | p95 ms | runs of all indexes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for collection in collections:
        best = collection["oracle"]
        lines.append(f"| {collection['name']} | uncompressed | {best['nDCG@10']:.4f} | {best['R@100']:.4f} | 1.000 | | | |")
        for row in collection["engines"]:
            search = row["latency_ms"]["search"]
            same = {True: "identical", False: "DIFFER", None: ""}[row["same_run_for_all_shards"]]
            lines.append(
                f"| {collection['name']} | {row['engine']} | {row['nDCG@10']:.4f} | {row['R@100']:.4f} | {row['oracle_recall@10']:.3f} | "
                f"{search['p50']:.0f} | {search['p95']:.0f} | {same} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
