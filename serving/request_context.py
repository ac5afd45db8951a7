"""RequestContext: what the gateway knows about one request: index version, deadline and transport."""

import asyncio
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.index.manifest import IndexManifest
from ray_lir.index.shard_groups import split_shards
from ray_lir.index.versions import read_version

from .transport.protocol import ENCODER, Transport
from .workers.versions import Served


@dataclass(frozen=True)
class Group:
    """A shard group: documents `first_document` up to, but not including, `first_document + num_docs`.

    Attributes:
        name: Name of its deployment.
        num_docs: Number of its documents, deleted ones included.
        num_live: Number of its documents that are not deleted.
    """

    name: str
    first_document: int
    num_docs: int
    num_live: int

    def own(self, numbers: np.ndarray) -> np.ndarray:
        """The document numbers that belong to this group; `numbers` is ascending."""
        low, high = np.searchsorted(numbers, [self.first_document, self.first_document + self.num_docs])
        return numbers[low:high]


@dataclass(frozen=True)
class Snapshot:
    """A version of the index as the gateway needs it. `groups` leaves out groups without shards."""

    manifest: IndexManifest
    groups: tuple[Group, ...]


def open_snapshot(root: str, version: int, names: list[str]) -> Snapshot:
    """Read the manifest of a version and assign its shards to groups.

    Args:
        root: Folder or URL of the index.
        version: Number of the version.
        names: Names of all shard groups, in document order.

    Raises:
        FormatError: There is no such version, or its manifest is damaged.
    """
    manifest = read_version(root, version)
    runs = [manifest.shards[run.start : run.stop] for run in split_shards(manifest.shards, len(names))]
    groups = [
        Group(name, run[0].first_document, sum(shard.num_docs for shard in run), sum(shard.num_live for shard in run))
        for name, run in zip(names, runs, strict=True)
        if run
    ]
    return Snapshot(manifest, tuple(groups))


@dataclass(frozen=True)
class RequestContext:
    """One request's index version, deadline and way to the workers.

    Attributes:
        transport: Calls the workers.
        served: The served versions, with the choice between version and canary made for this request.
        snapshot: The version that answers this request.
        deadline: Time of the event loop, in seconds, by which the request must be answered.
    """

    transport: Transport
    served: Served
    snapshot: Snapshot
    deadline: float

    async def call(self, name: str, method: str, *args: Any) -> Any:
        """Call a method of a deployment, for this request's version.

        Args:
            name: Name of the deployment.
            method: Name of the method; its first parameter is `served`.
            args: Its other arguments.

        Raises:
            ShardUnavailable: The deployment does not answer before the deadline.
        """
        return await self.transport.call(name, self.deadline, method, self.served, *args)

    async def call_encoder(self, method: str, *args: Any) -> Any:
        """Call a method of the query encoder.

        Raises:
            ShardUnavailable: It does not answer before the deadline.
        """
        return await self.call(ENCODER, method, *args)

    async def call_groups(self, method: str, *args: Any) -> dict[str, Any]:
        """Call a method of every shard group and return the results by group name.

        Raises:
            ShardUnavailable: A group does not answer before the deadline.
        """
        names = [group.name for group in self.snapshot.groups]
        return dict(zip(names, await asyncio.gather(*(self.call(name, method, *args) for name in names)), strict=True))
