"""`ray_map`: the `Map` of ray_lir.base.parallel on a Ray cluster. It gives the same results in the same order."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import partial
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from ray_lir.distributed.room import Demand, check_room
from ray_lir.distributed.runtime import error_of, portable_errors, start_ray
from ray_lir.kernels import default_kernels

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 10
"""Retries of a task when its process or machine is lost. Errors that the function raises are not retried."""
SECONDS_BETWEEN_READINGS = 5.0
"""Seconds between readings of the cluster's size, which may change."""


def ray_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    num_cpus: float = 1,
    num_gpus: float = 0,
    kernels: str = "",
    in_flight: int | None = None,
) -> Iterator[Result]:
    """Apply a function to each item as a Ray task, and yield the results in order.

    The function is stored in the cluster once, so large arrays in its closure are copied to each machine once; they are read-only
    there. Ray repeats a task if its worker dies. Ray is started if this process is not connected. As many tasks wait as run, so
    that an autoscaler adds machines.

    Args:
        function: Applied to each item; must be picklable.
        items: Read as tasks are submitted.
        num_cpus: CPUs that Ray reserves for each task.
        num_gpus: GPUs that Ray reserves for each task; a fraction lets tasks share a GPU.
        kernels: Kernel set that `auto` means in the tasks, such as cuda. Empty: as in any other process.
        in_flight: Tasks that are submitted but not yet yielded, at most. None: twice as many as the cluster runs at once.

    Raises:
        ConfigError: No machine of the cluster can run a task, and the cluster cannot grow.
        RayLirError: Raised by the function. Other exceptions of the function arrive as ray.exceptions.RayTaskError.
    """
    start_ray()
    if num_gpus or num_cpus > 1:
        check_room([Demand("task", {"CPU": num_cpus, "GPU": num_gpus})], "request less, or add a machine")
    stored = ray.put(function)
    call = _call.options(name=name_of(function), num_cpus=num_cpus, num_gpus=num_gpus)
    limit, read_at = in_flight or 0, -SECONDS_BETWEEN_READINGS
    waiting: deque[ray.ObjectRef] = deque()
    try:
        for item in items:
            waiting.append(call.remote(stored, item, kernels))
            if in_flight is None and time.monotonic() - read_at >= SECONDS_BETWEEN_READINGS:
                limit, read_at = 2 * max(1, _slots(num_cpus, num_gpus)), time.monotonic()
            while len(waiting) >= limit:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


def name_of(function: Callable[..., object]) -> str:
    """Return the name of a function's tasks. The dashboard shows one progress bar for the tasks of one name."""
    while isinstance(function, partial):
        function = function.func
    return getattr(function, "__name__", type(function).__name__).strip("_").replace("_", " ")


@ray.remote(max_retries=RETRIES)
def _call(function: Callable[[Any], Any], item: Any, kernels: str) -> Any:
    with portable_errors(), default_kernels(kernels) if kernels else nullcontext():
        return function(item)


def _slots(num_cpus: float, num_gpus: float) -> int:
    """Tasks that the cluster can run at once."""
    available = ray.cluster_resources()
    needed = {"CPU": num_cpus, "GPU": num_gpus}
    return int(min((available.get(name, 0) / number for name, number in needed.items() if number), default=1))


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error_of(error) from None
