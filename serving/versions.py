"""Versions: what a process has open of an index, by version, and which of them is served."""

import threading
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar

Opened = TypeVar("Opened")


class Served(NamedTuple):
    """The version that is served, and the number of changes that led to it: of two that are remembered, the greater is true.

    Every call inside the service carries the one it was planned with, so an answer is of one version whatever changes
    meanwhile, and whoever answers calls remembers what is served for a gateway that has to start again.
    """

    change: int
    version: int
    previous: int | None = None


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
        self.served = max(self.served, served)
        return self.open(served.version)

    def open(self, version: int) -> Opened:
        """A version, served or not."""
        if version not in self._opened:
            with self._opening:
                if version not in self._opened:
                    self._opened[version] = self._open(version)
        return self._opened[version]

    def keep(self, versions: Collection[int]) -> None:
        """Lets go of all others; calls that still use one finish with it."""
        with self._opening:
            self._opened = {version: opened for version, opened in self._opened.items() if version in versions}
