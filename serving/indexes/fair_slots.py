"""FairSlots: divides the processor among indexes, so that many requests for one index do not delay requests for the others."""

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from ray_lir.base.errors import ShardUnavailable


class FairSlots:
    """Limits the requests that compute at the same time. Waiting requests start in rounds: one request of each index a round.

    A request therefore waits for at most one request of every other busy index, and for those of its own index.

    Args:
        limit: Requests that compute at the same time.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.running = 0
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def enter(self, index: str, deadline: float) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the duration of an `async with` block.

        Args:
            index: Name of the index.
            deadline: Time of the event loop, in seconds.

        Raises:
            ShardUnavailable: No slot was free before the deadline.
        """
        if self.running < self.limit:  # then no request waits
            self.running += 1
        else:
            await self._wait(index, deadline)
        try:
            yield
        finally:
            self._leave()

    async def _wait(self, index: str, deadline: float) -> None:
        slot: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(index, deque()).append(slot)
        try:
            async with asyncio.timeout_at(deadline):
                await slot
        except BaseException as error:
            if slot.done() and not slot.cancelled():  # the slot was passed on at the moment of the timeout
                self._leave()
            if isinstance(error, TimeoutError):
                raise ShardUnavailable("other requests took all the time of this one; try again, or send fewer at once") from None
            raise

    def _leave(self) -> None:
        """Passes the slot to the next waiting request, and its index to the end of the order."""
        while self._waiting:
            index, slots = self._waiting.popitem(last=False)
            slot = slots.popleft()
            if slots:
                self._waiting[index] = slots
            if not slot.done():
                slot.set_result(None)
                return
        self.running -= 1
