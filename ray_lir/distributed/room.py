"""Whether a Ray cluster has room for what a job or a service starts. Ray itself waits for ever, and says nothing."""

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
"""How long to wait for the first report of the cluster's autoscaler, which a new cluster writes after some seconds."""
FIXED_NODES = ("node_", "local.cluster.node")
"""How the types of machines begin that no autoscaler started."""


@dataclass(frozen=True)
class Demand:
    """Processes that must run at the same time.

    Attributes:
        what: their name for people, in the singular.
        resources: of each, by Ray's names: CPU, GPU.
        count: how many there are.
    """

    what: str
    resources: Mapping[str, float]
    count: int = 1


def check_room(demands: Sequence[Demand], fix: str) -> None:
    """Checks that the cluster can run all demands at once. A cluster that can grow may wait: then a line says for what.

    Args:
        fix: which settings to change.

    Raises:
        ConfigError: if it cannot; the message says what the cluster has.
    """
    problem = what_is_missing(demands, [node["Resources"] for node in ray.nodes() if node["Alive"]])
    if problem is None:
        return
    if not can_grow():
        raise ConfigError(f"{problem}; {fix}")
    logger.info("%s yet; waiting for the autoscaler to add machines", problem)


def what_is_missing(demands: Sequence[Demand], nodes: Sequence[Mapping[str, float]]) -> str | None:
    """A sentence that says why these machines cannot run all demands at once; None if nothing speaks against it."""
    for name in ("GPU", "CPU"):
        have = sum(node.get(name, 0) for node in nodes)
        largest = max((node.get(name, 0) for node in nodes), default=0)
        for demand in demands:
            each = demand.resources.get(name, 0)
            if each > largest:
                where = f"has {have:g}" if have == largest else f"has {have:g}, and no machine more than {largest:g}"
                return f"each {demand.what} needs {each:g} {name}s, but the Ray cluster {where}"
        total = sum(demand.count * demand.resources.get(name, 0) for demand in demands)
        if total > have + 1e-9:
            parts = ", ".join(
                f"{demand.count} x {demand.what} with {demand.resources[name]:g}" for demand in demands if demand.resources.get(name)
            )
            return f"{total:g} {name}s are needed ({parts}), but the Ray cluster has {have:g}"
    return None


def can_grow() -> bool:
    """Whether an autoscaler can add machines to the cluster."""
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
    """`check_room` in a process that has not connected to Ray yet: on the cluster that it would find, or else on this machine.

    Raises:
        ConfigError: as `check_room`.
    """
    if ray.is_initialized():
        check_room(demands, fix)
        return
    try:
        ray.init(address=os.environ.get("RAY_ADDRESS") or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError):  # none runs, so one starts here
        here = {"CPU": os.cpu_count() or 1, "GPU": NvidiaGPUAcceleratorManager.get_current_node_num_accelerators()}
        if problem := what_is_missing(demands, [here]):
            raise ConfigError(f"{problem}; {fix}") from None
        return
    try:
        check_room(demands, fix)
    finally:
        ray.shutdown()
