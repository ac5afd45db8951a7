"""The service in one process, without Ray: the gateway, the query encoder and the shard groups are objects of this process."""

import math
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module

import uvicorn
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.errors import ConfigError
from ray_lir.index.versions import latest_version, read_version

from .http.access import Access, Credentials, Guard, check_address
from .http.routes import routes, routes_of_many
from .indexes.open_indexes import open_indexes
from .metrics import Metrics
from .options import Options, ServeConfig
from .prometheus import Registry
from .service import Service
from .settings import access_of, check_index, parse, shard_groups
from .transport.local import LocalTransport
from .transport.protocol import ENCODER
from .workers.query_encoder import QueryEncoder
from .workers.shard_server import ShardServer


def main() -> None:
    """Serve until interrupted. Prints the service's address on standard output when it is ready.

    A user's mistake ends the process with one line on standard error and exit code 2.
    """
    cli = import_module(f"{(__package__ or '').removesuffix('serving')}jobs.cli")
    logs.configure()
    with cli.ending_in_one_line():
        serve_in_process(cli.parse(Options, sys.argv[1:], "index"))


def serve_in_process(options: Options) -> None:
    """Open the index, listen, and wait for an interrupt.

    Args:
        options: Settings of the service. Those of Ray's replicas and reserved resources are not used.

    Raises:
        ConfigError: A setting is wrong, the address cannot be listened on, or the encoder cannot be loaded.
        FormatError: The index is damaged.
        IncompatibleError: The index was built with another encoder than the checkpoint.
    """
    config = parse(options.model_dump(exclude={"host", "port", "where"}))
    access = access_of(config)
    check_address(options.host, access)
    with _bound(options.host, options.port) as listener:
        registry = Registry()
        app = application_of(config, access, registry)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=math.ceil(config.timeout_s) + 5,  # requests in progress may finish
        )
        with suppress(KeyboardInterrupt):  # uvicorn raises it again after the requests in progress have finished
            _Server(settings, lambda: print(ready_line(options), flush=True)).run([listener])


def application_of(config: ServeConfig, access: Access, registry: Registry) -> FastAPI:
    """Return the HTTP application, with the index open. `GET /metrics` returns the metrics to every token that may read.

    Args:
        config: Settings of the service.
        access: Tokens, roles and allowed web origins.
        registry: Holds the metrics.

    Raises:
        ConfigError: A setting is wrong, or the encoder cannot be loaded.
        FormatError: The index is damaged.
        IncompatibleError: The index was built with another encoder than the checkpoint.
    """
    if config.indexes is None:
        metrics = Metrics(storage.base_name(config.index), registry)
        service = open_service(config, metrics)
        app = routes(service, access, service.running)
    else:
        metrics = Metrics(registry=registry)
        app = routes_of_many(open_indexes(config, metrics), access)
    guard = Guard(access, metrics.refused)

    async def show_metrics(credentials: Credentials) -> PlainTextResponse:
        guard.check("read", credentials)
        return PlainTextResponse(registry.text(), media_type="text/plain; version=0.0.4")

    app.add_api_route("/metrics", show_metrics, include_in_schema=False)
    return app


def open_service(config: ServeConfig, metrics: Metrics) -> Service:
    """Return the service of one index, with its query encoder and shard groups open.

    Args:
        config: Settings of the service.
        metrics: Counts and times the requests.

    Raises:
        ConfigError: The encoder cannot be loaded, or the index was built from embeddings of an unknown encoder.
        FormatError: The index is damaged.
        IncompatibleError: The index was built with another encoder than the checkpoint.
    """
    version = latest_version(config.index) if config.version is None else config.version
    manifest = read_version(config.index, version)
    check_index(config, manifest)
    encoder = QueryEncoder(config.index, version, config.encoder, config.verify, config.kernels, residency=config.residency)
    groups = {name: ShardServer(*arguments) for name, arguments in shard_groups(config, version, manifest).items()}
    return Service(
        config.index,
        version,
        list(groups),
        LocalTransport({ENCODER: encoder, **groups}, metrics),
        config.timeout_s,
        config.max_requests,
        metrics,
    )


def ready_line(options: Options) -> str:
    """Return the line that announces the address of the service."""
    return f"http://{options.host}:{options.port}/ is ready, and /docs describes its API"


class _Server(uvicorn.Server):
    """Calls a function when it accepts requests."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]):
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and call the function."""
        await super().startup(sockets)
        if self.started:
            self._ready()


def _bound(host: str, port: int) -> socket.socket:
    """Return a socket that is bound to the address. It is bound before the index is opened, which takes seconds."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return listener
