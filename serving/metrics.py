"""Metrics: what the gateway tells Ray's metrics; Prometheus sees them as ray_lir_*."""

from ray.util.metrics import Counter, Gauge, Histogram

from ray_lir.api.search import SearchResponse

from .workers.versions import Served

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
SHARES = [0.25, 0.5, 0.75, 0.9, 0.99, 0.999]


class Metrics:
    """One process's. Labels have few values: routes, engines, stages and deployments, never a query."""

    def __init__(self) -> None:
        self._requests = Counter("lir_requests", "Requests by route and status.", ("route", "status"))
        self._request_seconds = Histogram("lir_request_seconds", "Time to answer, by route.", SECONDS, ("route",))
        self._step_seconds = Histogram(
            "lir_step_seconds", "Time of a search's steps: encode, plan, stage-N, documents.", SECONDS, ("step", "engine")
        )
        self._call_seconds = Histogram("lir_call_seconds", "Time of calls to a deployment.", SECONDS, ("target", "method"))
        self._failed_calls = Counter("lir_failed_calls", "Calls that a deployment did not answer, or not in time.", ("target", "method"))
        self._hedged_calls = Counter("lir_hedged_calls", "Calls that were made again because they were late.", ("target", "method"))
        self._coverage = Histogram("lir_coverage", "Share of the documents that searches covered.", SHARES, ())
        self._running = Gauge("lir_running_requests", "Requests that are being worked on.", ())
        self._refused = Counter("lir_refused_requests", "Requests refused because too many were being worked on.", ())
        self._version = Gauge("lir_index_version", "Version of the index that is served.", ())
        self._canary_share = Gauge("lir_canary_share", "Share of the requests that another version answers.", ())
        self._search_seconds = Histogram("lir_search_seconds", "Time of searches, by the version that answered.", SECONDS, ("version",))

    def request(self, route: str, status: int, seconds: float) -> None:
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._request_seconds.observe(seconds, {"route": route})

    def search(self, response: SearchResponse) -> None:
        timings = response.timings
        steps = {"encode": timings.encode, "plan": timings.plan, "documents": timings.documents}
        steps |= {f"stage-{number}": milliseconds for number, milliseconds in enumerate(timings.stages)}
        for step, milliseconds in steps.items():
            self._step_seconds.observe(milliseconds / 1000, {"step": step, "engine": response.engine})
        self._coverage.observe(response.coverage)
        self._search_seconds.observe(timings.total / 1000, {"version": str(response.index_version)})

    def call(self, target: str, method: str, seconds: float, failed: bool) -> None:
        labels = {"target": target, "method": method}
        self._call_seconds.observe(seconds, labels)
        if failed:
            self._failed_calls.inc(1, labels)

    def hedged(self, target: str, method: str) -> None:
        self._hedged_calls.inc(1, {"target": target, "method": method})

    def running(self, number: int) -> None:
        self._running.set(number)

    def refused(self) -> None:
        self._refused.inc(1)

    def served(self, served: Served) -> None:
        self._version.set(served.version)
        self._canary_share.set(served.share)
