"""The settings of the service. They are separate from the application, so that `--help` does not load Ray."""

import os
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_lir.base.config import Config
from ray_lir.base.residency_names import Residency


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _mapping(value: Any) -> Any:
    """`a=path,b=path` as a dict. Text without an equals sign, and a folder with one in its name, stay text."""
    if not isinstance(value, str) or "=" not in value or os.path.isdir(value):
        return value
    pairs = [part.partition("=") for part in _split(value)]
    if any(not (name and path) for name, _, path in pairs):
        raise ValueError("should be a folder, or name=path,name=path")
    return {name.strip(): path.strip() for name, _, path in pairs}


class ServeConfig(Config):
    """Arguments of the Ray Serve application."""

    index: str = ""
    """Folder of the index, at the same path on every machine; or a URL, together with `cache`. Required, unless `indexes` is set."""
    version: int | None = None
    """Version of the index to serve first. None: the latest one when the service starts. Later versions are only loaded by
    themselves with `writes`."""
    encoder: str | None = None
    """Checkpoint folder of the query encoder, if it has moved. None: the folder that the index records."""
    num_groups: int | None = Field(None, ge=1)
    """Number of shard groups; the shards are distributed by size. None: one a shard, at most 4."""
    cache: str | None = None
    """Folder on each machine's local disk for copies of shards, if the index is on an object store."""
    replicas: int = Field(1, ge=1)
    """Replicas of the query encoder and of each shard group."""
    max_replicas: int | None = Field(None, ge=1)
    """Number of replicas that each of them may grow to while calls wait. None: `replicas`, no autoscaling."""
    encoder_cpus: float = Field(0.5, ge=0)
    """CPUs reserved for each query encoder. It computes with that many threads, at least one."""
    encoder_gpus: float = Field(0, ge=0)
    """GPUs reserved for each query encoder."""
    shard_cpus: float = Field(0.1, ge=0)
    """CPUs reserved for each shard group. It computes with that many threads, at least one. The default is low so that the service
    starts on a small machine."""
    shard_gpus: float = Field(0, ge=0, le=1)
    """GPUs reserved for each replica of a shard group: 1, or a fraction to share a GPU. The group then searches with `cuda` kernels."""
    kernels: str = "auto"
    """Kernels of the shard groups. auto: cuda with `shard_gpus`, otherwise the fastest set of the CPU. native and reference run on CPUs."""
    gpu_memory_gb: float | None = Field(None, gt=0)
    """Memory of a GPU in GB (10^9 bytes). A group that needs more than its fraction of a GPU is refused. None: what the GPU
    reports; without a GPU on the machine that starts the service, each replica checks its own."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Concurrent Ray Serve calls of a replica; further calls wait."""
    max_requests: int = Field(64, ge=1)
    """Concurrent requests of the gateway; further requests get status 429."""
    timeout_s: float = Field(30, gt=0)
    """Longest time of a request, in seconds."""
    hedge_percentile: float = Field(95, ge=0, le=100)
    """With several replicas: a call slower than this percentile of recent similar calls is sent again to another replica, and the
    first result counts. 100 disables this."""
    residency: Residency = "auto"
    """memory: the index is expected to fit in memory. disk: residuals stay on the disk, and those of the documents to rescore are
    prefetched; answers are the same. auto: disk if the whole index is larger than three quarters of the machine's memory or of the
    container's limit."""
    verify: bool = True
    """Compare the sha256 of every file when a version of the index is opened."""
    indexes: Annotated[str | dict[str, str] | None, BeforeValidator(_mapping)] = None
    """Several indexes in one service: a folder that contains their folders, or name=path,name=path. Their routes are /indexes/NAME/..."""
    idle_s: float = Field(600, gt=0)
    """With `indexes`: seconds without a request after which an index is closed. The next request opens it again."""
    memory_gb: float | None = Field(None, gt=0)
    """With `indexes`: memory of all open indexes in GB (10^9 bytes), estimated from their manifests, without encoders. Above it, the index
    that was not used for the longest time is closed. None: half of the machine's memory."""
    writes: bool = False
    """Accept writes over HTTP. A writer publishes them as new versions of the index, and the service follows the versions."""
    visible_s: float = Field(5, gt=0, le=3600)
    """With `writes`: seconds within which searches should see a write."""
    max_unpublished: int = Field(10_000, ge=1)
    """With `writes`: documents and deletions that may wait for publication; further writes get status 429."""
    max_deltas: int = Field(8, ge=1)
    """With `writes`: delta shards above which the writer merges shards in the background."""
    compact_fraction: float = Field(0.2, gt=0, le=1)
    """With `writes`: fraction of deleted documents or of delta shards above which the writer merges all shards."""
    keep_versions: int = Field(10, ge=2)
    """With `writes`: number of newest versions of the index that the writer keeps."""
    writer_cpus: float = Field(0.5, ge=0)
    """With `writes`: CPUs reserved for the writer, which encodes documents. It computes with that many threads, at least one."""
    writer_gpus: float = Field(0, ge=0)
    """With `writes`: GPUs reserved for the writer."""
    tokens: str | None = None
    """Token file: YAML with lists of bearer tokens under `read`, `write` and `admin`, each with or without limits. None: everyone may
    read, no one may write or administrate, and the service listens on this machine only."""
    origins: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Web origins with pages that may call the service, separated by commas."""


ONE_INDEX = (
    "writer_cpus",
    "writer_gpus",
    "version",
    "num_groups",
    "replicas",
    "max_replicas",
    "shard_gpus",
    "gpu_memory_gb",
    "hedge_percentile",
)
"""Settings of a service of one index."""
SEVERAL_INDEXES = ("idle_s", "memory_gb")
"""Settings of a service of several indexes."""


class Options(ServeConfig):
    """Starts the search service in this process, on Ray Serve on this machine, or on the cluster of RAY_ADDRESS, and serves until it is
    interrupted."""

    host: str = "127.0.0.1"
    """Address to listen on. An address that other machines can reach requires `tokens`."""
    port: int = Field(8000, ge=1, le=65535)
    """Port to listen on."""
    where: Literal["auto", "ray", "here"] = "auto"
    """ray: run on Ray Serve, with a process for each worker. here: run in this process, with one replica of each worker and without GPUs.
    auto: here, unless RAY_ADDRESS names a cluster, writes are accepted, or replicas or GPUs are requested."""

    @property
    def needs_ray(self) -> str:
        """The first setting that needs Ray Serve; empty if there is none."""
        if os.environ.get("RAY_ADDRESS", "local") not in ("", "local"):
            return "RAY_ADDRESS"
        needed = {
            "writes": self.writes,
            "replicas": self.replicas > 1,
            "max_replicas": self.max_replicas is not None,
            "encoder_gpus": self.encoder_gpus > 0,
            "shard_gpus": self.shard_gpus > 0,
        }
        return next((name for name, is_needed in needed.items() if is_needed), "")
