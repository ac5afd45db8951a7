"""The `Map` of parallel.py over a Ray cluster: the same calls, the same results in the same order, on many machines."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from ray_lir.distributed.runtime import error_of, start_ray

Item = TypeVar("Item")
Result = TypeVar("Result")


def ray_map(
    function: Callable[[Item], Result], items: Iterable[Item], *, num_cpus: float = 1, num_gpus: float = 0, in_flight: int | None = None
) -> Iterator[Result]:
    """Applies `function` to each item as a Ray task; yields the results in order.

    The function is stored in the cluster once, so large arrays that it closes over travel once to each machine (and are
    read-only there). A task whose worker dies is run again by Ray. Starts Ray if the process has none.

    Args:
        num_cpus: CPUs that one call takes.
        num_gpus: GPUs that one call takes.
        in_flight: calls under way or waiting to be yielded, at most; None: two for each that the cluster runs at once.

    Raises:
        RayLirError: the very error that the function raised. Other exceptions come as ray.exceptions.RayTaskError.
    """
    start_ray()
    stored = ray.put(function)
    call = _call.options(num_cpus=num_cpus, num_gpus=num_gpus)
    in_flight = in_flight or 2 * max(1, _slots(num_cpus, num_gpus))
    waiting: deque[ray.ObjectRef] = deque()
    try:
        for item in items:
            waiting.append(call.remote(stored, item))
            if len(waiting) >= in_flight:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        for reference in waiting:
            ray.cancel(reference)


@ray.remote
def _call(function: Callable[[Any], Any], item: Any) -> Any:
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
