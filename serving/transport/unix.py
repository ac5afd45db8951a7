"""UnixTransport: calls over Unix sockets to replicas on the gateway's machine, and through another transport otherwise."""

import asyncio
import time
from collections.abc import Collection
from typing import Any

from ray_lir.base.errors import RayLirError

from ..metrics import Metrics
from .protocol import Transport, timeout_error
from .unix_socket import UnixConnection

RETRY_S = 10.0
"""Pause after a failed connection attempt: the replica is on another machine or in another container."""
CONNECT_TIMEOUT_S = 60.0


class UnixTransport:
    """Calls each deployment's only replica over a Unix socket.

    Ray Serve chooses a replica for each call, counts calls for autoscaling, and queues them until a replica has started. With a
    single replica that is running on this machine, none of this is needed. Every other call goes through `fallback`. That includes
    the call for the socket's address, and calls without an answer when a connection is lost.

    Args:
        fallback: Transport for all other calls.
        names: Deployments that have one replica.
        metrics: Counts and times the calls.
    """

    def __init__(self, fallback: Transport, names: Collection[str], metrics: Metrics):
        self.fallback = fallback
        self.names = frozenset(names)
        self.metrics = metrics
        self._connections: dict[str, UnixConnection] = {}
        self._connecting: dict[str, asyncio.Task[None]] = {}
        self._retry_at: dict[str, float] = {}

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        """See `Transport.call`.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        connection = self._connections.get(name)
        if connection is None or not connection.is_open:
            self._start_connecting(name)
        else:
            try:
                return await self._call(connection, name, deadline, method, *args)
            except ConnectionError:
                pass  # the replica was lost; Serve starts another
        return await self.fallback.call(name, deadline, method, *args)

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        """See `Transport.call_all`. Uses the fallback.

        Args:
            name: Deployment to call.
            deadline: Time of the running event loop, in seconds.
            method: Name of the method.
            args: Its arguments.
        """
        return await self.fallback.call_all(name, deadline, method, *args)

    async def _call(self, connection: UnixConnection, name: str, deadline: float, method: str, *args: Any) -> Any:
        start = time.perf_counter()
        failed = True
        try:
            async with asyncio.timeout_at(deadline):
                result = await connection.call(method, *args)
            failed = False
            return result
        except TimeoutError:
            raise timeout_error(name) from None
        finally:
            self.metrics.call(name, method, time.perf_counter() - start, failed)

    def _start_connecting(self, name: str) -> None:
        """Connects in the background, unless an attempt is in progress or failed less than RETRY_S ago."""
        now = asyncio.get_running_loop().time()
        if name in self.names and name not in self._connecting and now >= self._retry_at.get(name, 0.0):
            self._connecting[name] = asyncio.create_task(self._connect(name, now + CONNECT_TIMEOUT_S))
            self._connecting[name].add_done_callback(lambda _: self._connecting.pop(name))

    async def _connect(self, name: str, deadline: float) -> None:
        try:
            self._connections[name] = await UnixConnection.open(await self.fallback.call(name, deadline, "address"))
        except (OSError, RayLirError):
            self._retry_at[name] = asyncio.get_running_loop().time() + RETRY_S
