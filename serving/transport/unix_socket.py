"""Calls over a Unix socket between two processes of one user on one machine. They cost a tenth of a call through Ray Serve.

A replica listens on a socket in a folder that only its user can enter. It returns the socket's path when it is called through Ray
Serve. Messages are pickled, so both ends ask the operating system for the other end's user and accept only their own.

A frame holds the number of a call, the length of the content, and the pickled content. A request is (method, arguments). A reply is
(succeeded, result or error). An empty request cancels the call with its number.
"""

import asyncio
import errno
import itertools
import logging
import os
import pickle
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ray_lir.base.errors import RayLirError

logger = logging.getLogger("ray.serve")

HEADER = struct.Struct("<QQ")
MAX_FRAME_BYTES = 1 << 30
PEER = struct.Struct("=iII")
"""Linux's struct ucred: process, user and group."""


def peer_user(connection: socket.socket) -> int | None:
    """The user id of the process at the other end of a Unix socket; None if the operating system does not report it."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    return PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[1]


class Frames(asyncio.Protocol):
    """One end of a connection: splits the byte stream into frames.

    Args:
        received: Called with the number and the content of every frame.
        lost: Called when the connection has ended.
    """

    def __init__(self, received: Callable[["Frames", int, bytes], None], lost: Callable[["Frames"], None]):
        self._received = received
        self._lost = lost
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Abort the connection if the other end belongs to another user."""
        self.transport = cast(asyncio.Transport, transport)
        self.is_trusted = peer_user(self.transport.get_extra_info("socket")) == os.geteuid()
        if not self.is_trusted:
            logger.warning("refused a connection of another user of this machine")
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Pass on the frames that are complete."""
        if not self.is_trusted:
            return
        self._buffer += data
        while len(self._buffer) >= HEADER.size:
            number, size = HEADER.unpack_from(self._buffer)
            if size > MAX_FRAME_BYTES:
                self.transport.abort()
                return
            end = HEADER.size + size
            if len(self._buffer) < end:
                return
            content = bytes(self._buffer[HEADER.size : end])
            del self._buffer[:end]
            self._received(self, number, content)

    def connection_lost(self, error: Exception | None) -> None:
        """Report the end of the connection."""
        self._lost(self)

    def send(self, number: int, content: bytes) -> None:
        """Write one frame, unless the connection is closing."""
        if not self.transport.is_closing():
            self.transport.write(HEADER.pack(number, len(content)) + content)


class UnixListener:
    """The replica's end: runs methods of `target` for its callers, all of them concurrently."""

    def __init__(self, target: Any):
        self.target = target
        self._listening: tuple[asyncio.Server, tempfile.TemporaryDirectory[str]] | None = None
        self._running: dict[tuple[Frames, int], asyncio.Task[None]] = {}
        self._open: set[Frames] = set()

    @property
    def is_open(self) -> bool:
        """Whether a caller is connected or can connect."""
        return bool(self._listening or self._open)

    async def address(self) -> str:
        """Start to listen for one connection and return the socket's path.

        The socket and its folder are removed when a caller has connected. A killed replica therefore leaves at most one folder.

        Raises:
            OSError: It cannot listen, or the operating system does not report the user of a connection.
        """
        if not hasattr(socket, "SO_PEERCRED"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        self._stop_listening()
        folder = tempfile.TemporaryDirectory(prefix="ray_lir-")
        path = str(Path(folder.name, "socket"))
        self._listening = (await asyncio.get_running_loop().create_unix_server(self._accept, path), folder)
        return path

    async def close(self) -> None:
        """Accept no further calls, and return when those in progress have been answered."""
        self._stop_listening()
        for frames in self._open:
            frames.transport.pause_reading()  # the caller repeats later calls through Ray Serve
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for frames in self._open:
            frames.transport.close()

    def _stop_listening(self) -> None:
        if self._listening:
            server, folder = self._listening
            server.close()
            folder.cleanup()
            self._listening = None

    def _accept(self) -> Frames:
        frames = Frames(self._request, self._lost)
        self._open.add(frames)
        asyncio.get_running_loop().call_soon(self._stop_listening)  # asyncio still needs the server to make the connection
        return frames

    def _request(self, frames: Frames, number: int, request: bytes) -> None:
        call = (frames, number)
        if request:
            self._running[call] = asyncio.create_task(self._reply(frames, number, request))
            self._running[call].add_done_callback(lambda _: self._running.pop(call))
        elif call in self._running:
            self._running[call].cancel()

    def _lost(self, frames: Frames) -> None:
        self._open.discard(frames)
        for (caller, _), task in self._running.items():
            if caller is frames:
                task.cancel()

    async def _reply(self, frames: Frames, number: int, request: bytes) -> None:
        method, args = pickle.loads(request)
        try:
            reply = (True, await getattr(self.target, method)(*args))
        except RayLirError as error:
            reply = (False, error)
        except Exception as error:
            logger.exception("%s failed", method)
            reply = (False, RuntimeError(f"{method} failed with {type(error).__name__}: {error}"))
        frames.send(number, pickle.dumps(reply, pickle.HIGHEST_PROTOCOL))


class UnixConnection:
    """The gateway's end. `UnixConnection.open` makes one."""

    def __init__(self) -> None:
        self.is_open = True
        self._frames = Frames(self._reply, self._lost)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def open(cls, address: str) -> "UnixConnection":
        """Connect to the socket at a path.

        Raises:
            OSError: No process listens there on this machine, or a process of another user does.
        """
        connection = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: connection._frames, address)
        if not connection._frames.is_trusted:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), address)
        return connection

    async def call(self, method: str, *args: Any) -> Any:
        """Call a method of the replica and return its result, or raise its error.

        Raises:
            ConnectionError: The connection is lost.
        """
        if not self.is_open:
            raise ConnectionError
        number = next(self._numbers)
        reply = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._frames.send(number, pickle.dumps((method, args), pickle.HIGHEST_PROTOCOL))
        try:
            return await reply
        finally:
            if self._waiting.pop(number, None):
                self._frames.send(number, b"")

    def close(self) -> None:
        """Close the connection."""
        self._frames.transport.close()

    def _reply(self, frames: Frames, number: int, content: bytes) -> None:
        waiting = self._waiting.pop(number, None)
        if waiting is None or waiting.done():  # the caller was cancelled
            return
        succeeded, value = pickle.loads(content)
        if succeeded:
            waiting.set_result(value)
        else:
            waiting.set_exception(value)

    def _lost(self, frames: Frames) -> None:
        self.is_open = False
        waiting, self._waiting = self._waiting, {}
        for reply in waiting.values():
            if not reply.done():
                reply.set_exception(ConnectionError())
