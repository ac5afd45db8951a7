"""Run builds, searches and services on a cluster with two logical GPUs (without hardware), and record the results.

    TRITON_INTERPRET=1 RAY_LIR_LOGICAL_GPUS=1 python -m tests.support.logical_gpu_cluster FOLDER

FOLDER comes from `served_index.make_index`, with queries.jsonl and more.jsonl. The report is FOLDER/report.json. Each part has
its result or its error.
"""

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import ray
from ray import serve

from jobs.build_index import BuildIndexJob
from jobs.build_index import run as build_index
from jobs.evaluate import EvaluateConfig, evaluate
from jobs.mine import MineConfig, mine
from jobs.search import SearchJob
from jobs.search import run as search
from jobs.update import UpdateJob
from jobs.update import run as update
from ray_lir.base.errors import RayLirError
from ray_lir.distributed import room
from ray_lir.distributed.ray_map import ray_map
from ray_lir.kernels import select
from serving.app import build
from tests.support.served_index import QUERIES, serve_started

ENGINES = ("exact", "scan", "plaid", "warp")
NUM_TASKS = 6
SECONDS = 0.3


def observe(number: int) -> dict[str, Any]:
    """Return the GPU that a task sees, and when the task held it."""
    began = time.time()
    time.sleep(SECONDS)
    return {
        "gpus": ray.get_gpu_ids(),
        "visible": os.environ["CUDA_VISIBLE_DEVICES"],
        "kernels": select().name,
        "times": [began, time.time()],
    }


def tasks(num_gpus: float) -> list[dict[str, Any]]:
    """Return the reports of tasks that each reserve this fraction of a GPU."""
    return list(ray_map(observe, range(NUM_TASKS), num_cpus=0.1, num_gpus=num_gpus, kernels="cuda"))


def hits(folder: Path) -> list[Any]:
    """Return the hits that a bulk search wrote."""
    import pyarrow.parquet as pq

    rows = [row for part in sorted(folder.rglob("*.parquet")) for row in pq.read_table(part).to_pylist()]
    return sorted([row["query_id"], row["rank"], row["doc_id"], row["score"]] for row in rows)


def bulk_search(folder: Path, output: str, **workers: Any) -> dict[str, Any]:
    """Return the hits of a bulk search on GPUs."""
    job = {"index": str(folder / "built"), "queries": str(folder / "queries.jsonl"), "output": str(folder / output), "engine": "exact"}
    search(SearchJob.model_validate(job | {"workers": {"gpus_per_worker": 1, **workers}}))
    return {"hits": hits(folder / output), "provenance": json.loads((folder / output / "provenance.json").read_text())["kernels"]}


def evaluated(folder: Path) -> dict[str, Any]:
    """Measures and run of an evaluation on GPUs."""
    job = {"index": str(folder / "built"), "dataset": str(folder), "run": str(folder / "gpu.run"), "engine": "exact", "latency_queries": 0}
    result = evaluate(EvaluateConfig.model_validate(job | {"workers": {"gpus_per_worker": 1}}))
    return {"nDCG@10": result["nDCG@10"], "run": (folder / "gpu.run").read_text()}


def mined(folder: Path) -> list[dict[str, Any]]:
    """The tuples that a mining on GPUs wrote."""
    job = {"index": str(folder / "built"), "dataset": str(folder), "split": "test", "output": str(folder / "gpu-tuples.jsonl")}
    mine(MineConfig.model_validate(job | {"num_negatives": 2, "depth": 10, "engine": "exact", "workers": {"gpus_per_worker": 1}}))
    return [json.loads(line) for line in (folder / "gpu-tuples.jsonl").read_text().splitlines()]


def served(folder: Path, address: str, **arguments: Any) -> dict[str, Any]:
    """Return the answers of a service on GPUs, and the GPU of each replica."""
    serve.run(build({"index": str(folder / "index"), "encoder_cpus": 0.1, **arguments}))
    answers = {}
    with httpx.Client(base_url=address, timeout=120) as client:
        for engine in ENGINES:
            for query in QUERIES:
                reply = client.post("/search", json={"query": query, "k": 5, "engine": engine})
                reply.raise_for_status()
                answers[f"{engine}: {query}"] = [[hit["number"], hit["score"]] for hit in reply.json()["results"][0]]
    names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
    replicas = {name.split("#")[1]: ray.get_actor(name, namespace="serve") for name in names if "#ShardGroup-" in name}
    devices = {name: ray.get(replica.__ray_call__.remote(lambda _: ray.get_gpu_ids())) for name, replica in replicas.items()}
    return {"answers": answers, "devices": devices}


@ray.remote(num_gpus=1, num_cpus=0)
class Holder:
    """Holds a GPU."""

    def ready(self) -> None:
        """Return when the GPU is held."""


def main(folder: Path) -> None:
    """Run all parts."""
    ray.init(address="local", num_cpus=4, num_gpus=2, include_dashboard=False, log_to_driver=False)
    room.GPU_PATIENCE_S = 30.0  # processes end slowly on a busy machine
    report: dict[str, Any] = {}

    def attempt(name: str, part: Callable[[], Any]) -> None:
        started = time.monotonic()
        try:
            report[name] = part()
        except RayLirError as error:
            report[name] = f"{type(error).__name__}: {error}"
        except Exception:
            report[name] = traceback.format_exc()
        print(f"{name}: {time.monotonic() - started:.1f} s", file=sys.stderr, flush=True)

    embeddings, built = str(folder / "embeddings"), str(folder / "built")
    build_job = {"embeddings": embeddings, "output": built, "num_shards": 2, "clustering": {"num_centroids": 32}}
    update_job = {"index": built, "add": str(folder / "more.jsonl"), "encoder": {"checkpoint": str(folder / "checkpoint")}}
    attempt("whole cards", partial(tasks, 1))
    attempt("half cards", partial(tasks, 0.5))
    attempt("build", lambda: build_index(BuildIndexJob.model_validate(build_job | {"workers": {"gpus_per_worker": 1}})))
    attempt("update", lambda: update(UpdateJob.model_validate(update_job | {"workers": {"gpus_per_worker": 0.5}})))
    attempt("bulk search", partial(bulk_search, folder, "hits"))
    attempt("bulk search in groups", partial(bulk_search, folder, "grouped", num_workers=1, groups=2))
    attempt("evaluate", partial(evaluated, folder))
    attempt("mine", partial(mined, folder))
    with serve_started() as address:
        attempt("three cards", partial(served, folder, address, num_groups=3, shard_gpus=1))
        attempt("one group", partial(served, folder, address, num_groups=1, shard_gpus=0.5, encoder_gpus=0.5))
        attempt("two groups", partial(served, folder, address, num_groups=2, shard_gpus=0.5, encoder_gpus=0.5))
        attempt("four groups", partial(served, folder, address, num_groups=4, shard_gpus=0.25, encoder_gpus=0.25))
        attempt("two groups, a card each", partial(served, folder, address, num_groups=2, shard_gpus=1))
    holders = [Holder.remote() for _ in range(2)]
    ray.get([holder.ready.remote() for holder in holders])
    room.GPU_PATIENCE_S = 1.0
    refused = build_job | {"output": str(folder / "refused"), "workers": {"gpus_per_worker": 1}}
    attempt("build without a free card", lambda: build_index(BuildIndexJob.model_validate(refused)))
    attempt("search without a free card", partial(bulk_search, folder, "refused"))
    attempt("service without a free card", lambda: build({"index": str(folder / "index"), "shard_gpus": 1}))
    (folder / "report.json").write_text(json.dumps(report))
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
