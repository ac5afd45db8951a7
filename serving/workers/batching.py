"""Batcher: work that comes in while a batch is worked on waits, and makes the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Nobody waits for company: a batch is what is there. What was cancelled while it waited is never worked on.

    Args:
        work: results of some items, in their order, an exception for an item that failed by itself; runs one batch at a time.
        cost: of an item.
        max_cost: of a batch; an item that costs more is a batch of its own.
        small_cost: of a batch that is worked on in the event loop: others wait for it anyway, and a thread costs it a tenth more.
    """

    def __init__(
        self,
        work: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        cost: Callable[[Item], int],
        max_cost: int,
        small_cost: int = 0,
    ):
        self.work = work
        self.cost = cost
        self.max_cost = max_cost
        self.small_cost = small_cost
        self._waiting: deque[tuple[Item, int, asyncio.Future[Result]]] = deque()
        self._worker: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The item's result. Raises what `work` gave or raised for it."""
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, self.cost(item), future))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while batch := self._next():
            results = await self._results([item for item, _, _ in batch], sum(cost for _, cost, _ in batch))
            for (_, _, future), result in zip(batch, results, strict=True):
                if future.done():
                    continue
                if isinstance(result, Exception):
                    future.set_exception(result)
                else:
                    future.set_result(result)
            await asyncio.sleep(0)  # what came in meanwhile is read, and is in the next batch

    async def _results(self, items: Sequence[Item], cost: int) -> Sequence[Result | Exception]:
        try:
            if cost <= self.small_cost:
                return self.work(items)
            return await asyncio.to_thread(self.work, items)
        except Exception as error:
            return [error] * len(items)

    def _next(self) -> list[tuple[Item, int, asyncio.Future[Result]]]:
        batch: list[tuple[Item, int, asyncio.Future[Result]]] = []
        total = 0
        while self._waiting:
            item, cost, future = self._waiting[0]
            if not future.done():
                total += cost
                if batch and total > self.max_cost:
                    break
                batch.append((item, cost, future))
            self._waiting.popleft()
        return batch
