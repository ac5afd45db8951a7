"""Gateway: the deployment that listens to HTTP."""

from fastapi import FastAPI
from ray import serve
from ray.serve.handle import DeploymentHandle

from .http.access import Access, check_address
from .http.routes import routes
from .metrics import Metrics
from .service import Service
from .transport.direct import DirectCalls
from .transport.hedged import HedgedCalls
from .transport.ray import ENCODER, Calls, RayCalls


@serve.ingress()
class Gateway:
    """Puts a Service over Ray Serve's handles behind the routes.

    Args:
        encoder: the query encoder.
        groups: the shard groups by name, in document order.
        timeout_s: what a request may take.
        max_requests: requests that are worked on at a time.
        hedge_percentile: calls of a group that take longer than this percentile of the last ones are made again; None: never.
        one_replica: whether the query encoder and each group have one replica, and never more.

    Raises:
        ConfigError: if Serve listens to a network and no tokens are asked for.
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
    ):
        check_address(listening_host(), access)
        metrics = Metrics()
        calls: Calls = RayCalls({ENCODER: encoder, **groups}, metrics)
        if hedge_percentile is not None:
            calls = HedgedCalls(calls, groups, hedge_percentile, metrics)
        if one_replica:
            calls = DirectCalls(calls, (ENCODER, *groups), metrics)
        self.access = access
        self.service = Service(root, version, list(groups), calls, timeout_s, max_requests, metrics)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return routes(self.service, self.access)


def listening_host() -> str:
    """The address that Serve's HTTP proxies listen on."""
    return serve.context._get_global_client().http_config.host
