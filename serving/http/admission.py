"""Admission: how many requests are worked on at a time, and when those that are refused should come again."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_lir.base.errors import Overloaded

from ..metrics import Metrics

RECENT_S = 10.0
"""What happened in this time says how fast requests are answered, and how many clients wait."""
LONGEST_WAIT_S = 30


class Admission:
    """Refusing costs as well: clients that all came again a second later would take the time that answers need.

    Args:
        limit: requests that are worked on at a time.
        clock: seconds.
    """

    def __init__(self, limit: int, metrics: Metrics, clock: Callable[[], float] = time.monotonic):
        self.limit = limit
        self.metrics = metrics
        self.clock = clock
        self.running = 0
        self._ended: deque[float] = deque(maxlen=1000)
        self._waiting: deque[float] = deque()

    @contextmanager
    def enter(self) -> Iterator[None]:
        """For as long as a request is worked on. Raises Overloaded if too many are."""
        if self.running >= self.limit:
            self.metrics.refused()
            raise Overloaded(
                f"{self.running} requests are being worked on, as many as this service takes; come again later", self._refuse()
            )
        self.running += 1
        self.metrics.running(self.running)
        try:
            yield
        finally:
            self.running -= 1
            self.metrics.running(self.running)
            self._ended.append(self.clock())

    def _refuse(self) -> int:
        """Seconds until those that are worked on, those that were told to come again and this one will have had their turn."""
        now = self.clock()
        while self._waiting and self._waiting[0] <= now:
            self._waiting.popleft()
        while self._ended and self._ended[0] < now - RECENT_S:
            self._ended.popleft()
        seconds = 1
        if len(self._ended) > 1:
            each = (now - self._ended[0]) / len(self._ended)  # no time at all, where the clock has not moved since
            seconds = min(LONGEST_WAIT_S, max(1, math.ceil((self.running + len(self._waiting)) * each)))
        self._waiting.append(now + seconds)
        return seconds
