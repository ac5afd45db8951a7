"""Indexes: opens each index of a service on first use, and closes indexes that are idle or exceed the memory budget."""

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

from ray_lir import storage
from ray_lir.api.admin import IndexList, IndexSummary
from ray_lir.base.errors import ConfigError, RayLirError, ShardUnavailable
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version, version_manifest

from ..metrics import Metrics
from ..workers.versions import Served
from .catalog import Catalog
from .local_service import LocalService
from .memory import free_memory, index_bytes

logger = logging.getLogger("ray.serve")

BROKEN_S = 5.0
"""Seconds for which an index that could not be opened is not tried again."""
LONGEST_PAUSE_S = 10.0
"""Longest time between two looks for idle indexes, in seconds."""


class Opener(Protocol):
    """Opens the service of an index: `LocalServices.open`."""

    def __call__(self, name: str, root: str, served: Served) -> LocalService:
        """Return the service of an index that serves these versions."""
        ...


@dataclass
class OpenIndex:
    """An open index, its estimated memory, and when a request last used it."""

    service: LocalService
    num_bytes: int
    used_at: float


class Indexes:
    """The indexes of a service.

    A closed index keeps its served versions. When it is opened again, it serves the same versions, or the latest if they have been
    removed. An index that cannot be opened fails alone.

    Args:
        catalog: Names and folders.
        opener: Opens an index. It runs on a thread.
        idle_s: Seconds without a request after which an index is closed.
        max_bytes: Memory budget of all open indexes, in bytes. The index that was not used for the longest time is closed first.
        metrics: Metrics of the process.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        catalog: Catalog,
        opener: Opener,
        idle_s: float,
        max_bytes: float,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.catalog = catalog
        self.opener = opener
        self.idle_s = idle_s
        self.max_bytes = max_bytes
        self.metrics = metrics
        self.clock = clock
        self.opened: dict[str, OpenIndex] = {}
        self._served: dict[str, Served] = {}
        self._opening: dict[str, asyncio.Task[OpenIndex]] = {}
        self._reserved: dict[str, int] = {}
        self._broken: dict[str, tuple[float, str]] = {}
        self._closing: asyncio.Task[None] | None = None
        self._freed = True

    async def open(self, name: str, visible: Collection[str] | None = None) -> LocalService:
        """Return the service of an index, opened if necessary. Concurrent calls open it once.

        Args:
            name: Name of the index.
            visible: Names that an error message may contain. None: all.

        Raises:
            NotFound: There is no such index.
            ShardUnavailable: The index is damaged, its encoder is missing, or it does not fit into the memory budget.
        """
        found = self.opened.get(name)
        if found is None:
            root = await asyncio.to_thread(self.catalog.root, name, visible)
            self._check_broken(name)
            if name not in self._opening:
                self._opening[name] = asyncio.create_task(self._open(name, root))
                self._opening[name].add_done_callback(lambda task: self._forget(name, task))
            found = await asyncio.shield(self._opening[name])  # a client that leaves does not stop it
        found.used_at = self.clock()
        return found.service

    async def list(self, visible: Collection[str] | None = None) -> IndexList:
        """Return the name and state of each index. `visible` holds the names to list; None for all."""
        names = await asyncio.to_thread(self.catalog.names)
        return IndexList(indexes=[self._summary(name) for name in names if visible is None or name in visible])

    def close_idle(self) -> None:
        """Close every index without requests in progress that no request has used for `idle_s`."""
        for name in [name for name, each in self.opened.items() if not each.service.busy and self.clock() - each.used_at >= self.idle_s]:
            self._close(name)

    def _forget(self, name: str, task: "asyncio.Task[OpenIndex]") -> None:
        del self._opening[name]
        if not task.cancelled():
            task.exception()  # retrieved here, in case all clients have left

    def _check_broken(self, name: str) -> None:
        failed_at, reason = self._broken.get(name, (0.0, ""))
        if reason and self.clock() - failed_at < BROKEN_S:
            raise ShardUnavailable(reason)

    async def _open(self, name: str, root: str) -> OpenIndex:
        try:
            served, manifest = await asyncio.to_thread(self._first, name, root)
            num_bytes = index_bytes(manifest)
            self._make_room(name, num_bytes)
            self._reserved[name] = num_bytes
            service = await asyncio.to_thread(self.opener, name, root, served)
        except Exception as error:
            if not isinstance(error, RayLirError):
                logger.exception("index %s cannot be opened", name)
            known = isinstance(error, (RayLirError, OSError))
            why = str(error) if known else f"unexpected {type(error).__name__}; see the service's log"
            reason = f"index {name!r} cannot be opened: {why}"
            self._broken[name] = (self.clock(), reason)
            self.metrics.for_index(name).failed_to_open()
            raise ShardUnavailable(reason) from None
        finally:
            self._reserved.pop(name, None)
        self._broken.pop(name, None)
        service.start()
        self.opened[name] = OpenIndex(service, num_bytes, self.clock())
        self.metrics.for_index(name).opened(num_bytes)
        self.metrics.open_indexes(len(self.opened))
        if self._closing is None or self._closing.done():
            self._closing = asyncio.create_task(self._close_when_idle())
        self._freed = False
        return self.opened[name]

    def _first(self, name: str, root: str) -> tuple[Served, IndexManifest]:
        """The versions that an index served before it was closed, or else its latest version."""
        served = self._served.get(name)
        if served is None or not storage.exists(version_manifest(root, served.version)):
            served = Served(0, latest_version(root))
        manifest = read_version(root, served.version)
        if not manifest.contract.weights_digest:
            raise ConfigError("it was built from embeddings of an unknown encoder, which cannot encode queries; use Searcher")
        return served, manifest

    def _make_room(self, name: str, num_bytes: int) -> None:
        """Closes indexes until another one fits: first those without requests, and of these the one that was not used for longest."""
        if num_bytes > self.max_bytes:
            needed, budget = num_bytes / 1e9, self.max_bytes / 1e9
            raise ConfigError(f"it needs {needed:.2g} GB of memory, and memory_gb is {budget:.2g}; raise memory_gb, or serve it alone")
        for other in self._by_use():
            if sum(each.num_bytes for each in self.opened.values()) + sum(self._reserved.values()) + num_bytes <= self.max_bytes:
                break
            self._close(other)

    def _by_use(self) -> Iterator[str]:
        yield from sorted(self.opened, key=lambda name: (self.opened[name].service.busy, self.opened[name].used_at))

    def _close(self, name: str) -> None:
        """Frees the files of an index. Requests in progress finish: they open the version again for themselves."""
        service = self.opened.pop(name).service
        self._served[name] = service.versions.served
        service.close()
        self._freed = False
        self.metrics.for_index(name).closed()
        self.metrics.open_indexes(len(self.opened))

    async def _close_when_idle(self) -> None:
        while self.opened or not self._freed:
            await asyncio.sleep(min(LONGEST_PAUSE_S, self.idle_s / 4))
            self.close_idle()
            if not self._freed:
                self._freed = True
                await asyncio.to_thread(free_memory)

    def _summary(self, name: str) -> IndexSummary:
        found = self.opened.get(name)
        if found is None:
            failed_at, reason = self._broken.get(name, (0.0, ""))
            return IndexSummary(name=name, state="broken" if reason else "closed", error=reason or None)
        served = found.service.versions.served
        return IndexSummary(
            name=name,
            state="open",
            version=served.version,
            canary=served.canary,
            num_docs=found.service.versions.get(served).manifest.num_documents,
            num_bytes=found.num_bytes,
        )
