"""HedgedTransport: sends a late call a second time, to another replica, and returns the first result."""

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sized
from contextlib import suppress
from typing import Any

import numpy as np

from ray_lir.base.errors import ShardUnavailable
from ray_lir.engines.plan import QueryPlan

from ..metrics import Metrics
from .protocol import Transport

RECENT_CALLS = 256
MIN_CALLS = 30
"""Calls of one kind that must be recorded before their percentile is used."""
MAX_KINDS = 1000


class HedgedTransport:
    """Repeats a call when it is late or when its replica is lost, and cancels the call that is no longer needed.

    Ray Serve draws two replicas and sends a call to the less busy one. The second call therefore reaches another replica, unless the
    first replica is still no busier than the other. The recorded duration of a hedged call is the time until its first result. Calls
    to one slow replica therefore stay hedged. If all replicas are slow, the percentile rises and hedging stops.

    Args:
        transport: Sends the calls.
        names: Deployments with more than one replica; calls to others are not hedged.
        percentile: A call is late when it takes longer than this percentile of recent calls of its kind.
        metrics: Counts the hedged calls.
    """

    def __init__(self, transport: Transport, names: Collection[str], percentile: float, metrics: Metrics):
        self.transport = transport
        self.names = frozenset(names)
        self.percentile = percentile
        self.metrics = metrics
        self._recent: dict[tuple[Any, ...], deque[float]] = {}

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """See `Transport.call`.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        if name not in self.names:
            return await self.transport.call(name, deadline, method, *args)
        recent = self._recent_of((name, method, *(_kind(argument) for argument in args)))
        start = time.perf_counter()
        result = await self._first_of_two(self._delay(recent), name, deadline, method, *args)
        recent.append(time.perf_counter() - start)
        return result

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """See `Transport.call_all`. Such calls are not hedged.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        return await self.transport.call_all(name, deadline, method, *args)

    async def _first_of_two(self, delay: float | None, name: str, deadline: float, method: str, *args: Any) -> Any:
        """The first result; if both calls fail, the error of the last one."""
        tasks = [asyncio.create_task(self.transport.call(name, deadline, method, *args))]
        try:
            await asyncio.wait(tasks, timeout=delay)
            if not tasks[0].done() or _is_lost(tasks[0]):
                self.metrics.hedged(name, method)
                tasks.append(asyncio.create_task(self.transport.call(name, deadline, method, *args)))
            for finished in asyncio.as_completed(tasks):
                with suppress(ShardUnavailable):
                    return await finished
            return tasks[-1].result()
        finally:
            for task in tasks:
                task.cancel()

    def _recent_of(self, kind: tuple[Any, ...]) -> deque[float]:
        if kind not in self._recent and len(self._recent) >= MAX_KINDS:
            self._recent.clear()
        return self._recent.setdefault(kind, deque(maxlen=RECENT_CALLS))

    def _delay(self, recent: deque[float]) -> float | None:
        return float(np.percentile(recent, self.percentile)) if len(recent) >= MIN_CALLS else None


def _is_lost(task: asyncio.Task[Any]) -> bool:
    return isinstance(task.exception(), ShardUnavailable)


def _kind(argument: Any) -> Any:
    """Equal for arguments with similar running times: the same engine, and a number of items within a factor of two."""
    if isinstance(argument, QueryPlan):
        return argument.params.engine
    if isinstance(argument, int):
        return argument.bit_length()
    if not isinstance(argument, Sized):
        return argument is None
    first = argument[0] if isinstance(argument, list) and argument else None
    return len(argument).bit_length(), first.params.engine if isinstance(first, QueryPlan) else ""
