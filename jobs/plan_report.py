"""Computes the prediction of `ray-lir plan`. It is separate from jobs.plan, so that `--help` does not load NumPy."""

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ray_lir.base.config import DEFAULT_CHECKPOINT, DEFAULT_DIM, DOCS_PER_PART
from ray_lir.base.errors import ConfigError
from ray_lir.building.clustering import default_num_centroids
from ray_lir.engines.cost import COSTS
from ray_lir.index.codec import check_dimensions
from ray_lir.planning.capacity import (
    ENGINES,
    MEMORY_FRACTION,
    UTILISATION,
    Capacity,
    Load,
    Machine,
    alternatives,
    groups_for_memory,
    smallest,
    with_fewer_centroids,
)
from ray_lir.planning.measure import Measured, measure_corpus, measure_embeddings, measure_index
from ray_lir.planning.sizes import (
    GPU_RESERVED_BYTES,
    Collection,
    build_memory,
    gpu_codec_bytes,
    gpu_collection_bytes,
    predict_bytes,
    resident_memory,
)
from ray_lir.planning.workload import build_seconds, encode_seconds

if TYPE_CHECKING:
    from .plan import PlanJob

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder

HOURS_A_MONTH = 730
ASSUMED_TOKENS = 160
"""Token vectors of a document if they are unknown: those of abstracts and passages of 100 to 120 words."""
ASSUMED_TEXT_BYTES = 600
"""Bytes of a document's id, title, text and metadata if they are unknown."""
GB = 1e9


def predict(job: "PlanJob") -> dict[str, Any]:
    """Return the prediction.

    Raises:
        ConfigError: The kernels are unknown, the codec does not fit into a machine's memory, or the number of documents is unknown.
    """
    shape, assumptions = _shape(job)
    collection, load, machine = _inputs(job, shape)
    engines = ENGINES if job.engine == "auto" else (job.engine,)
    capacity = smallest(collection, load, machine, engines)
    if not capacity.enough and job.num_centroids is None:
        smaller = ((fewer, smallest(fewer, load, machine, engines)) for fewer in with_fewer_centroids(collection))
        collection, capacity = next((found for found in smaller if found[1].enough), (collection, capacity))
    result = {
        "assumptions": assumptions,
        "collection": _collection(collection),
        "bytes": _bytes(collection),
        "encode": _encode(job, collection),
        "build": _build(job, collection),
        "search": _search(job, collection, load, capacity),
        **({"gpu_search": _gpu_search(job, collection)} if job.shard_gpus else {}),
        "cost": _cost(job, collection, capacity),
        "warnings": _warnings(job, collection, capacity),
    }
    return result


def _shape(job: "PlanJob") -> tuple[Measured, list[str]]:
    """The measured or configured size of the collection, and a line for each assumed number."""
    sources = [name for name in ("corpus", "embeddings", "index") if getattr(job, name)]
    if len(sources) > 1:
        raise ConfigError(f"--{sources[0]} and --{sources[1]} are both set; give only one of them")
    measured = _measure(job)
    if measured is None and job.docs is None:
        raise ConfigError("the number of documents is unknown; give --docs, --corpus, --embeddings or --index")
    assumptions = []
    if measured is None and job.tokens_per_doc is None:
        assumptions.append(
            f"assumed {ASSUMED_TOKENS} tokens a document; set --tokens-per-doc, or measure them with --corpus, --embeddings or --index"
        )
    if measured is None and job.text_bytes_per_doc is None:
        assumptions.append(f"assumed {ASSUMED_TEXT_BYTES} bytes of text a document; set --text-bytes-per-doc, or measure them likewise")
    if measured is None and job.dim is None:
        is_default = job.encoder.checkpoint == DEFAULT_CHECKPOINT  # loading the encoder only for this would take seconds
        dim = DEFAULT_DIM if is_default else _encoder(job).contract.dim
        assumptions.append(f"assumed {dim} dimensions, those of the encoder {job.encoder.checkpoint}; set --dim or --encoder.checkpoint")
        measured = Measured(0, ASSUMED_TOKENS, dim, ASSUMED_TEXT_BYTES)
    elif measured is None:
        measured = Measured(0, ASSUMED_TOKENS, job.dim or 0, ASSUMED_TEXT_BYTES)
    elif measured.num_sampled is not None:
        assumptions.append(
            f"measured on {measured.num_sampled:,} documents of {job.corpus}: {measured.tokens_per_doc:.1f} vectors of {measured.dim} "
            f"dimensions and {measured.text_bytes:.0f} bytes of text a document"
        )
    settings: dict[str, Any] = {
        "num_docs": job.docs and round(job.docs),
        "tokens_per_doc": job.tokens_per_doc,
        "dim": job.dim,
        "text_bytes": job.text_bytes_per_doc,
    }
    if job.encoder.projection and job.dim is None and not (job.embeddings or job.index):
        from ray_lir.encoder.projection import parse_projection

        settings["dim"] = parse_projection(job.encoder.projection, measured.dim)
    return replace(measured, **{name: value for name, value in settings.items() if value is not None}), assumptions


def _measure(job: "PlanJob") -> Measured | None:
    if job.embeddings:
        return measure_embeddings(job.embeddings)
    if job.index:
        return measure_index(job.index)
    return measure_corpus(job.corpus, _encoder(job).tokenizer) if job.corpus else None


def _encoder(job: "PlanJob") -> "Encoder":
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load, and other plans do not need it

    return Encoder.load(job.encoder.model_copy(update={"device": "cpu", "precision": "float32"}))


def _inputs(job: "PlanJob", shape: Measured) -> tuple[Collection, Load, Machine]:
    check_dimensions(shape.dim, job.nbits, job.residual_bytes)
    if job.kernels not in COSTS:
        raise ConfigError(f"unknown kernels {job.kernels!r}; choose {', '.join(COSTS)}")
    collection = Collection.of(shape.num_docs, shape.tokens_per_doc, shape.dim, job.nbits, job.num_centroids, shape.text_bytes)
    collection = replace(collection, lexical=job.lexical, residual_bytes=job.residual_bytes)
    machine = Machine(job.node_cores, job.node_memory_gb * GB, job.kernels)
    if not groups_for_memory(collection, machine, "exact"):
        raise ConfigError(
            f"{collection.num_centroids} centroids do not fit into {job.node_memory_gb:g} GB beside the arrays; "
            "lower --num_centroids or raise --node_memory_gb"
        )
    return collection, Load(job.qps, job.p95_ms, job.query_encode_ms, job.hop_ms, job.k), machine


def _collection(of: Collection) -> dict[str, Any]:
    return {"documents": of.num_docs, "tokens": of.num_tokens, "centroids": of.num_centroids, "shards": of.num_shards}


def _bytes(of: Collection) -> dict[str, Any]:
    found = predict_bytes(of)
    whole = {"index": found.index, "index_a_shard": found.index // of.num_shards, "index_a_token": round(found.index / of.num_tokens, 1)}
    return found.model_dump() | whole


def _encode(job: "PlanJob", of: Collection) -> dict[str, Any]:
    hours = encode_seconds(of, job.encoder_parameters, job.gpu_teraflops) / 3600
    return {"gpu_hours": _rounded(hours), "hours": _rounded(hours / job.gpus), "gpus": job.gpus}


def _build(job: "PlanJob", of: Collection) -> dict[str, Any]:
    seconds = build_seconds(of, job.num_iterations)
    hours = sum(seconds.values()) / 3600
    by_phase = {phase: _rounded(each / 3600) for phase, each in seconds.items()}
    return {
        "core_hours": _rounded(hours),
        "hours": _rounded(hours / job.build_nodes / job.node_cores),
        "memory_gb_a_worker": _rounded(build_memory(of, DOCS_PER_PART * of.num_tokens / of.num_docs, 1) / GB),
        "core_hours_by_stage": by_phase,
    }


def _search(job: "PlanJob", of: Collection, load: Load, found: Capacity) -> dict[str, Any]:
    service = found.service
    planning = _planning_nodes(job, found)
    return {
        "in_time": found.enough,
        "engine": found.engine,
        "groups": service.groups,
        "replicas": service.replicas,
        "nodes": found.nodes,
        "planning_nodes": planning,
        "total_nodes": found.nodes + planning,
        "memory_gb_a_group": _rounded(found.memory_a_group / GB),
        "memory_gb_with_residency_disk": _rounded(resident_memory(of) / GB),
        "utilisation": round(load.qps * service.utilisation_per_qps, 3),
        "core_ms_a_query": _rounded(found.work.total),
        "ms_simulated": found.percentiles,
        "ms_with": alternatives(found, load),
    }


def _gpu_search(job: "PlanJob", of: Collection) -> dict[str, Any]:
    """Groups and GPUs of one replica, and the least time of a pass, in which exact search reads every token once."""
    card = job.shard_gpus * job.gpu_memory_gb * GB
    fixed = GPU_RESERVED_BYTES + gpu_codec_bytes(of.num_centroids, of.dim)
    whole = gpu_collection_bytes(of)
    if fixed >= card:
        raise ConfigError(
            f"each group needs {fixed / GB:.2f} GB on its card beside the shards and has {card / GB:.2f}; "
            "raise --shard_gpus or --gpu_memory_gb, or lower --num_centroids"
        )
    groups = math.ceil(whole / (card - fixed))
    cards = math.ceil(groups / math.floor(1 / job.shard_gpus + 1e-9))
    found = predict_bytes(of)
    read = (found.codes + found.residuals + found.scales) / cards
    return {
        "groups": groups,
        "cards": cards,
        "shards": max(of.num_shards, groups),
        "memory_gb_a_group": _rounded((fixed + whole / groups) / GB),
        "memory_gb": _rounded(card / GB),
        "ms_a_pass_at_least": _rounded(1e3 * read / GB / job.gpu_gb_per_s),
        "dollars_a_month": _rounded(cards * job.gpu_price * HOURS_A_MONTH),
    }


def _cost(job: "PlanJob", of: Collection, found: Capacity) -> dict[str, Any]:
    sizes = predict_bytes(of)
    build_hours = sum(build_seconds(of, job.num_iterations).values()) / 3600
    encode_hours = encode_seconds(of, job.encoder_parameters, job.gpu_teraflops) / 3600
    return {
        "encode_dollars": _rounded(encode_hours * job.gpu_price),
        "build_dollars": _rounded(build_hours / job.node_cores * job.node_price),
        "search_dollars_a_month": _rounded((found.nodes + _planning_nodes(job, found)) * job.node_price * HOURS_A_MONTH),
        "storage_dollars_a_month": _rounded((sizes.index + sizes.embeddings) / GB * job.storage_price),
    }


def _planning_nodes(job: "PlanJob", found: Capacity) -> int:
    """Machines that only plan queries; 0 if the machines of the groups have time for it."""
    machines = math.ceil(job.qps * found.work.plan / 1000 / UTILISATION / job.node_cores)
    return machines if machines > 1 else 0


def _warnings(job: "PlanJob", of: Collection, found: Capacity) -> list[str]:
    """Advice that the numbers alone do not show."""
    warnings = []
    if not found.enough:
        p95 = found.percentiles["p95"]
        warnings.append(
            f"no number of groups is fast enough: p95 is {p95:g} ms with {found.service.groups} groups; "
            "raise --p95_ms or --node_cores, lower --num_centroids, or set faster --kernels"
        )
    if job.num_centroids is None and of.num_centroids != default_num_centroids(of.num_tokens):
        warnings.append(
            f"build with --clustering.num_centroids {of.num_centroids}: with the default number, planning a query would take too long"
        )
    gateways = _planning_nodes(job, found)
    if gateways:
        warnings.append(
            f"planning queries takes {gateways} machines at this load (included in the cost), and a service has one gateway: "
            f"run {gateways} services"
        )
    if found.memory_a_group > MEMORY_FRACTION * job.node_memory_gb * GB:
        warnings.append(
            f"a group's arrays fill more than {MEMORY_FRACTION:.0%} of the memory, so residuals stay on the disk (residency=disk); "
            "raise --node_memory_gb"
        )
    if of.num_docs > 1e7:
        warnings.append("for more than 10 million documents, encode with --docs_per_part 16384 to keep manifests small")
    return warnings


def _rounded(value: float) -> float:
    """Rounded to three significant digits."""
    return float(f"{value:.3g}")
