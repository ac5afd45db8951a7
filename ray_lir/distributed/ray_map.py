"""The `Map` of parallel.py over a Ray cluster: the same calls, the same results in the same order, on many machines."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from ray_lir.distributed.room import Demand, check_room
from ray_lir.distributed.runtime import error_of, portable_errors, start_ray

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRIES = 10
"""How often a call is run again whose process or machine was lost; errors that the function raises are never tried again."""
SECONDS_BETWEEN_LOOKS = 5.0
"""How often the size of the cluster is looked at, which may grow and shrink."""


def ray_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_cpus: float = 1, num_gpus: float = 0, in_flight: int | None = None
) -> Iterator[Result]:
    """Applies `function` to each item as a Ray task; yields the results in order.

    The function is stored in the cluster once, so large arrays that it closes over travel once to each machine (and are
    read-only there). A task whose worker dies is run again by Ray. Starts Ray if the process has none. As many calls wait
    as run, so a cluster that can grow does.

    Args:
        num_cpus: CPUs that one call takes.
        num_gpus: GPUs that one call takes.
        in_flight: calls under way or waiting to be yielded, at most; None: two for each that the cluster runs at once.

    Raises:
        ConfigError: if no machine of the cluster can run a call, and the cluster cannot grow.
        RayLirError: the very error that the function raised. Other exceptions come as ray.exceptions.RayTaskError.
    """
    start_ray()
    if num_gpus or num_cpus > 1:
        check_room([Demand("task", {"CPU": num_cpus, "GPU": num_gpus})], "ask for less, or add a machine")
    stored = ray.put(function)
    call = _call.options(num_cpus=num_cpus, num_gpus=num_gpus)
    most, looked = in_flight or 0, -SECONDS_BETWEEN_LOOKS
    waiting: deque[ray.ObjectRef] = deque()
    try:
        for item in items:
            waiting.append(call.remote(stored, item))
            if in_flight is None and time.monotonic() - looked >= SECONDS_BETWEEN_LOOKS:
                most, looked = 2 * max(1, _slots(num_cpus, num_gpus)), time.monotonic()
            while len(waiting) >= most:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


@ray.remote(max_retries=RETRIES)
def _call(function: Callable[[Any], Any], item: Any) -> Any:
    with portable_errors():
        return function(item)


def _slots(num_cpus: float, num_gpus: float) -> int:
    """Calls that the cluster can run at once."""
    have = ray.cluster_resources()
    wanted = {"CPU": num_cpus, "GPU": num_gpus}
    return int(min((have.get(name, 0) / number for name, number in wanted.items() if number), default=1))


def _result(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        raise error_of(error) from None
