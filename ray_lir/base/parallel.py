"""`Map`: applies a function to items and yields the results in order, on one machine or many.

Python's `map` is one. `threads` is the library's default. `ray_lir.distributed.ray_map` runs the calls on a Ray cluster.
Mapped functions are pure functions of their item, so every `Map` gives identical bytes.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from ray_lir.base.forking import after_fork, fork_safe
from ray_lir.base.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


_most_cores: int | None = None


def num_cores() -> int:
    """Return the number of cores that this process may use. CPU affinity and `use_cores` can make it smaller than the machine's."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, _most_cores or here)


def use_cores(count: int) -> None:
    """Limit the cores of this process, for a worker that shares its machine with others."""
    global _most_cores  # the number of cores is one setting for the whole process
    _most_cores = max(1, count)


def threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None) -> Iterator[Result]:
    """Apply a function to items on threads of this process, and yield the results in order.

    Args:
        function: Applied to each item.
        items: Read as results are taken.
        num_threads: Threads, and the most results held in memory. None: one a core.
    """
    num_threads = num_threads or num_cores()
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque[Future[Result]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def watched(map: Map, label: str) -> Map:
    """Return a `Map` that also reports progress on standard error."""

    def spread(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        items = list(items)
        return track(map(function, items), label, len(items), lambda _: 1, unit="parts")

    return spread


_blas_lock = fork_safe(Lock())
_blas_users = 0
_blas_limits: threadpool_limits | None = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread in the body of a `with` block, until the last concurrent user leaves.

    Parallelism comes from a map over parts or queries. BLAS would split small products over threads that wait for each other. With
    busy cores this is many times slower, and splitting changes the last bit of a result.
    """
    global _blas_users, _blas_limits  # the BLAS thread limit is a setting of the whole process
    process = os.getpid()
    with _blas_lock:
        _blas_users += 1
        if _blas_users == 1:
            _blas_limits = threadpool_limits(limits=1, user_api="blas")
    try:
        yield
    finally:
        if os.getpid() == process:
            with _blas_lock:
                _blas_users -= 1
                if _blas_users == 0 and _blas_limits:
                    _blas_limits.restore_original_limits()


@after_fork
def _forget_blas_users() -> None:
    """Restores the BLAS thread limit in a forked process, where the threads that would restore it do not exist."""
    global _blas_users
    if _blas_users and _blas_limits:
        _blas_users = 0
        _blas_limits.restore_original_limits()
