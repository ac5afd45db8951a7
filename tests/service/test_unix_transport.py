"""Unix transport: calls over a socket give the results of Ray Serve's handles, which take over without a socket."""

import asyncio
import os
import pickle
import socket
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ray_lir.base.errors import ConfigError, ShardUnavailable
from serving.transport import unix_socket
from serving.transport.unix import UnixTransport
from serving.transport.unix_socket import UnixConnection, UnixListener


class Replica:
    """A fake replica of a deployment."""

    def __init__(self) -> None:
        self.listener = UnixListener(self)
        self.began: list[str] = []
        self.cancelled: list[str] = []
        self.release = asyncio.Event()

    async def address(self) -> str:
        return await self.listener.address()

    async def echo(self, value: Any) -> Any:
        return value

    async def wrong(self) -> None:
        raise ConfigError("k must be between 1 and 10, not 11")

    async def broken(self) -> None:
        raise KeyError("no such thing")

    async def wait(self, name: str) -> str:
        self.began.append(name)
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return name


class Handles:
    """A fake of the calls through Ray Serve."""

    def __init__(self, replica: Replica):
        self.replica = replica
        self.calls: list[str] = []

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        self.calls.append(method)
        return await getattr(self.replica, method)(*args)

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        return [await self.call(name, deadline, method, *args)]


class Counted:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str, bool]] = []

    def call(self, target: str, method: str, seconds: float, failed: bool) -> None:
        self.calls.append((target, method, failed))


class Scene:
    """A replica, its socket, and the gateway's transport."""

    def __init__(self) -> None:
        self.replica = Replica()
        self.handles = Handles(self.replica)
        self.metrics = Counted()
        self.calls = UnixTransport(self.handles, ["ShardGroup-0"], self.metrics)

    async def call(self, method: str, *args: Any, seconds: float = 20, name: str = "ShardGroup-0") -> Any:
        return await self.calls.call(name, asyncio.get_running_loop().time() + seconds, method, *args)

    async def connect(self) -> None:
        """Wait until calls go over the socket."""
        self.metrics.calls.clear()
        while not self.metrics.calls:
            await self.call("echo", None)
            await asyncio.sleep(0)
        self.handles.calls.clear()
        self.metrics.calls.clear()


def play(scene: Callable[[Scene], Awaitable[None]]) -> None:
    async def played() -> None:
        await asyncio.wait_for(scene(Scene()), 60)

    asyncio.run(played())


async def until(true: Callable[[], bool]) -> None:
    while not true():
        await asyncio.sleep(0.001)


def test_calls_use_the_socket_once_it_is_open():
    async def scene(s: Scene) -> None:
        assert await s.call("echo", "first") == "first"
        assert s.handles.calls == ["echo"] and not s.metrics.calls
        await s.connect()
        large = np.arange(500_000)
        answers = await asyncio.gather(s.call("echo", large), *(s.call("echo", number) for number in range(50)))
        assert np.array_equal(answers[0], large) and answers[1:] == list(range(50))
        assert s.handles.calls == [] and s.metrics.calls == [("ShardGroup-0", "echo", False)] * 51

    play(scene)


def test_deployments_with_several_replicas_are_called_through_ray_serve():
    async def scene(s: Scene) -> None:
        for number in range(5):
            assert await s.call("echo", number, name="ShardGroup-1") == number
            await asyncio.sleep(0.01)
        assert s.handles.calls == ["echo"] * 5

    play(scene)


def test_errors_keep_their_type_across_the_socket():
    async def scene(s: Scene) -> None:
        await s.connect()
        with pytest.raises(ConfigError, match="k must be between 1 and 10, not 11"):
            await s.call("wrong")
        with pytest.raises(RuntimeError, match="broken failed with KeyError: 'no such thing'"):
            await s.call("broken")
        assert await s.call("echo", "and goes on") == "and goes on"

    play(scene)


def test_late_or_abandoned_calls_are_cancelled_in_the_worker():
    async def scene(s: Scene) -> None:
        await s.connect()
        with pytest.raises(ShardUnavailable, match="ShardGroup-0 did not answer in time"):
            await s.call("wait", "late", seconds=0.05)
        left = asyncio.create_task(s.call("wait", "left"))
        await until(lambda: "left" in s.replica.began)
        left.cancel()
        await until(lambda: len(s.replica.cancelled) == 2)
        assert s.replica.cancelled == ["late", "left"]
        assert s.metrics.calls == [("ShardGroup-0", "wait", True)] * 2
        assert await s.call("echo", "and goes on") == "and goes on"

    play(scene)


def test_unanswered_calls_of_a_lost_replica_are_retried_through_ray_serve_and_a_new_socket_opens():
    async def scene(s: Scene) -> None:
        await s.connect()
        lost, successor = s.replica, Replica()
        waiting = asyncio.create_task(s.call("wait", "question"))
        await until(lambda: bool(lost.began))
        s.handles.replica = successor
        for frames in lost.listener._open:
            frames.transport.abort()
        await until(lambda: successor.began == ["question"])
        assert lost.cancelled == ["question"]
        successor.release.set()
        assert await waiting == "question"
        await s.connect()
        assert await s.call("echo", "new") == "new" and s.handles.calls == []

    play(scene)


def test_a_stopping_replica_finishes_its_running_calls():
    async def scene(s: Scene) -> None:
        await s.connect()
        waiting = asyncio.create_task(s.call("wait", "question"))
        await until(lambda: bool(s.replica.began))
        closing = asyncio.create_task(s.replica.listener.close())
        await asyncio.sleep(0.02)
        assert not closing.done()
        s.replica.release.set()
        await closing
        assert await waiting == "question"
        await until(lambda: not s.replica.listener.is_open)
        await s.replica.listener.close()

    play(scene)


def test_a_replica_on_another_machine_is_called_through_ray_serve():
    async def scene(s: Scene) -> None:
        async def elsewhere() -> str:
            return "/nowhere/socket"

        s.replica.address = elsewhere
        for number in range(20):
            assert await s.call("echo", number) == number
            await asyncio.sleep(0.005)
        assert s.handles.calls.count("address") == 1 and s.handles.calls.count("echo") == 20

    play(scene)


def test_a_socket_address_is_used_once_and_removed():
    async def scene(s: Scene) -> None:
        forgotten, address = await s.replica.address(), await s.replica.address()
        assert not Path(forgotten).parent.exists()
        line = await UnixConnection.open(address)
        assert await line.call("echo", 1) == 1
        assert not Path(address).parent.exists()
        with pytest.raises(OSError):
            await UnixConnection.open(address)
        assert await (await UnixConnection.open(await s.replica.address())).call("echo", 2) == 2 and await line.call("echo", 3) == 3

    play(scene)


def test_sockets_are_accessible_only_to_their_user():
    async def scene(s: Scene) -> None:
        folder = Path(await s.replica.address()).parent
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and folder.stat().st_uid == os.getuid()
        await s.replica.listener.close()
        with pytest.raises(OSError):
            await UnixConnection.open(str(folder / "socket"))

    play(scene)


@pytest.mark.parametrize("side", ["replica", "gateway"])
def test_pickles_of_other_users_are_not_read(monkeypatch: pytest.MonkeyPatch, side: str) -> None:
    async def scene() -> None:
        replica = Replica()
        address = await replica.address()
        folder = os.stat(Path(address).parent)
        assert stat.S_IMODE(folder.st_mode) == 0o700
        assert folder.st_uid == os.geteuid()
        monkeypatch.setattr(unix_socket, "peer_user", lambda _: os.geteuid() + 1)
        if side == "gateway":
            with pytest.raises(PermissionError):
                await UnixConnection.open(address)
        else:
            reader, writer = await asyncio.open_unix_connection(address)
            content = pickle.dumps(("echo", (1,)))
            writer.write(unix_socket.HEADER.pack(0, len(content)) + content)
            with suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        assert not replica.listener._running
        await replica.listener.close()

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_socket_knows_the_user_of_its_peer() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert unix_socket.peer_user(here) == os.geteuid()
