"""Checks that a Ray cluster can run what a job or a service starts. Ray itself would wait for ever without a message."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private import ray_constants
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.state import state
from ray.experimental.internal_kv import _internal_kv_get

from ray_lir.base.errors import ConfigError

logger = logging.getLogger(__name__)

STATUS_S = 5.0
"""Seconds to wait for the first report of the autoscaler; a new cluster writes it after some seconds."""
FIXED_NODES = ("node_", "local.cluster.node")
"""Prefixes of the node types of machines that no autoscaler started."""


@dataclass(frozen=True)
class Demand:
    """Processes that must run at the same time.

    Attributes:
        name: Name of one process, for messages.
        resources: Resources of each process, by Ray's names: CPU, GPU.
        count: Number of processes.
    """

    name: str
    resources: Mapping[str, float]
    count: int = 1


def check_room(demands: Sequence[Demand], fix: str) -> None:
    """Check that the cluster can run all demands at once. If it cannot yet but can grow, log what it waits for.

    Args:
        demands: Processes that must run at the same time.
        fix: End of the error message: which settings to change.

    Raises:
        ConfigError: It cannot; the message names what is missing.
    """
    problem = what_is_missing(demands, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if problem is None:
        return
    if not can_grow():
        raise ConfigError(f"{problem}; {fix}")
    logger.info("%s; waiting for the autoscaler to add machines", problem)


def what_is_missing(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """Return why these machines cannot run all demands at once, as part of a sentence; None if they can."""
    for name in ("GPU", "CPU"):
        total_here = sum(node.get(name, 0) for node in nodes)
        largest = max((node.get(name, 0) for node in nodes), default=0)
        for demand in demands:
            needed = demand.resources.get(name, 0)
            if needed > largest:
                where = f"has {total_here:g}" if total_here == largest else f"has {total_here:g}, and no machine more than {largest:g}"
                return f"each {demand.name} needs {needed:g} {name}s, but the Ray cluster {where}"
        total = sum(demand.count * demand.resources.get(name, 0) for demand in demands)
        if total > total_here + 1e-9:
            parts = ", ".join(
                f"{demand.count} x {demand.name} with {demand.resources[name]:g}" for demand in demands if demand.resources.get(name)
            )
            return f"{total:g} {name}s are needed ({parts}), but the Ray cluster has {total_here:g}"
    return None


def can_grow() -> bool:
    """Return whether an autoscaler can add machines to the cluster."""
    config = state.get_cluster_config()
    if config is not None and config.node_group_configs:
        return True
    deadline = time.monotonic() + STATUS_S
    while not (status := _internal_kv_get(ray_constants.DEBUG_AUTOSCALING_STATUS)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    report = json.loads(status).get("autoscaler_report") or {}
    types = [*(report.get("active_nodes") or {}), *(report.get("pending_launches") or {})]
    return any(not kind.startswith(FIXED_NODES) for kind in types)


def check_room_before_start(demands: Sequence[Demand], fix: str) -> None:
    """`check_room` before this process is connected to Ray: checks the cluster that it would connect to, or this machine.

    Args:
        demands: Processes that must run at the same time.
        fix: End of the error message: which settings to change.

    Raises:
        ConfigError: The demands do not fit; the message names what is missing.
    """
    if ray.is_initialized():
        check_room(demands, fix)
        return
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError):  # no cluster is running, so a local one will start
        here = {"CPU": os.cpu_count() or 1, "GPU": NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()}
        if problem := what_is_missing(demands, [here]):
            raise ConfigError(f"{problem}; {fix}") from None
        return
    try:
        check_room(demands, fix)
    finally:
        ray.shutdown()
