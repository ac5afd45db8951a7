"""Versions: what a process has open of an index, by version, and which of them is served."""

import hashlib
import threading
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar

Opened = TypeVar("Opened")


class Served(NamedTuple):
    """What is served, and the number of changes that led to it: of two that are remembered, the one with more is true.

    Every call inside the service carries the one it was planned with, so an answer is of one version whatever changes
    meanwhile, and whoever answers calls remembers what is served for a gateway that has to start again.

    Attributes:
        version: answers all requests but the canary's fraction of the traffic.
        previous: what a roll-back goes to.
        canary: the version that answers `traffic_fraction` of the requests; None if there is none.
        by_canary: whether the request that carries this is one of them.
    """

    change: int
    version: int
    previous: int | None = None
    canary: int | None = None
    traffic_fraction: float = 0.0
    by_canary: bool = False

    @property
    def answering(self) -> int:
        """The version that answers the request that carries this."""
        return self.canary if self.by_canary and self.canary is not None else self.version

    @property
    def reachable(self) -> list[int]:
        """The versions that requests may still be answered from, after a change that is always possible too."""
        return [version for version in (self.version, self.previous, self.canary) if version is not None]

    def for_request(self, request_id: str) -> "Served":
        """What a request carries: the same for the same id, while the canary's fraction of the traffic grows too."""
        if self.canary is None:
            return self
        place = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
        return self._replace(by_canary=place < self.traffic_fraction)


class Versions(Generic[Opened]):
    """Opens versions when they are first needed and keeps them. Safe in threads.

    Args:
        open: opens a version, and raises if it is damaged.
        first: the version that is served at first.
    """

    def __init__(self, open: Callable[[int], Opened], first: int):
        self.served = Served(0, first)
        self._open = open
        self._opened: dict[int, Opened] = {}
        self._opening = threading.Lock()

    def get(self, served: Served) -> Opened:
        """What a call that was planned with `served` needs."""
        if served.change > self.served.change:
            self.served = served._replace(by_canary=False)
        return self.open(served.answering)

    def open(self, version: int) -> Opened:
        """A version, served or not."""
        if version not in self._opened:
            with self._opening:
                if version not in self._opened:
                    self._opened[version] = self._open(version)
        return self._opened[version]

    def keep(self, versions: Collection[int]) -> Collection[Opened]:
        """Lets go of all others, with which calls that still use them finish. Returns what is left."""
        with self._opening:
            self._opened = {version: opened for version, opened in self._opened.items() if version in versions}
            return self._opened.values()
