"""Served and Versions: which versions of an index are served, and which of them a process has open."""

import hashlib
import threading
from collections.abc import Callable, Collection
from typing import Generic, NamedTuple, TypeVar

from ray_lir.base.errors import ConfigError

Opened = TypeVar("Opened")


class Served(NamedTuple):
    """The versions that the service serves.

    Every call inside the service carries the value with which its request was planned, so an answer never mixes versions. Workers store
    the latest value that they received. A restarted gateway asks them for it and uses the one with the highest `change`.

    Attributes:
        change: Number of changes of the served versions so far.
        version: Version that answers all requests except the canary's.
        previous: Version to which a roll-back returns; None if there is none.
        canary: Version that answers `traffic_fraction` of the requests; None if there is none.
        traffic_fraction: Fraction of the requests that the canary answers.
        by_canary: Whether the canary answers the request that carries this value.
        requested: Version that the request asks for; None if it leaves the choice to the service.
        pinned: Whether an operator chose an older version or a canary, so that the service does not follow new versions.
    """

    change: int
    version: int
    previous: int | None = None
    canary: int | None = None
    traffic_fraction: float = 0.0
    by_canary: bool = False
    requested: int | None = None
    pinned: bool = False

    @property
    def answering(self) -> int:
        """Return the version that answers the request that carries this value."""
        if self.requested is not None:
            return self.requested
        return self.canary if self.by_canary and self.canary is not None else self.version

    @property
    def reachable(self) -> list[int]:
        """Return the versions that can still answer requests, now or after a promotion or roll-back."""
        return [version for version in (self.version, self.previous, self.canary) if version is not None]

    def for_request(self, request_id: str, version: int | None = None) -> "Served":
        """Return the value that a request carries. An id that the canary answers stays with the canary while its fraction grows.

        Args:
            request_id: Id of the request.
            version: Version that the request asks for; None to choose between the served version and the canary.

        Raises:
            ConfigError: The version is neither the served one, nor the previous one, nor the canary.
        """
        if version is not None:
            if version not in self.reachable:
                raise ConfigError(f"version {version} is not open; choose {' or '.join(map(str, sorted(self.reachable)))}")
            return self._replace(requested=version)
        if self.canary is None:
            return self
        place = int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") / 2**64
        return self._replace(by_canary=place < self.traffic_fraction)


class Versions(Generic[Opened]):
    """Opens versions when they are first needed, and holds them open. Safe in threads.

    Args:
        open: Opens a version; raises an error if it is damaged.
        first: Version that is served first.
    """

    def __init__(self, open: Callable[[int], Opened], first: int):
        self.served = Served(0, first)
        self._open = open
        self._opened: dict[int, Opened] = {}
        self._opening = threading.Lock()

    def get(self, served: Served) -> Opened:
        """Return the opened version that answers a call, and store `served` if it is newer."""
        if served.change > self.served.change:
            self.served = served._replace(by_canary=False, requested=None)
        return self.open(served.answering)

    def open(self, version: int) -> Opened:
        """Return a version, opened if necessary. It need not be served."""
        if version not in self._opened:
            with self._opening:
                if version not in self._opened:
                    self._opened[version] = self._open(version)
        return self._opened[version]

    def opened(self) -> list[Opened]:
        """Return what is open, in the order in which it was opened."""
        return list(self._opened.values())

    def keep(self, versions: Collection[int]) -> Collection[Opened]:
        """Drop all other versions and return the remaining ones. Calls in progress can still finish with a dropped version."""
        with self._opening:
            self._opened = {version: opened for version, opened in self._opened.items() if version in versions}
            return self._opened.values()
