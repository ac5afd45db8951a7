"""The search service as a Serve application.

    serve run serving.app:build index=DIR [num_groups=4 ...]      on http://127.0.0.1:8000
    serve run serving/config/local.yaml                           a file with the same arguments, host and port
    python -m serving --index DIR --port 8080                     the same with a port of your own

`serve run MODULE:build` has no option for the port: Serve listens on 127.0.0.1:8000, or as `serve start --http-port 8080`
began it on a running cluster. The arguments are the fields of ServeConfig. Installed, the module is ray_lir_apps.serving.app.
"""

import difflib
from typing import Any

import click
from pydantic import Field, ValidationError
from ray import serve
from ray.serve import Application

from ray_lir.config import Config, EncoderConfig
from ray_lir.errors import ConfigError, RayLirError
from ray_lir.formats import storage
from ray_lir.formats.manifest import IndexManifest, check_file
from ray_lir.search import latest_version, read_version

from .api import first_problem
from .gateway import Gateway
from .query_encoder import QueryEncoder
from .shard_server import ShardServer, split_shards

DEFAULT_GROUPS = 4
CONSTRUCTOR_TRIES = 2
"""A wrong checkpoint stays wrong; one more try is for a machine that was lost meanwhile."""


class ServeConfig(Config):
    """Arguments of the application."""

    index: str
    """Folder of an index, on a disk that every machine of the cluster sees under this path."""
    version: int | None = None
    """Version of the index. None: the latest when the service starts; it stays with that one."""
    encoder: str | None = None
    """Where the encoder's checkpoint lies now. None: where it was when the index was made."""
    num_groups: int | None = Field(None, ge=1)
    """Deployments that the index's shards are spread over. None: one a shard, four at most."""
    replicas: int = Field(1, ge=1)
    """Copies of the query encoder and of each shard group."""
    encoder_cpus: float = Field(0.5, ge=0)
    """CPUs reserved for each query encoder; it computes with as many threads, at least one."""
    encoder_gpus: float = Field(0, ge=0)
    """GPUs reserved for each query encoder."""
    shard_cpus: float = Field(0.1, ge=0)
    """CPUs reserved for each shard group; it computes with as many threads, at least one. So little is the default for
    the application to start on a machine with few."""
    max_ongoing_requests: int = Field(64, ge=1)
    """Requests that a replica takes in at a time; others wait before it."""
    timeout_s: float = Field(30, gt=0)
    """Seconds that a search may take."""


class ApplicationError(ConfigError, click.ClickException):
    """The application cannot be built. The `serve` command prints it as one line and exits with code 2."""

    exit_code = 2


def build(args: dict[str, Any]) -> Application:
    """The application that `serve run serving.app:build index=DIR` starts.

    Args:
        args: fields of ServeConfig; values may be text.

    Raises:
        ApplicationError: if an argument is unknown or wrong, or the index is not there or damaged.
    """
    try:
        config = parse(args)
        version = latest_version(config.index) if config.version is None else config.version
        manifest = read_version(config.index, version)
        _check_index(config, manifest)
        _check_encoder(config, manifest)
        return _bind(config, version, manifest)
    except RayLirError as error:
        raise ApplicationError(str(error)) from None


def parse(args: dict[str, Any]) -> ServeConfig:
    """Raises ConfigError if an argument is unknown, missing or wrong."""
    for name in args:
        if name not in ServeConfig.model_fields and (near := difflib.get_close_matches(name, ServeConfig.model_fields, n=1)):
            raise ConfigError(f"unknown argument {name}; did you mean {near[0]}?")
    try:
        config = ServeConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(first_problem(error.errors(), ServeConfig)) from None
    if not storage.is_local(config.index):
        raise ConfigError(f"{config.index} is not on a local disk; copy the index to one that every machine of the cluster sees")
    return config.model_copy(update={"index": storage.absolute(config.index)})


def _check_index(config: ServeConfig, manifest: IndexManifest) -> None:
    if not manifest.contract.weights_digest:
        raise ConfigError(f"{config.index} was made of embeddings from elsewhere, so no encoder for its queries is known; use Searcher")
    num_shards = len(manifest.shards)
    if config.num_groups and config.num_groups > num_shards:
        raise ConfigError(
            f"num_groups is {config.num_groups}, but {config.index} has {num_shards} shards; choose no more groups than shards"
        )
    for file in (manifest.codec, manifest.cluster_sizes, *(file for shard in manifest.shards for file in shard.files)):
        check_file(config.index, file)


def _check_encoder(config: ServeConfig, manifest: IndexManifest) -> None:
    """Loads the checkpoint once, here: a mistake in a replica would be told between the lines of several tracebacks."""
    from ray_lir.models.encoder import Encoder  # torch takes seconds to load; other mistakes are told before

    checkpoint = config.encoder or manifest.contract.checkpoint
    Encoder.for_contract(manifest.contract, EncoderConfig(checkpoint=checkpoint, device="cpu"))


def _bind(config: ServeConfig, version: int, manifest: IndexManifest) -> Application:
    groups = split_shards(manifest.shards, config.num_groups or min(len(manifest.shards), DEFAULT_GROUPS))
    options: dict[str, Any] = {
        "max_ongoing_requests": config.max_ongoing_requests,
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "logging_config": {"enable_access_log": False},
    }
    encoder_resources = {"num_cpus": config.encoder_cpus, "num_gpus": config.encoder_gpus}
    encoder = serve.deployment(num_replicas=config.replicas, ray_actor_options=encoder_resources, **options)(QueryEncoder)
    shard_resources = {"num_cpus": config.shard_cpus}
    shard_server = serve.deployment(num_replicas=config.replicas, ray_actor_options=shard_resources, **options)(ShardServer)
    names = [f"ShardGroup-{number}" for number in range(len(groups))]
    shard_groups = {
        name: shard_server.options(name=name).bind(config.index, version, shards.start, shards.stop, config.shard_cpus)
        for name, shards in zip(names, groups, strict=True)
    }
    first_documents = [manifest.shards[shards.start].first_document for shards in groups]
    gateway = serve.deployment(ray_actor_options={"num_cpus": 0}, **options)(Gateway)
    return gateway.bind(
        config.index, version, encoder.bind(config.index, version, config.encoder), shard_groups, first_documents, config.timeout_s
    )
