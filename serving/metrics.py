"""Metrics of the gateway. Ray exports them; Prometheus sees them as `ray_lir_*`."""

from ray.util.metrics import Counter, Gauge, Histogram

from ray_lir.api.search import SearchResponse

from .workers.versions import Served

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
"""Bounds of the histograms of times, in seconds."""
FRACTIONS = [0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
"""Bounds of the histogram of coverage."""


class Metrics:
    """The metrics of one process. Labels are routes, engines, stages, deployments and versions, never queries, so they stay few."""

    def __init__(self) -> None:
        self._requests = Counter("lir_requests", "Requests by route and status.", ("route", "status"))
        self._request_seconds = Histogram("lir_request_seconds", "Seconds from request to reply, by route.", SECONDS, ("route",))
        self._step_seconds = Histogram(
            "lir_step_seconds", "Seconds of a search's steps: encode, plan, stage-N, documents.", SECONDS, ("step", "engine")
        )
        self._call_seconds = Histogram("lir_call_seconds", "Seconds of calls to a deployment.", SECONDS, ("target", "method"))
        self._failed_calls = Counter(
            "lir_failed_calls", "Calls that a deployment did not answer, or not before the deadline.", ("target", "method")
        )
        self._hedged_calls = Counter("lir_hedged_calls", "Calls sent a second time because they were late.", ("target", "method"))
        self._coverage = Histogram("lir_coverage", "Fraction of the documents that a search covered.", FRACTIONS, ())
        self._running = Gauge("lir_running_requests", "Requests in progress.", ())
        self._refused = Counter("lir_refused_requests", "Requests refused with status 429.", ())
        self._version = Gauge("lir_index_version", "Version of the index that is served.", ())
        self._traffic_fraction = Gauge("lir_canary_traffic_fraction", "Fraction of the requests that the canary answers.", ())
        self._search_seconds = Histogram("lir_search_seconds", "Seconds of a search, by index version.", SECONDS, ("version",))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: The route's path template.
            status: HTTP status of the reply; 499 if the client disconnected before it.
            seconds: Time from request to reply.
        """
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._request_seconds.observe(seconds, {"route": route})

    def search(self, response: SearchResponse) -> None:
        """Record the steps, the coverage and the version of a search."""
        timings = response.timings
        steps = {"encode": timings.encode, "plan": timings.plan, "documents": timings.documents}
        steps |= {f"stage-{number}": milliseconds for number, milliseconds in enumerate(timings.stages)}
        for step, milliseconds in steps.items():
            self._step_seconds.observe(milliseconds / 1000, {"step": step, "engine": response.engine})
        self._coverage.observe(response.coverage)
        self._search_seconds.observe(timings.total / 1000, {"version": str(response.index_version)})

    def call(self, target: str, method: str, seconds: float, failed: bool) -> None:
        """Record a call to a deployment.

        Args:
            target: Name of the deployment.
            method: Name of the called method.
            seconds: Duration of the call.
            failed: Whether the call raised an error or missed its deadline.
        """
        labels = {"target": target, "method": method}
        self._call_seconds.observe(seconds, labels)
        if failed:
            self._failed_calls.inc(1, labels)

    def hedged(self, target: str, method: str) -> None:
        """Count a call that was sent a second time."""
        self._hedged_calls.inc(1, {"target": target, "method": method})

    def running(self, number: int) -> None:
        """Set the number of requests in progress."""
        self._running.set(number)

    def refused(self) -> None:
        """Count a refused request."""
        self._refused.inc(1)

    def served(self, served: Served) -> None:
        """Set the served version and the canary's fraction of the traffic."""
        self._version.set(served.version)
        self._traffic_fraction.set(served.traffic_fraction)
