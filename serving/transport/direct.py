"""Direct: calls over lines where there are any, and through Serve where there are none."""

import asyncio
import time
from collections.abc import Collection
from typing import Any

from ray_lir.base.errors import RayLirError

from ..metrics import Metrics
from .ray import Calls, late
from .unix import Line

RETRY_S = 10.0
"""After an attempt to open a line has failed: the replica is on another machine, or in another container."""
OPENING_S = 60.0


class DirectCalls:
    """Calls over a line to each deployment's only replica.

    Serve decides which replica takes a call, counts calls to scale by them, and makes them wait for a replica that starts. None of
    that is needed where there is one replica, it is there, and it is on this machine; everything else goes through Serve, the call
    by which a line is opened and the calls that a lost line leaves without an answer included.

    Args:
        calls: makes the others.
        names: deployments with one replica.
    """

    def __init__(self, calls: Calls, names: Collection[str], metrics: Metrics):
        self.calls = calls
        self.names = frozenset(names)
        self.metrics = metrics
        self._lines: dict[str, Line] = {}
        self._opening: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}

    async def ask(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        line = self._lines.get(name)
        if line is None or not line.is_open:
            self._open(name)
        else:
            try:
                return await self._ask(line, name, deadline, method, *args)
            except ConnectionError:
                pass  # the replica was lost; Serve starts another
        return await self.calls.ask(name, deadline, method, *args)

    async def ask_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        return await self.calls.ask_all(name, deadline, method, *args)

    async def _ask(self, line: Line, name: str, deadline: float, method: str, *args: Any) -> Any:
        start = time.perf_counter()
        failed = True
        try:
            async with asyncio.timeout_at(deadline):
                answer = await line.ask(method, *args)
            failed = False
            return answer
        except TimeoutError:
            raise late(name) from None
        finally:
            self.metrics.call(name, method, time.perf_counter() - start, failed)

    def _open(self, name: str) -> None:
        """Begins to open a line, unless that is going on or has just failed."""
        now = asyncio.get_running_loop().time()
        if name in self.names and name not in self._opening and now >= self._not_before.get(name, 0.0):
            self._opening[name] = asyncio.create_task(self._opened(name, now + OPENING_S))
            self._opening[name].add_done_callback(lambda _: self._opening.pop(name))

    async def _opened(self, name: str, deadline: float) -> None:
        try:
            self._lines[name] = await Line.open(await self.calls.ask(name, deadline, "address"))
        except (OSError, RayLirError):
            self._not_before[name] = asyncio.get_running_loop().time() + RETRY_S
