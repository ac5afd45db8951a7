"""Checks that a Ray cluster can run what a job or a service starts. Without these checks Ray would wait forever, without a message."""

import json
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray._private import ray_constants
from ray._private.accelerators.nvidia_gpu import NvidiaGPUAcceleratorManager
from ray._private.state import available_resources_per_node, state
from ray.experimental.internal_kv import _internal_kv_get

from ray_lir.base.errors import ConfigError

logger = logging.getLogger(__name__)

STATUS_S = 5.0
"""Seconds to wait for the first report of the autoscaler; a new cluster writes it after some seconds."""
GPU_PATIENCE_S = 20.0
"""Seconds to wait for GPUs that other processes hold. The GPUs of a job that just ended are free within seconds."""
FIXED_NODES = ("node_", "local.cluster.node")
"""Prefixes of the node types of machines that no autoscaler started."""


@dataclass(frozen=True)
class Demand:
    """Processes that must run at the same time.

    Attributes:
        name: Name of one process, for messages.
        resources: Resources of each process, by Ray's names: CPU, GPU.
        count: Number of processes.
        machines: Number of machines that the processes must be spread over, at least.
    """

    name: str
    resources: Mapping[str, float]
    count: int = 1
    machines: int = 1


def check_room(demands: Sequence[Demand], fix: str) -> None:
    """Check that the cluster can run all demands at once. If it is too small but can grow, log the missing resources.

    Args:
        demands: Processes that must run at the same time.
        fix: End of the error message: which settings to change.

    Raises:
        ConfigError: The cluster is too small and cannot grow; the message names the missing resources.
    """
    problem = what_is_missing(demands, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if problem is None:
        return
    if not can_grow():
        raise ConfigError(f"{problem}; {fix}")
    logger.info("%s; waiting for the autoscaler to add machines", problem)


def check_free_gpus(demands: Sequence[Demand], fix: str) -> None:
    """Check that the GPUs of all demands are free now. Ray itself would wait for them without a message.

    Waits `GPU_PATIENCE_S` for GPUs that other processes hold. If the cluster can grow, it logs that the demands wait, and returns.

    Args:
        demands: Processes that must run at the same time.
        fix: End of the error message: which settings to change.

    Raises:
        ConfigError: Other processes hold the GPUs.
    """
    gpus = [Demand(each.name, {"GPU": each.resources.get("GPU", 0)}, each.count, each.machines) for each in demands]
    deadline = time.monotonic() + GPU_PATIENCE_S
    while problem := what_is_missing(gpus, list(available_resources_per_node().values()), "free"):
        if can_grow():
            logger.info("%s; waiting for the autoscaler to add machines", problem)
            return
        if time.monotonic() > deadline:
            raise ConfigError(f"{problem}; wait for the jobs and services that hold the others, or {fix}")
        time.sleep(0.5)


def what_is_missing(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]], kind: str = "") -> str | None:
    """Return why these machines cannot run all demands at once, as part of a sentence; None if they can.

    Args:
        demands: Processes that must run at the same time.
        nodes: Resources of each machine.
        kind: Word for the message that says which resources these are: `free`, or nothing for all.
    """
    kind = f" {kind}" if kind else ""
    for name in ("GPU", "CPU"):
        total_here = sum(node.get(name, 0) for node in nodes)
        largest = max((node.get(name, 0) for node in nodes), default=0)
        for demand in demands:
            needed = demand.resources.get(name, 0)
            if needed > largest:
                more = "" if total_here == largest else f", and no machine more than {largest:g}"
                where = f"has {total_here:g}{kind}{more}"
                return f"each {demand.name} needs {needed:g} {name}s, but the Ray cluster {where}"
        total = sum(demand.count * demand.resources.get(name, 0) for demand in demands)
        if total > total_here + 1e-9:
            parts = ", ".join(
                f"{demand.count} x {demand.name} with {demand.resources[name]:g}" for demand in demands if demand.resources.get(name)
            )
            return f"{total:g} {name}s are needed ({parts}), but the Ray cluster has {total_here:g}{kind}"
    for demand in demands:
        needed = demand.resources.get("GPU", 0)
        able = sum(all(node.get(name, 0) >= amount for name, amount in demand.resources.items()) for node in nodes)
        if able < demand.machines:
            return f"the replicas of a {demand.name} need {demand.machines} machines with {needed:g} GPUs, but the Ray cluster has {able}"
        if not kind and 0.5 < needed < 1 and demand.count > (whole := sum(int(node.get("GPU", 0)) for node in nodes)):
            return f"{demand.count} x {demand.name} with {needed:g} GPUs need a card each, but the Ray cluster has {whole}"
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


def check_room_before_start(demands: Sequence[Demand], fix: str, free_gpus: bool = False) -> None:
    """`check_room` before this process is connected to Ray: checks the cluster that it would connect to, or this machine.

    Args:
        demands: Processes that must run at the same time.
        fix: End of the error message: which settings to change.
        free_gpus: Whether GPUs that other processes hold are missing, too.

    Raises:
        ConfigError: The demands do not fit; the message names the missing resources.
    """

    def check() -> None:
        check_room(demands, fix)
        if free_gpus:
            check_free_gpus(demands, fix)

    if ray.is_initialized():
        check()
        return
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError):  # no cluster is running, so a local one will start
        here = {"CPU": os.cpu_count() or 1, "GPU": NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()}
        if problem := what_is_missing(demands, [here]):
            raise ConfigError(f"{problem}; {fix}") from None
        return
    try:
        check()
    finally:
        ray.shutdown()
