"""The seam between one machine and many: a `Map` applies a function to items and yields results in order.

`map` itself is one, `threads` below is the library's default, and `distributed.ray_map` spreads the same calls over Ray.
A mapped function is a pure function of its item, so all of them give byte-identical results.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """Cores that this process may use: fewer than the machine's in a container, if it is pinned, or after `use_cores`."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(here, _most_cores or here)


def use_cores(count: int) -> None:
    """Limit the cores of this process, for a worker that shares its machine with others."""
    global _most_cores  # the number of cores is one setting for the whole process
    _most_cores = max(1, count)


def threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None) -> Iterator[Result]:
    """A `Map` over threads of this process; at most `num_threads` (default: all cores) results are held at once."""
    num_threads = num_threads or num_cores()
    with ThreadPoolExecutor(num_threads) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= num_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def watched(map: Map, label: str) -> Map:
    """The same map, showing on standard error how far it has come."""

    def spread(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        items = list(items)
        return track(map(function, items), label, len(items), lambda _: 1, unit="parts")

    return spread


_blas_lock = fork_safe(Lock())
_blas_users = 0
_blas_limits: threadpool_limits | None = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps matrix products of this process on one thread each, until the last of its users has left.

    Parallelism comes from a map over parts or queries. BLAS would split small products over threads that wait for each
    other, many times slower as soon as the cores are busy, and a split changes the last bit of a result.
    """
    global _blas_users, _blas_limits  # the number of threads is one setting for the whole process
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
                if _blas_users == 0:
                    _blas_limits.restore_original_limits()


@after_fork
def _forget_blas_users() -> None:
    """Restore the number of threads in a forked process: the threads that would do so are not there."""
    global _blas_users
    if _blas_users:
        _blas_users = 0
        _blas_limits.restore_original_limits()
