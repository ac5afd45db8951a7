"""The search service as a Ray Serve application.

On http://127.0.0.1:8000:

    serve run serving.app:build index=DIR [num_groups=4 ...]

Several indexes, each under /indexes/NAME:

    serve run serving.app:build indexes=DIR_OF_INDEXES

With arguments, host and port from a file:

    serve run serving/config/local.yaml

On any port:

    python -m serving --index DIR --port 8080

`serve run MODULE:build` has no option for the port. Ray Serve listens on 127.0.0.1:8000, or on the port of an earlier
`serve start --http-port 8080`. The arguments are the fields of ServeConfig. In an installed wheel the module is
`ray_lir_apps.serving.app`.
"""

import difflib
import math
import os
from typing import Any

import click
import ray
from pydantic import ValidationError
from ray import serve
from ray.serve import Application

from ray_lir import storage
from ray_lir.api.search import first_problem
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.distributed.room import Demand, check_room_before_start
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version
from ray_lir.kernels import VARIABLE, native
from ray_lir.planning.sizes import QUERIES_PER_PASS
from ray_lir.storage.manifest import check_file, files_of

from .gateway import Gateway, IndexesGateway
from .handlers.writes import WriteOptions
from .http.access import Access, read_tokens
from .indexes.catalog import Catalog
from .options import ONE_INDEX, SEVERAL_INDEXES, ServeConfig
from .workers.gpu import GpuShare
from .workers.query_encoder import QueryEncoder
from .workers.shard_server import ShardServer
from .workers.writer import MaintenanceOptions, Writer

DEFAULT_GROUPS = 4
ROOM_FIX = "lower these settings, replicas or num_groups, or add a machine"
ENCODER_CALLS = 8
"""Calls in progress, on average, at a query encoder before autoscaling adds a replica. It encodes concurrent calls in one batch."""
CONSTRUCTOR_TRIES = 2
"""Attempts to start a replica. The second is for a lost machine; a wrong checkpoint fails twice."""

HEALTH_CHECK_S = 2.0
"""Seconds between health checks of a replica, and so the delay before Ray Serve replaces a lost one."""


class ApplicationError(ConfigError, click.ClickException):
    """The application cannot be built. The `serve` command prints it as one line and exits with code 2."""

    exit_code = 2


def build(args: dict[str, Any]) -> Application:
    """Build the application for `serve run serving.app:build index=DIR`.

    Args:
        args: Fields of ServeConfig; values may be text.

    Raises:
        ApplicationError: An argument is unknown or wrong, the index is missing or damaged, or the cluster is too small.
    """
    try:
        config = parse(args)
        needs_gpu = bool(config.encoder_gpus or config.shard_gpus or (config.writes and config.writer_gpus))
        if needs_gpu or config.encoder_cpus + config.shard_cpus > 1:  # the defaults fit on any machine
            check_room_before_start(demands_of(config), ROOM_FIX, free_gpus=needs_gpu and not _is_serving())
        return application_of(config)
    except RayLirError as error:
        raise ApplicationError(str(error)) from None


def application_of(config: ServeConfig) -> Application:
    """Build the application without checking the cluster's resources.

    Raises:
        ApplicationError: The index is missing or damaged, or its encoder cannot be loaded.
    """
    try:
        if config.indexes is not None:
            access = access_of(config)
            if config.writes:
                _check_writes(config, access)
            return _bind_indexes(config, Catalog(config.indexes), access)
        version = latest_version(config.index) if config.version is None else config.version
        manifest = read_version(config.index, version)
        _check_index(config, manifest)
        access = access_of(config)
        if config.writes:
            _check_writes(config, access)
        _check_encoder(config, manifest)
        return _bind(config, version, manifest, access)
    except RayLirError as error:
        raise ApplicationError(str(error)) from None


def demands_of(config: ServeConfig) -> list[Demand]:
    """Resources that the service needs before it scales up."""
    if config.indexes is not None:
        return [Demand("service (encoder_cpus + shard_cpus, encoder_gpus)", _resources(config))]
    groups = config.num_groups or 1
    shard_server = Demand(
        "shard group (shard_cpus, shard_gpus)",
        {"CPU": config.shard_cpus, "GPU": config.shard_gpus},
        groups * config.replicas,
        config.replicas if spread_over_cards(config) else 1,
    )
    writer = Demand("writer (writer_cpus, writer_gpus)", {"CPU": config.writer_cpus, "GPU": config.writer_gpus})
    return [
        *([writer] if config.writes else []),
        Demand("query encoder (encoder_gpus, encoder_cpus)", {"CPU": config.encoder_cpus, "GPU": config.encoder_gpus}, config.replicas),
        shard_server,
    ]


def _is_serving() -> bool:
    """Whether Ray Serve runs an application: its replicas may hold the GPUs that this one gets."""
    return ray.is_initialized() and bool(serve.status().applications)


def parse(args: dict[str, Any]) -> ServeConfig:
    """Return the configuration that arguments describe, with absolute paths.

    Raises:
        ConfigError: An argument is unknown, missing or wrong.
    """
    for name in args:
        if name not in ServeConfig.model_fields and (near := difflib.get_close_matches(name, ServeConfig.model_fields, n=1)):
            raise ConfigError(f"unknown argument {name}; did you mean {near[0]}?")
    try:
        config = ServeConfig.model_validate(args)
    except ValidationError as error:
        raise ConfigError(first_problem(error.errors(), ServeConfig)) from None
    _check_one_or_several(config)
    for root in _roots(config):
        if not storage.is_local(root) and not config.cache:
            raise ConfigError(
                f"{root} is not on a disk; set cache to a local folder for copies of its shards, "
                "or copy the index to a disk that every machine of the cluster mounts"
            )
    if config.max_replicas is not None and config.max_replicas < config.replicas:
        raise ConfigError(f"max_replicas is {config.max_replicas}, less than replicas ({config.replicas}); raise it, or leave it out")
    cache = storage.absolute(config.cache) if config.cache else None
    update: dict[str, Any] = {"cache": cache, "kernels": _kernels_of(config)}
    if isinstance(config.indexes, dict):
        update["indexes"] = {name: storage.absolute(root) for name, root in config.indexes.items()}
    elif config.indexes is not None:
        update["indexes"] = storage.absolute(config.indexes)
    else:
        update["index"] = storage.absolute(config.index)
    return config.model_copy(update=update)


def _check_one_or_several(config: ServeConfig) -> None:
    if not config.index and config.indexes is None:
        raise ConfigError("index is required; set it to the folder of an index, or set indexes to a folder of indexes")
    if config.index and config.indexes is not None:
        raise ConfigError("index and indexes are both set; set index for one index, or indexes for several")
    names, fix = (SEVERAL_INDEXES, "set indexes instead of index") if config.index else (ONE_INDEX, "serve the index alone with index=DIR")
    for name in names:
        if getattr(config, name) != ServeConfig.model_fields[name].default:
            kind = "several indexes" if config.index else "one index"
            raise ConfigError(f"{name} is a setting of a service of {kind}; leave it out, or {fix}")


def _roots(config: ServeConfig) -> list[str]:
    if isinstance(config.indexes, dict):
        return list(config.indexes.values())
    return [config.index if config.indexes is None else config.indexes]


def _kernels_of(config: ServeConfig) -> str:
    """The kernels of the shard groups. Raises ConfigError if they do not fit `shard_gpus`."""
    in_environment = config.kernels == "auto" and os.environ.get(VARIABLE, "").strip()
    kernels = in_environment or config.kernels
    if kernels == "cuda" and not config.shard_gpus:
        named = f"the environment variable {VARIABLE}" if in_environment else "kernels"
        raise ConfigError(f"{named} is cuda, but no GPU is reserved; set shard_gpus to 1, or to a fraction to share a card")
    if config.shard_gpus and kernels not in ("auto", "cuda"):
        raise ConfigError(f"kernels {kernels} compute on CPUs; leave out shard_gpus, or set kernels to cuda")
    return "cuda" if config.shard_gpus else config.kernels


def gpu_share(config: ServeConfig) -> GpuShare | None:
    """Return the part of a GPU for each replica of a shard group; None if groups search on CPUs."""
    return GpuShare(config.shard_gpus, config.gpu_memory_gb) if config.shard_gpus else None


def number_of_groups(config: ServeConfig, manifest: IndexManifest) -> int:
    """Return the number of shard groups of a configuration."""
    return config.num_groups or min(len(manifest.shards), DEFAULT_GROUPS)


def access_of(config: ServeConfig) -> Access:
    """Return the tokens, roles and web origins of a configuration.

    Raises:
        ConfigError: The token file is not valid.
    """
    grants = read_tokens(storage.absolute(config.tokens)) if config.tokens else {}
    if config.indexes is None and any(grant.indexes is not None for grant in grants.values()):
        raise ConfigError(f"{config.tokens} limits a token to some indexes, but the service has one; remove that limit, or set indexes")
    return Access(grants=grants, origins=config.origins)


def _check_index(config: ServeConfig, manifest: IndexManifest) -> None:
    if not manifest.contract.weights_digest:
        raise ConfigError(f"{config.index} was built from embeddings of an unknown encoder, which cannot encode queries; use Searcher")
    num_shards = len(manifest.shards)
    if config.num_groups and config.num_groups > num_shards:
        raise ConfigError(
            f"num_groups is {config.num_groups}, but {config.index} has {num_shards} shards; set num_groups to at most {num_shards}"
        )
    for file in files_of(manifest):
        check_file(config.index, file)
    if gpu := gpu_share(config):
        gpu.check_fits(manifest, number_of_groups(config, manifest))


def _check_writes(config: ServeConfig, access: Access) -> None:
    if not any(grant.role != "read" for grant in access.grants.values()):
        raise ConfigError("writes is true, but no token may write; set tokens to a token file with tokens under write or admin")
    if config.index:
        storage.check_writable(config.index)


def _check_encoder(config: ServeConfig, manifest: IndexManifest) -> None:
    """Loads the checkpoint once here, because errors in replicas are buried in tracebacks of Ray Serve."""
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load, so other mistakes are reported first

    checkpoint = config.encoder or manifest.contract.checkpoint
    Encoder.for_contract(manifest.contract, EncoderConfig(checkpoint=checkpoint, device="cpu"))


def scaling(config: ServeConfig, calls: int) -> dict[str, Any]:
    """Options of a deployment: a fixed number of replicas, or autoscaling to `calls` calls in progress at each."""
    if config.max_replicas is None:
        return {"num_replicas": config.replicas}
    bounds = {"min_replicas": config.replicas, "max_replicas": config.max_replicas}
    return {"autoscaling_config": {**bounds, "target_ongoing_requests": calls}}


def spread_over_cards(config: ServeConfig) -> dict[str, Any]:
    """Options that put the replicas of a group on different GPUs.

    Fractions above one half never share a GPU. Ray would put two smaller fractions on one GPU, so such replicas go to different machines.
    """
    shares = 0 < config.shard_gpus <= 0.5 and max(config.replicas, config.max_replicas or 0) > 1
    return {"max_replicas_per_node": 1} if shares else {}


def encoder_kernels(config: ServeConfig) -> str:
    """Return the kernels that plan queries: those of the groups if the query encoder has a GPU too, and otherwise the CPU's."""
    if config.encoder_gpus or not config.shard_gpus:
        return config.kernels
    return "native" if native.available() else "reference"


def hedge_percentile(config: ServeConfig) -> float | None:
    """The percentile after which calls are hedged; None if hedging is disabled or there is no second replica."""
    return config.hedge_percentile if max(config.replicas, config.max_replicas or 0) > 1 and config.hedge_percentile < 100 else None


def _resources(config: ServeConfig) -> dict[str, float]:
    """Resources of the process that holds several indexes."""
    return {"CPU": config.encoder_cpus + config.shard_cpus, "GPU": config.encoder_gpus}


def _bind_indexes(config: ServeConfig, catalog: Catalog, access: Access) -> Application:
    """The application over several indexes: one process opens them as requests need them."""
    catalog.check()
    resources = _resources(config)
    gateway = serve.deployment(
        ray_actor_options={"num_cpus": resources["CPU"], "num_gpus": resources["GPU"]},
        max_ongoing_requests=100 * config.max_requests,
        **_options(config),
    )(IndexesGateway)
    return gateway.bind(config, access)


def _options(config: ServeConfig) -> dict[str, Any]:
    """Options of every deployment."""
    return {
        "max_constructor_retry_count": CONSTRUCTOR_TRIES,
        "graceful_shutdown_timeout_s": config.timeout_s + 5,  # requests in progress may finish
        "graceful_shutdown_wait_loop_s": 0.5,
        "health_check_period_s": HEALTH_CHECK_S,
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }


def _bind(config: ServeConfig, version: int, manifest: IndexManifest, access: Access) -> Application:
    num_groups = number_of_groups(config, manifest)
    options = _options(config)
    replicas: dict[str, Any] = {"max_ongoing_requests": config.max_ongoing_requests, **options}
    encoder_resources = {"num_cpus": config.encoder_cpus, "num_gpus": config.encoder_gpus}
    encoder = serve.deployment(ray_actor_options=encoder_resources, **scaling(config, ENCODER_CALLS), **replicas)(QueryEncoder)
    threads = max(1, math.floor(config.shard_cpus))
    calls = QUERIES_PER_PASS // 4 if config.shard_gpus else 2 * threads  # each thread has one call that it computes and one that waits
    shard_resources = {"num_cpus": config.shard_cpus, "num_gpus": config.shard_gpus}
    shard_server = serve.deployment(ray_actor_options=shard_resources, **spread_over_cards(config), **scaling(config, calls), **replicas)(
        ShardServer
    )
    shard_groups = {
        f"ShardGroup-{group}": shard_server.options(name=f"ShardGroup-{group}").bind(
            config.index, version, group, num_groups, config.shard_cpus, config.verify, config.cache, config.kernels, gpu_share(config)
        )
        for group in range(num_groups)
    }
    # The gateway must receive excess requests to answer them with 429; Ray Serve itself would queue them without a reply.
    gateway = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100 * config.max_requests, **options)(Gateway)
    return gateway.bind(
        config.index,
        version,
        encoder.bind(config.index, version, config.encoder, config.verify, encoder_kernels(config), config.kernels),
        shard_groups,
        config.timeout_s,
        config.max_requests,
        hedge_percentile(config),
        max(config.replicas, config.max_replicas or 0) == 1,
        access,
        _writer(config, options),
        write_options(config, version),
    )


def _writer(config: ServeConfig, options: dict[str, Any]) -> Application | None:
    """The deployment that publishes writes; None if the service accepts none."""
    if not config.writes:
        return None
    resources = {"num_cpus": config.writer_cpus, "num_gpus": config.writer_gpus}
    maintenance = MaintenanceOptions(config.max_deltas, config.compact_fraction, config.keep_versions)
    return serve.deployment(ray_actor_options=resources, **options)(Writer).bind(config.index, config.encoder, maintenance)


def write_options(config: ServeConfig, version: int) -> WriteOptions | None:
    """Return the settings of writes of a service that starts with a version; None if the service accepts none."""
    if not config.writes:
        return None
    return WriteOptions(config.visible_s, config.max_unpublished, pinned=version != latest_version(config.index))
