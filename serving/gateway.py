"""Gateway and IndexesGateway: the deployments that receive HTTP requests, for one index or for several."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from ray_lir import storage

from .handlers.writes import WriteOptions
from .http.access import Access, check_address
from .http.routes import routes, routes_of_many
from .indexes.open_indexes import open_indexes
from .metrics import Metrics
from .options import ServeConfig
from .service import Service
from .transport.hedged import HedgedTransport
from .transport.protocol import ENCODER, WRITER, Transport
from .transport.ray import RayTransport
from .transport.unix import UnixTransport


@serve.ingress()
class Gateway:
    """Connects the HTTP routes, a `Service`, and the transport to its workers.

    Args:
        root: Folder or URL of the index.
        version: Version of the index to serve first.
        encoder: Handle of the query encoder.
        groups: Handles of the shard groups by name, in document order.
        timeout_s: Longest time of a request, in seconds.
        max_requests: Concurrent requests; further requests are refused.
        hedge_percentile: Calls slower than this percentile of recent calls are sent again. None: no calls are.
        one_replica: Whether the query encoder and each group have one replica at all times.
        access: Tokens, roles and allowed web origins.
        writer: Handle of the writer. None: the service accepts no writes.
        writes: Settings of writes. None: the service accepts no writes.

    Raises:
        ConfigError: Ray Serve listens on a network, and no tokens are set.
    """

    def __init__(
        self,
        root: str,
        version: int,
        encoder: DeploymentHandle,
        groups: dict[str, DeploymentHandle],
        timeout_s: float,
        max_requests: int,
        hedge_percentile: float | None,
        one_replica: bool,
        access: Access,
        writer: DeploymentHandle | None = None,
        writes: WriteOptions | None = None,
    ):
        check_address(listening_host(), access)
        metrics = Metrics(storage.base_name(root))
        writers = {} if writer is None else {WRITER: writer}
        transport: Transport = RayTransport({ENCODER: encoder, **groups, **writers}, metrics)
        if hedge_percentile is not None:
            transport = HedgedTransport(transport, groups, hedge_percentile, metrics)
        if one_replica:
            transport = UnixTransport(transport, (ENCODER, *groups), metrics)
        self.access = access
        self.service = Service(root, version, list(groups), transport, timeout_s, max_requests, metrics, writes)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes(self.service, self.access, self.service.running)


@serve.ingress()
class IndexesGateway:
    """Connects the HTTP routes and several indexes. The workers of each open index are objects of this process.

    Args:
        config: Settings of the service; `indexes` is set.
        access: Tokens, roles and allowed web origins.

    Raises:
        ConfigError: Ray Serve listens on a network, and no tokens are set.
    """

    def __init__(self, config: ServeConfig, access: Access):
        check_address(listening_host(), access)
        self.access = access
        self.indexes = open_indexes(config, Metrics())

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes_of_many(self.indexes, self.access)


def listening_host() -> str:
    """The address that Ray Serve's HTTP proxies listen on."""
    client = serve.context._get_global_client()
    assert client is not None  # a deployment runs, so Ray Serve does
    return client.http_config.host
