"""The options of the service, apart from the application, so that their help needs no Ray."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ray_lir.base.config import Config


def _split(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


class ServeConfig(Config):
    """Arguments of the application."""

    index: str
    """Folder of an index, on a disk that every machine of the cluster sees under this path; or its URL, with `cache`."""
    version: int | None = None
    """Version of the index. None: the latest when the service starts; it stays with that one."""
    encoder: str | None = None
    """Where the encoder's checkpoint lies now. None: where it was when the index was made."""
    num_groups: int | None = Field(None, ge=1)
    """Deployments that the index's shards are spread over. None: one a shard, four at most."""
    cache: str | None = None
    """Folder on every machine's own disk for copies of the shards of an index that lies on an object store."""
    replicas: int = Field(1, ge=1)
    """Copies of the query encoder and of each shard group."""
    max_replicas: int | None = Field(None, ge=1)
    """Copies that each of them may grow to while calls wait for it. None: `replicas`."""
    encoder_cpus: float = Field(0.5, ge=0)
    """CPUs reserved for each query encoder; it computes with as many threads, at least one."""
    encoder_gpus: float = Field(0, ge=0)
    """GPUs reserved for each query encoder."""
    shard_cpus: float = Field(0.1, ge=0)
    """CPUs reserved for each shard group; it computes with as many threads, at least one. So little is the default for
    the application to start on a machine with few."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that a replica takes in at a time; others wait before it."""
    max_requests: int = Field(64, ge=1)
    """Requests that the gateway works on at a time; more are answered with 429 at once."""
    timeout_s: float = Field(30, gt=0)
    """Seconds that a request may take."""
    hedge_percentile: float = Field(95, ge=0, le=100)
    """Where groups have more than one replica: a call that takes longer than this percentile of the last ones like it is made
    again, on another replica, and the first answer counts. 100: never."""
    verify: bool = True
    """Compare the digest of every file when a version of the index is opened."""
    tokens: str | None = None
    """Token file: YAML with lists of bearer tokens under `read` and `admin`. None: everybody may read, nobody may administrate,
    and the service listens on this machine alone."""
    origins: Annotated[tuple[str, ...], BeforeValidator(_split)] = ()
    """Web origins whose pages may call the service; separated by commas."""


class Options(ServeConfig):
    """Starts the search service on this machine (or on the cluster of RAY_ADDRESS) and serves until it is interrupted."""

    host: str = "127.0.0.1"
    """Address to listen on; any other than this machine's own needs tokens."""
    port: int = Field(8000, ge=1, le=65535)
