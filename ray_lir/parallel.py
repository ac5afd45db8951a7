"""The seam between one machine and many: a `Map` applies a function to items and yields results in order.

`map` itself is one, `threads` below is the library's default, and `distributed.ray_map` spreads the same calls over Ray.
A mapped function is a pure function of its item, so all of them give byte-identical results.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import faiss
from threadpoolctl import threadpool_limits

from ray_lir.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")
Map = Callable[[Callable[[Any], Any], Iterable[Any]], Iterable[Any]]


def threads(function: Callable[[Item], Result], items: Iterable[Item], num_threads: int | None = None) -> Iterator[Result]:
    """A `Map` over threads of this process; at most `num_threads` (default: all cores) results are held at once."""
    num_threads = num_threads or os.cpu_count() or 1
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


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps matrix products inside a mapped function on one thread: parallelism comes from the map, and the way BLAS
    splits work over threads would otherwise change the last bit of a result."""
    with threadpool_limits(limits=1):
        faiss.omp_set_num_threads(1)
        yield
