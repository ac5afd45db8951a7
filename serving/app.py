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

import math
from typing import Any

import click
import ray
from ray import serve
from ray.serve import Application

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.distributed.room import Demand, check_room_before_start
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version
from ray_lir.kernels import native
from ray_lir.planning.sizes import QUERIES_PER_PASS

from .gateway import Gateway, IndexesGateway
from .handlers.writes import WriteOptions
from .http.access import Access
from .indexes.catalog import Catalog
from .options import ServeConfig
from .settings import access_of, check_index, check_writes, parse, shard_groups
from .workers.query_encoder import QueryEncoder
from .workers.shard_server import ShardServer
from .workers.writer import MaintenanceOptions, Writer

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
                check_writes(config, access)
            return _bind_indexes(config, Catalog(config.indexes), access)
        version = latest_version(config.index) if config.version is None else config.version
        manifest = read_version(config.index, version)
        check_index(config, manifest)
        access = access_of(config)
        if config.writes:
            check_writes(config, access)
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


def _check_encoder(config: ServeConfig, manifest: IndexManifest) -> None:
    """Loads the checkpoint once here, because errors in replicas are buried in tracebacks of Ray Serve."""
    from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder

    checkpoint = config.encoder or manifest.contract.checkpoint
    if NumpyQueryEncoder.load(manifest.contract, checkpoint):
        return
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

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
    groups = {name: shard_server.options(name=name).bind(*arguments) for name, arguments in shard_groups(config, version, manifest).items()}
    # The gateway must receive excess requests to answer them with 429; Ray Serve itself would queue them without a reply.
    gateway = serve.deployment(ray_actor_options={"num_cpus": 0}, max_ongoing_requests=100 * config.max_requests, **options)(Gateway)
    return gateway.bind(
        config.index,
        version,
        encoder.bind(
            config.index,
            version,
            config.encoder,
            config.verify,
            encoder_kernels(config),
            config.kernels,
            residency=config.residency,
        ),
        groups,
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
