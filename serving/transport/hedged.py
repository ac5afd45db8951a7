"""Hedging: a call that takes longer than most of its kind is made a second time, and the first answer wins."""

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
from .ray import Calls

RECENT_CALLS = 256
MIN_CALLS = 30
"""Calls of a kind before its percentile says anything."""
MAX_KINDS = 1000


class HedgedCalls:
    """Calls that are made once more when they are late, or when their replica is lost; whatever is not needed is cancelled.

    Serve sends a call to the less busy of two replicas, so the second one goes to another replica than the first unless
    that one is the busier, or as busy. Since the time that a hedged call took in the end is what is remembered, one slow
    replica is hedged for as long as it is slow, and where all are slow the percentile rises and hedging ends.

    Args:
        calls: makes them.
        names: deployments with more than one replica; no others are hedged.
        percentile: of the recent times of calls of the same kind, after which a call is late.
    """

    def __init__(self, calls: Calls, names: Collection[str], percentile: float, metrics: Metrics):
        self.calls = calls
        self.names = frozenset(names)
        self.percentile = percentile
        self.metrics = metrics
        self._recent: dict[tuple[Any, ...], deque[float]] = {}

    async def ask(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        if name not in self.names:
            return await self.calls.ask(name, deadline, method, *args)
        recent = self._recent_of((name, method, *(_kind(each) for each in args)))
        start = time.perf_counter()
        answer = await self._first_of_two(self._delay(recent), name, deadline, method, *args)
        recent.append(time.perf_counter() - start)
        return answer

    async def ask_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        return await self.calls.ask_all(name, deadline, method, *args)

    async def _first_of_two(self, delay: float | None, name: str, deadline: float, method: str, *args: Any) -> Any:
        """The answer that comes first; if both fail, what the later one raised."""
        asked = [asyncio.create_task(self.calls.ask(name, deadline, method, *args))]
        try:
            await asyncio.wait(asked, timeout=delay)
            if not asked[0].done() or _is_lost(asked[0]):
                self.metrics.hedged(name, method)
                asked.append(asyncio.create_task(self.calls.ask(name, deadline, method, *args)))
            for answered in asyncio.as_completed(asked):
                with suppress(ShardUnavailable):
                    return await answered
            return asked[-1].result()
        finally:
            for each in asked:
                each.cancel()

    def _recent_of(self, kind: tuple[Any, ...]) -> deque[float]:
        if kind not in self._recent and len(self._recent) >= MAX_KINDS:
            self._recent.clear()
        return self._recent.setdefault(kind, deque(maxlen=RECENT_CALLS))

    def _delay(self, recent: deque[float]) -> float | None:
        return float(np.percentile(recent, self.percentile)) if len(recent) >= MIN_CALLS else None


def _is_lost(task: asyncio.Task[Any]) -> bool:
    return isinstance(task.exception(), ShardUnavailable)


def _kind(argument: Any) -> Any:
    """Equal for arguments with which a call takes about as long: of the same engine, and as many within a factor of two."""
    if isinstance(argument, QueryPlan):
        return argument.params.engine
    if isinstance(argument, int):
        return argument.bit_length()
    if not isinstance(argument, Sized):
        return argument is None
    first = argument[0] if isinstance(argument, list) and argument else None
    return len(argument).bit_length(), first.params.engine if isinstance(first, QueryPlan) else ""
