"""The whole service in one process: gateway, query encoder and shard groups without Ray."""

import asyncio
import pickle
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from ray_lir.base.errors import ShardUnavailable
from serving.handlers.writes import WriteOptions
from serving.http.access import Access
from serving.http.routes import routes
from serving.metrics import Metrics
from serving.service import Service
from serving.transport.protocol import ENCODER, WRITER
from serving.workers.query_encoder import QueryEncoder
from serving.workers.shard_server import ShardServer
from serving.workers.writer import Writer


class LocalTransport:
    """Calls the deployments' objects; arguments and replies are pickled, as between processes.

    Attributes:
        faults: For each deployment, a function that runs before each call: it may sleep or raise.
        calls: The calls, in order.
    """

    def __init__(self, deployments: dict[str, Any]):
        self.deployments = deployments
        self.faults: dict[str, Callable[[str], Any]] = {}
        self.calls: list[tuple[str, str]] = []

    async def call(self, name: str, deadline: float, method: str, *args: Any) -> Any:
        self.calls.append((name, method))
        try:
            async with asyncio.timeout_at(deadline):
                if name in self.faults:
                    await self.faults[name](method)
                answer = await getattr(self.deployments[name], method)(*pickle.loads(pickle.dumps(args)))
        except TimeoutError:
            raise ShardUnavailable(f"{name} did not answer in time; try again") from None
        return pickle.loads(pickle.dumps(answer))

    async def call_all(self, name: str, deadline: float, method: str, *args: Any) -> list[Any]:
        return [await self.call(name, deadline, method, *args)]


def local_service(
    index: Path | str,
    num_groups: int = 4,
    version: int = 1,
    max_requests: int = 64,
    cache: str | None = None,
    writes: WriteOptions | None = None,
) -> tuple[Service, LocalTransport]:
    names = [f"ShardGroup-{group}" for group in range(num_groups)]
    deployments: dict[str, Any] = {ENCODER: QueryEncoder(str(index), version, None, True)}
    for group, name in enumerate(names):
        deployments[name] = ShardServer(str(index), version, group, num_groups, 1.0, True, cache)
    if writes is not None:
        deployments[WRITER] = Writer(str(index), None)
    calls = LocalTransport(deployments)
    return Service(str(index), version, names, calls, 30.0, max_requests, Metrics(), writes), calls


@contextmanager
def served(service: Service, access: Access | None = None) -> Iterator[str]:
    """The address of the service, at a free port of this machine, while the body runs."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(routes(service, access), log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def raising(error: Exception, method: str | None = None) -> Callable[[str], Any]:
    async def fault(called: str) -> None:
        if method in (None, called):
            raise error

    return fault


def sleeping(seconds: float, method: str | None = None) -> Callable[[str], Any]:
    async def fault(called: str) -> None:
        if method in (None, called):
            await asyncio.sleep(seconds)

    return fault
