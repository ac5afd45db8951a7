"""Admission: limits the requests in progress, and tells refused clients when to try again."""

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ray_lir.base.errors import Overloaded

from ..metrics import Metrics

RECENT_S = 10.0
"""Seconds of history from which the rate of finished requests is computed."""
LONGEST_WAIT_S = 30
"""Longest Retry-After, in seconds."""


class Admission:
    """Counts the requests in progress and refuses those above a limit.

    Refusing a request costs time too. If all refused clients came back after one second, little time would be left for answers.
    Retry-After therefore grows with the number of clients that wait.

    Args:
        limit: Largest number of requests in progress.
        metrics: Receives the number of requests in progress, and counts refused ones.
        clock: Returns the time in seconds.
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
        """Count a request as in progress for the duration of a `with` block.

        Raises:
            Overloaded: The limit is reached.
        """
        if self.running >= self.limit:
            self.metrics.refused()
            raise Overloaded(
                f"{self.running} requests are in progress, the most that this service accepts; try again later", self._retry_after()
            )
        self.running += 1
        self.metrics.running(self.running)
        try:
            yield
        finally:
            self.running -= 1
            self.metrics.running(self.running)
            self._ended.append(self.clock())

    def _retry_after(self) -> int:
        """Seconds until all requests in progress, the clients refused earlier, and this client could have been answered."""
        now = self.clock()
        while self._waiting and self._waiting[0] <= now:
            self._waiting.popleft()
        while self._ended and self._ended[0] < now - RECENT_S:
            self._ended.popleft()
        seconds = 1
        if len(self._ended) > 1:
            interval = (now - self._ended[0]) / len(self._ended)  # 0 if the clock has not advanced since
            seconds = min(LONGEST_WAIT_S, max(1, math.ceil((self.running + len(self._waiting)) * interval)))
        self._waiting.append(now + seconds)
        return seconds
