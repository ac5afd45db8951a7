"""Replica: calls that every worker of the service offers."""

from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

from ..transport.unix_socket import UnixListener
from .versions import Served, Versions

Opened = TypeVar("Opened")


class Replica(Generic[Opened]):
    """A worker that serves versions of an index, through Ray Serve or over a Unix socket.

    Attributes:
        listener: Accepts calls over the Unix socket.
        versions: The opened versions; a subclass sets it.
    """

    versions: Versions[Opened]

    def __init__(self) -> None:
        self.listener = UnixListener(self)

    async def last_served(self) -> Served:
        """Return the served versions of the latest call."""
        return self.versions.served

    async def address(self) -> str:
        """Return the path of a Unix socket for calls from the same machine that do not pass through Ray Serve."""
        return await self.listener.address()

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray Serve awaits this before it ends a replica, so that calls in progress over the Unix socket are answered first."""
        return self.listener.close() if self.listener.is_open else None
