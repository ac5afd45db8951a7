"""Measure the quality of every engine on BEIR folders against exact MaxSim over uncompressed embeddings.

    python -m bench.quality DATASET_FOLDER ... [--work runs/quality] [--output bench/results/quality.json]

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
SHARDS = (1, 4)
DEPTH = 100
PACKAGES = ("numpy", "torch", "transformers", "ray", "faiss-cpu", "pyarrow", "ir-measures")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quality", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", type=Path, help="folders in the BEIR layout")
    parser.add_argument("--split", default="test")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/quality.json"))
    options = parser.parse_args()
    collections = [_measure(dataset, options.split, options.work / dataset.name) for dataset in options.datasets]
    report = {"machine": machine(), "versions": {name: importlib.metadata.version(name) for name in PACKAGES}, "collections": collections}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(portable(json.dumps(report, indent=1), options.datasets) + "\n")
    options.output.with_suffix(".md").write_text(markdown(collections))
    print(markdown(collections))


def _measure(dataset: Path, split: str, work: Path) -> dict[str, Any]:
    """Measure one collection: the oracle, and every engine over an index of 1 shard and of 4."""
    work.mkdir(parents=True, exist_ok=True)
    embeddings, judgements = work / "embeddings", load_dataset(str(dataset), split).qrels
    jobs = {"encode": job(work / "encode.json", "encode", "--corpus", dataset, "--output", embeddings)}
    for shards in SHARDS:
        name = f"build_index-{shards}"
        output = ["--embeddings", embeddings, "--output", work / f"index-{shards}", "--num-shards", shards, "--where", "here"]
        jobs[name] = job(work / f"{name}.json", "build_index", *output)
    best = _oracle_run(dataset, split, work)
    return {
        "name": dataset.name,
        "split": split,
        "queries": len(judgements),
        "oracle": metrics.means(metrics.evaluate(best, judgements)),
        "engines": [_measure_engine(engine, dataset, split, work, best) for engine in ENGINES],
        "jobs": jobs,
    }


def _measure_engine(engine: str, dataset: Path, split: str, work: Path, best: Run) -> dict[str, Any]:
    """Return an engine's measures over one shard, its overlap with the oracle, and whether more shards give the same run."""
    evaluations = {}
    for shards in SHARDS:
        name = f"{engine.replace(', ', '-').replace(' ', '-')}-{shards}"
        where = ["--index", work / f"index-{shards}", "--dataset", dataset, "--split", split, "--run", work / f"{name}.run", "--k", DEPTH]
        timed = [] if shards == SHARDS[0] else ["--latency_queries", 0]
        evaluations[work / f"{name}.run"] = job(work / f"{name}.json", "evaluate", *where, *ENGINES[engine], *timed)
    runs = [path.read_bytes() for path in evaluations]
    found = read_run(str(next(iter(evaluations))))
    return {
        **next(iter(evaluations.values()))["result"],
        "engine": engine,
        "oracle_recall@10": oracle.overlap(found, best, 10),
        "oracle_recall@100": oracle.overlap(found, best, 100),
        "same_run_for_all_shards": len(set(runs)) == 1,
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


def _oracle_run(dataset: Path, split: str, work: Path) -> Run:
    """Rank by exact MaxSim over the uncompressed embeddings, stored as a run file."""
    path = work / "oracle.run"
    if not path.exists():
        from ray_lir.encoder.encoder import Encoder

        print(f"oracle of {dataset.name}", file=sys.stderr, flush=True)
        manifest = read_manifest(str(work / "embeddings" / MANIFEST), EmbeddingsManifest, "jobs.encode")
        questions = load_dataset(str(dataset), split).queries
        queries = Encoder.load().encode_queries(list(questions.values()), list(questions))
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
        "| collection | engine | nDCG@10 | R@100 | overlap with the uncompressed top 10 | p50 ms | p95 ms | runs of 1 and 4 shards |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for collection in collections:
        best = collection["oracle"]
        lines.append(f"| {collection['name']} | uncompressed | {best['nDCG@10']:.4f} | {best['R@100']:.4f} | 1.000 | | | |")
        for row in collection["engines"]:
            search = row["latency_ms"]["search"]
            lines.append(
                f"| {collection['name']} | {row['engine']} | {row['nDCG@10']:.4f} | {row['R@100']:.4f} | {row['oracle_recall@10']:.3f} | "
                f"{search['p50']:.0f} | {search['p95']:.0f} | {'identical' if row['same_run_for_all_shards'] else 'DIFFER'} |"
            )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
