"""Lines: direct connections from the gateway to replicas on its machine, for which a message costs a fraction of one through Serve.

A replica listens on a Unix socket in a folder that only its user can enter, and tells its address through Serve. Both ends ask the
system which user the other end runs as, and read nothing from anybody else: what they read is unpickled.

A frame is the number of a call, the length of the content, and the content, pickled: a request (method, arguments) one way and an
answer (whether it succeeded, value or error) the other. A request of no bytes gives the call up.
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
from typing import Any

from ray_lir.base.errors import RayLirError

logger = logging.getLogger("ray.serve")

HEADER = struct.Struct("<QQ")
MAX_FRAME_BYTES = 1 << 30
PEER = struct.Struct("=iII")
"""Linux's struct ucred: process, user and group."""


def peer_user(connection: socket.socket) -> int | None:
    """The id of the user who connected, or listens, at the other end of a Unix socket; None where the system does not say."""
    if not hasattr(socket, "SO_PEERCRED"):
        return None
    return PEER.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER.size))[1]


class Frames(asyncio.Protocol):
    """Either end of a connection.

    Args:
        received: called with the number and the content of every frame.
        lost: called when the connection has ended.
    """

    def __init__(self, received: Callable[["Frames", int, bytes], None], lost: Callable[["Frames"], None]):
        self._received = received
        self._lost = lost
        self._arrived = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.is_trusted = peer_user(transport.get_extra_info("socket")) == os.geteuid()
        if not self.is_trusted:
            logger.warning("a connection of another user of this machine is refused")
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if not self.is_trusted:
            return
        self._arrived += data
        while len(self._arrived) >= HEADER.size:
            number, size = HEADER.unpack_from(self._arrived)
            if size > MAX_FRAME_BYTES:
                self.transport.abort()
                return
            end = HEADER.size + size
            if len(self._arrived) < end:
                return
            content = bytes(self._arrived[HEADER.size : end])
            del self._arrived[:end]
            self._received(self, number, content)

    def connection_lost(self, error: Exception | None) -> None:
        self._lost(self)

    def send(self, number: int, content: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(HEADER.pack(number, len(content)) + content)


class Listener:
    """The replica's end: calls methods of `target`, as many at a time as come in."""

    def __init__(self, target: Any):
        self.target = target
        self._listening: tuple[asyncio.Server, tempfile.TemporaryDirectory[str]] | None = None
        self._running: dict[tuple[Frames, int], asyncio.Task[None]] = {}
        self._open: set[Frames] = set()

    @property
    def is_open(self) -> bool:
        """Whether somebody is connected, or may connect."""
        return bool(self._listening or self._open)

    async def address(self) -> str:
        """Where it listens from now on, for one connection: what is left of a killed replica is at most a folder that nobody came to.

        Raises OSError where it cannot listen, or the system does not say who connects.
        """
        if not hasattr(socket, "SO_PEERCRED"):
            raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
        self._stop_listening()
        folder = tempfile.TemporaryDirectory(prefix="ray_lir-")
        path = str(Path(folder.name, "line"))
        self._listening = (await asyncio.get_running_loop().create_unix_server(self._connection, path), folder)
        return path

    async def close(self) -> None:
        """Takes in nothing more, and ends when what is being worked on has been answered."""
        self._stop_listening()
        for frames in self._open:
            frames.transport.pause_reading()  # what comes in now is asked again through Serve
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        for frames in self._open:
            frames.transport.close()

    def _stop_listening(self) -> None:
        if self._listening:
            server, folder = self._listening
            server.close()
            folder.cleanup()
            self._listening = None

    def _connection(self) -> Frames:
        frames = Frames(self._request, self._lost)
        self._open.add(frames)
        asyncio.get_running_loop().call_soon(self._stop_listening)  # asyncio still needs the server to make the connection
        return frames

    def _request(self, frames: Frames, number: int, request: bytes) -> None:
        call = (frames, number)
        if request:
            self._running[call] = asyncio.create_task(self._answer(frames, number, request))
            self._running[call].add_done_callback(lambda _: self._running.pop(call))
        elif call in self._running:
            self._running[call].cancel()

    def _lost(self, frames: Frames) -> None:
        self._open.discard(frames)
        for (caller, _), task in self._running.items():
            if caller is frames:
                task.cancel()

    async def _answer(self, frames: Frames, number: int, request: bytes) -> None:
        method, args = pickle.loads(request)
        try:
            answer = (True, await getattr(self.target, method)(*args))
        except RayLirError as error:
            answer = (False, error)
        except Exception as error:
            logger.exception("%s failed", method)
            answer = (False, RuntimeError(f"{method} failed with {type(error).__name__}: {error}"))
        frames.send(number, pickle.dumps(answer, pickle.HIGHEST_PROTOCOL))


class Line:
    """The gateway's end. `open` makes one."""

    def __init__(self) -> None:
        self.is_open = True
        self._frames = Frames(self._answer, self._lost)
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @classmethod
    async def open(cls, address: str) -> "Line":
        """Raises OSError if nobody listens there on this machine, or another user does."""
        line = cls()
        await asyncio.get_running_loop().create_unix_connection(lambda: line._frames, address)
        if not line._frames.is_trusted:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), address)
        return line

    async def ask(self, method: str, *args: Any) -> Any:
        """The answer. Raises what the method raised, or ConnectionError if the replica is lost."""
        if not self.is_open:
            raise ConnectionError
        number = next(self._numbers)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        self._frames.send(number, pickle.dumps((method, args), pickle.HIGHEST_PROTOCOL))
        try:
            return await answer
        finally:
            if self._waiting.pop(number, None):
                self._frames.send(number, b"")

    def close(self) -> None:
        self._frames.transport.close()

    def _answer(self, frames: Frames, number: int, content: bytes) -> None:
        waiting = self._waiting.pop(number, None)  # None: given up meanwhile
        if waiting is None or waiting.done():
            return
        succeeded, value = pickle.loads(content)
        if succeeded:
            waiting.set_result(value)
        else:
            waiting.set_exception(value)

    def _lost(self, frames: Frames) -> None:
        self.is_open = False
        waiting, self._waiting = self._waiting, {}
        for each in waiting.values():
            if not each.done():
                each.set_exception(ConnectionError())
