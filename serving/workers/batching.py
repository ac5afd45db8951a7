"""Batcher: items that arrive while a batch is processed form the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Processes items in batches. Items are never delayed to fill a batch, and items that are cancelled while they wait are skipped.

    Args:
        work: Returns the results of a batch in the order of its items, with an exception for an item that fails alone. It processes one
            batch at a time.
        cost: Returns the cost of an item.
        max_cost: Largest cost of a batch; an item that costs more is a batch of its own.
        small_cost: Largest cost of a batch that runs in the event loop. Other items wait for the batch anyway, and a thread would add
            a tenth to its time.
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
        """Return the item's result, or raise the exception of `work` for it."""
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
            await asyncio.sleep(0)  # receive the items that arrived meanwhile, so that the next batch includes them

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
