"""Predicts what a collection takes: bytes, machines, hours, latency and cost."""

import math
from typing import Annotated, Any, Literal

import tyro
from pydantic import Field

from ray_lir.config import Config
from ray_lir.engines.cost import COSTS
from ray_lir.errors import ConfigError
from ray_lir.index.clustering import default_num_centroids
from ray_lir.index.codec import check_dimensions
from ray_lir.planning.capacity import (
    ENGINES,
    MEMORY_SHARE,
    UTILISATION,
    Capacity,
    Load,
    Machine,
    alternatives,
    groups_for_memory,
    smallest,
    with_fewer_centroids,
)
from ray_lir.planning.sizes import Collection, predict_bytes
from ray_lir.planning.work import build_seconds, encode_seconds

from .cli import main

HOURS_A_MONTH = 730
GB = 1e9


class PlanJob(Config):
    """Predicts bytes, machines, hours, latency and cost. docs/operations.md says where the constants come from."""

    docs: float = Field(ge=1)
    """Documents (1e9 is fine)."""
    tokens_per_doc: float = Field(70, gt=0)
    """Token vectors of a document, on average."""
    dim: int = Field(128, ge=1)
    """Dimensions of a token vector."""
    nbits: Literal[1, 2, 4, 8] = 4
    """Bits a dimension of the compressed residuals."""
    num_centroids: int | None = Field(None, ge=1)
    """None: what build_index chooses; or, if that is not in time, the most that are."""
    num_iterations: int = Field(4, ge=1)
    """Of k-means."""
    text_bytes_per_doc: float = Field(600, ge=0)
    """Bytes of a document's id, title, text and metadata."""
    qps: float = Field(10, gt=0)
    """Searches a second."""
    p95_ms: float = Field(200, gt=0)
    """How long 95 of 100 searches may take, at most."""
    k: int = Field(10, ge=1)
    """Documents that are wanted."""
    engine: Literal["auto", "exact", "scan", "warp"] = "auto"
    """auto: whichever takes the fewest machines."""
    query_encode_ms: float = Field(10, ge=0)
    """Encoding a query."""
    hop_ms: float = Field(2, ge=0)
    """A round of messages between the gateway and its groups."""
    kernels: str = "native:avx2"
    """Kernels of the serving machines."""
    node_cores: int = Field(8, ge=1)
    """Cores of a CPU machine; two hardware threads count once."""
    node_memory_gb: float = Field(64, gt=0)
    """Its memory."""
    node_price: float = Field(0.8064, ge=0)
    """Dollars an hour (an m7i.4xlarge on demand in us-east-1)."""
    build_nodes: int = Field(8, ge=1)
    """CPU machines that build the index."""
    encoder_parameters: float = Field(86e6, gt=0)
    """Weights that every token meets: without the table of word embeddings (BERT base has 86 million)."""
    gpu_teraflops: float = Field(36, gt=0)
    """What a GPU sustains (30% of an L4's peak in 16 bits)."""
    gpu_price: float = Field(0.9776, ge=0)
    """Dollars an hour of a machine with one such GPU (a g6.2xlarge)."""
    gpus: int = Field(4, ge=1)
    """GPUs that encode."""
    storage_price: float = Field(0.023, ge=0)
    """Dollars a GB and month of object storage."""
    json_only: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print nothing but the JSON."""


def run(job: PlanJob) -> dict[str, Any]:
    """The prediction.

    Raises:
        ConfigError: if there are no such kernels, or the codec does not fit into a machine's memory.
    """
    collection, load, machine = _inputs(job)
    engines = ENGINES if job.engine == "auto" else (job.engine,)
    capacity = smallest(collection, load, machine, engines)
    if not capacity.enough and job.num_centroids is None:
        others = ((smaller, smallest(smaller, load, machine, engines)) for smaller in with_fewer_centroids(collection))
        collection, capacity = next((found for found in others if found[1].enough), (collection, capacity))
    result = {
        "collection": _collection(collection),
        "bytes": _bytes(collection),
        "encode": _encode(job, collection),
        "build": _build(job, collection),
        "search": _search(load, capacity),
        "cost": _cost(job, collection, capacity),
        "warnings": _warnings(job, collection, capacity),
    }
    if not job.json_only:
        show(result)
    return result


def show(result: dict[str, Any]) -> None:
    """Prints a prediction for people."""
    for part, values in result.items():
        for line in values if isinstance(values, list) else [f"{name:<24} {_text(value)}" for name, value in values.items()]:
            print(f"{part:<11} {line}", flush=True)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return "  ".join(f"{name} {_text(each)}" for name, each in value.items())
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _inputs(job: PlanJob) -> tuple[Collection, Load, Machine]:
    check_dimensions(job.dim, job.nbits)
    if job.kernels not in COSTS:
        raise ConfigError(f"nothing is known of kernels {job.kernels!r}; choose {', '.join(COSTS)}")
    collection = Collection.of(job.docs, job.tokens_per_doc, job.dim, job.nbits, job.num_centroids, job.text_bytes_per_doc)
    machine = Machine(job.node_cores, job.node_memory_gb * GB, job.kernels)
    if not groups_for_memory(collection, machine, "exact"):
        raise ConfigError(
            f"{collection.num_centroids} centroids do not fit into {job.node_memory_gb:g} GB beside the arrays; "
            "choose fewer with --num_centroids, or more --node_memory_gb"
        )
    return collection, Load(job.qps, job.p95_ms, job.query_encode_ms, job.hop_ms, job.k), machine


def _collection(of: Collection) -> dict[str, Any]:
    return {"documents": of.num_docs, "tokens": of.num_tokens, "centroids": of.num_centroids, "shards": of.num_shards}


def _bytes(of: Collection) -> dict[str, Any]:
    found = predict_bytes(of)
    whole = {"index": found.index, "index_a_shard": found.index // of.num_shards, "index_a_token": round(found.index / of.num_tokens, 1)}
    return found.model_dump() | whole


def _encode(job: PlanJob, of: Collection) -> dict[str, Any]:
    hours = encode_seconds(of, job.encoder_parameters, job.gpu_teraflops) / 3600
    return {"gpu_hours": _rounded(hours), "hours": _rounded(hours / job.gpus), "gpus": job.gpus}


def _build(job: PlanJob, of: Collection) -> dict[str, Any]:
    stages = build_seconds(of, job.num_iterations)
    hours = sum(stages.values()) / 3600
    share = {stage: _rounded(seconds / 3600) for stage, seconds in stages.items()}
    return {"core_hours": _rounded(hours), "hours": _rounded(hours / job.build_nodes / job.node_cores), "core_hours_by_stage": share}


def _search(load: Load, found: Capacity) -> dict[str, Any]:
    service = found.service
    return {
        "in_time": found.enough,
        "engine": found.engine,
        "groups": service.groups,
        "replicas": service.replicas,
        "nodes": found.nodes,
        "memory_gb_a_group": _rounded(found.memory_a_group / GB),
        "utilisation": round(load.qps * service.utilisation_per_qps, 3),
        "core_ms_a_query": _rounded(found.work.total),
        "ms_simulated": found.percentiles,
        "ms_with": alternatives(found, load),
    }


def _cost(job: PlanJob, of: Collection, found: Capacity) -> dict[str, Any]:
    sizes = predict_bytes(of)
    build_hours = sum(build_seconds(of, job.num_iterations).values()) / 3600
    encode_hours = encode_seconds(of, job.encoder_parameters, job.gpu_teraflops) / 3600
    return {
        "encode_dollars": _rounded(encode_hours * job.gpu_price),
        "build_dollars": _rounded(build_hours / job.node_cores * job.node_price),
        "search_dollars_a_month": _rounded(found.nodes * job.node_price * HOURS_A_MONTH),
        "storage_dollars_a_month": _rounded((sizes.index + sizes.embeddings) / GB * job.storage_price),
    }


def _warnings(job: PlanJob, of: Collection, found: Capacity) -> list[str]:
    """What the numbers alone do not say."""
    said = []
    if not found.enough:
        p95 = found.percentiles["p95"]
        said.append(
            f"no number of groups is in time: {p95:g} ms with {found.service.groups} groups; "
            "allow more --p95_ms, or take more --node_cores, faster --kernels or fewer --num_centroids"
        )
    if job.num_centroids is None and of.num_centroids != default_num_centroids(of.num_tokens):
        said.append(f"build with --clustering.num_centroids {of.num_centroids}: with as many as by default plans alone would take too long")
    gateways = math.ceil(job.qps * found.work.plan / 1000 / UTILISATION / job.node_cores)
    if gateways > 1:
        said.append(f"planning alone takes {gateways} machines at this load, and a service has one gateway: run {gateways} services")
    if found.memory_a_group > MEMORY_SHARE * job.node_memory_gb * GB:
        said.append(f"a group's arrays fill more than {MEMORY_SHARE:.0%} of a machine: pages will be read from disk")
    if of.num_docs > 1e7:
        said.append("above 10 million documents encode with --docs_per_part 16384, so that manifests stay small")
    return said


def _rounded(value: float) -> float:
    """Three significant digits, which is more than a prediction has."""
    return float(f"{value:.3g}")


if __name__ == "__main__":
    main(PlanJob, run)
