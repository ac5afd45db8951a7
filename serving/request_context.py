"""Turn: what one request works with: the version it is answered from, how long it may take, and whom it can ask."""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.index.manifest import IndexManifest
from ray_lir.index.shard_groups import split_shards
from ray_lir.index.versions import read_version

from .transport.ray import ENCODER, Calls
from .workers.versions import Served


@dataclass(frozen=True)
class Group:
    """Documents first_document to first_document + num_docs, and the deployment that has them.

    Attributes:
        num_live: those of them that are not deleted.
    """

    name: str
    first_document: int
    num_docs: int
    num_live: int

    def own(self, numbers: np.ndarray) -> np.ndarray:
        """Those of some documents, ascending, that the group has."""
        low, high = np.searchsorted(numbers, [self.first_document, self.first_document + self.num_docs])
        return numbers[low:high]


@dataclass(frozen=True)
class Snapshot:
    """What the gateway knows of a version; groups without shards are not among its groups."""

    manifest: IndexManifest
    groups: tuple[Group, ...]


def open_snapshot(root: str, version: int, names: list[str]) -> Snapshot:
    """Raises FormatError if there is no such version."""
    manifest = read_version(root, version)
    runs = [manifest.shards[run.start : run.stop] for run in split_shards(manifest.shards, len(names))]
    groups = [
        Group(name, run[0].first_document, sum(shard.num_docs for shard in run), sum(shard.num_live for shard in run))
        for name, run in zip(names, runs, strict=True)
        if run
    ]
    return Snapshot(manifest, tuple(groups))


@dataclass(frozen=True)
class Turn:
    """One request's.

    Attributes:
        deadline: in the time of the event loop.
    """

    calls: Calls
    served: Served
    snapshot: Snapshot
    deadline: float

    async def ask(self, name: str, method: str, *args: Any) -> Any:
        """Raises ShardUnavailable if the deployment does not answer before the deadline."""
        return await self.calls.ask(name, self.deadline, method, self.served, *args)

    async def encoder(self, method: str, *args: Any) -> Any:
        return await self.ask(ENCODER, method, *args)

    async def everywhere(self, method: str, *args: Any) -> dict[str, Any]:
        """The answer of every group. Raises ShardUnavailable if one does not answer."""
        names = [group.name for group in self.snapshot.groups]
        return dict(zip(names, await asyncio.gather(*(self.ask(name, method, *args) for name in names)), strict=True))
