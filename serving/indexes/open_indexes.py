"""Opens a service of several indexes in this process."""

import math
from importlib import import_module

from ray_lir.base.memory_limit import memory_limit

from ..handlers.writes import WriteOptions
from ..metrics import Metrics
from ..options import ServeConfig
from ..workers.writer import MaintenanceOptions
from .catalog import Catalog
from .fair_slots import FairSlots
from .indexes import Indexes
from .local_service import LocalServices


def open_indexes(config: ServeConfig, metrics: Metrics) -> Indexes:
    """Return the indexes of a configuration. Each one opens with its first request.

    Args:
        config: Settings of the service; `indexes` is set.
        metrics: Metrics of the process.

    Raises:
        ConfigError: A name is invalid, or there is no index.
    """
    assert config.indexes is not None
    catalog = Catalog(config.indexes)
    catalog.check()
    import_module("ray_lir.encoder.encoder")  # loading torch takes seconds, which the first request would wait for
    threads = max(1, math.floor(config.shard_cpus))
    services = LocalServices(
        config.encoder,
        config.verify,
        config.cache,
        config.kernels,
        threads,
        config.timeout_s,
        config.max_requests,
        FairSlots(threads + max(1, math.floor(config.encoder_cpus))),
        metrics,
        WriteOptions(config.visible_s, config.max_unpublished) if config.writes else None,
        MaintenanceOptions(config.max_deltas, config.compact_fraction, config.keep_versions),
        residency=config.residency,
    )
    max_bytes = memory_limit() / 2 if config.memory_gb is None else 1e9 * config.memory_gb
    return Indexes(catalog, services.open, config.idle_s, max_bytes, metrics)
