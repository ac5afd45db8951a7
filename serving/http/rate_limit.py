"""RateLimit: the most requests a second of one token."""

import math
import time
from collections.abc import Callable

from ray_lir.base.errors import Overloaded

ROUNDING = 1e-9
"""Requests by which rounding may make a full wait look too short."""


class RateLimit:
    """A token bucket: it fills with `per_second` requests a second, up to one second's worth and at least one, and each request takes one.

    Args:
        per_second: Requests a second, on average.
        clock: Returns the time in seconds.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic):
        self.per_second = per_second
        self.clock = clock
        self._capacity = max(1.0, per_second)
        self._available = self._capacity
        self._at = clock()

    def enter(self, refused: Callable[[], None] = lambda: None) -> None:
        """Take one request.

        Args:
            refused: Called before a request is refused.

        Raises:
            Overloaded: The rate is exceeded; `retry_after_s` is the time until the next request is possible.
        """
        now = self.clock()
        self._available = min(self._capacity, self._available + (now - self._at) * self.per_second)
        self._at = now
        if self._available < 1 - ROUNDING:
            refused()
            wait = math.ceil((1 - self._available) / self.per_second)
            raise Overloaded(f"this token may send {self.per_second:g} requests a second; try again in {wait} s", wait)
        self._available -= 1
