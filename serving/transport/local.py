"""LocalTransport: calls to workers in the gateway's own process."""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ..metrics import Metrics
from .protocol import timeout_error


class LocalTransport:
    """Calls workers as objects of this process, without copies of arguments and results.

    Args:
        workers: The query encoder and the shard groups, by name.
        metrics: Counts and times the calls.
    """

    def __init__(self, workers: Mapping[str, Any], metrics: Metrics):
        self.workers = workers
        self.metrics = metrics

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """See `Transport.call`.

        Args:
            name: Worker to call.
            deadline: Time of the event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        start, failed = time.perf_counter(), True
        try:
            async with asyncio.timeout_at(deadline):
                result = await getattr(self.workers[name], method)(*args)
            failed = False
            return result
        except TimeoutError:
            raise timeout_error(name) from None
        finally:
            self.metrics.call(name, method, time.perf_counter() - start, failed)

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """See `Transport.call_all`. Each worker has one replica.

        Args:
            name: Worker to call.
            deadline: Time of the event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        return [await self.call(name, deadline, method, *args)]
