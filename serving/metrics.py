"""Metrics of the gateway. Ray or `Registry` exports them; Prometheus sees them as `ray_lir_*`."""

import copy
from typing import Any

from ray_lir.api.search import SearchResponse

from .prometheus import Registry
from .workers.versions import Served

SECONDS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
"""Bounds of the histograms of times, in seconds."""
WRITE_SECONDS = [0.5, 1.0, 2.0, 3.0, 5.0, 7.5, 10.0, 20.0, 30.0, 60.0, 300.0]
"""Bounds of the histogram of times until writes are visible, in seconds."""
FRACTIONS = [0.25, 0.5, 0.75, 0.9, 0.99, 0.999]
"""Bounds of the histogram of coverage."""


class Metrics:
    """The metrics of one process. Labels are indexes, routes, engines, stages, deployments and versions, never queries, so they stay few.

    Args:
        index: Name of the index, the label `index` of every metric. Empty: requests that concern no index.
        registry: Exports the metrics of a process without Ray. None: Ray exports them.
    """

    def __init__(self, index: str = "", registry: Registry | None = None):
        Counter, Gauge, Histogram = _kinds(registry)
        self._label = {"index": index}
        self._requests = Counter("lir_requests", "Requests by route and status.", ("index", "route", "status"))
        self._request_seconds = Histogram("lir_request_seconds", "Seconds from request to reply, by route.", SECONDS, ("index", "route"))
        self._step_seconds = Histogram(
            "lir_step_seconds", "Seconds of a search's steps: encode, plan, stage-N, documents.", SECONDS, ("index", "step", "engine")
        )
        self._call_seconds = Histogram("lir_call_seconds", "Seconds of calls to a deployment.", SECONDS, ("index", "target", "method"))
        self._failed_calls = Counter(
            "lir_failed_calls", "Calls that a deployment did not answer, or not before the deadline.", ("index", "target", "method")
        )
        self._hedged_calls = Counter("lir_hedged_calls", "Calls sent a second time because they were late.", ("index", "target", "method"))
        self._coverage = Histogram("lir_coverage", "Fraction of the documents that a search covered.", FRACTIONS, ("index",))
        self._running = Gauge("lir_running_requests", "Requests in progress.", ("index",))
        self._refused = Counter("lir_refused_requests", "Requests refused with status 429.", ("index",))
        self._version = Gauge("lir_index_version", "Version of the index that is served.", ("index",))
        self._traffic_fraction = Gauge("lir_canary_traffic_fraction", "Fraction of the requests that the canary answers.", ("index",))
        self._search_seconds = Histogram("lir_search_seconds", "Seconds of a search, by index version.", SECONDS, ("index", "version"))
        self._written = Counter("lir_written", "Accepted documents and deletions, by operation.", ("index", "operation"))
        self._unpublished = Gauge("lir_unpublished_writes", "Accepted documents and deletions that no version holds yet.", ("index",))
        self._visible_seconds = Histogram(
            "lir_visible_seconds", "Seconds from the answer of a write until searches see it.", WRITE_SECONDS, ("index",)
        )
        self._publish_failures = Counter("lir_publish_failures", "Failed attempts to publish writes or to serve them.", ("index",))
        self._unencodable = Counter("lir_unencodable_documents", "Accepted documents that could not be encoded.", ("index",))
        self._open_indexes = Gauge("lir_open_indexes", "Open indexes of a service of several.", ("index",))
        self._index_bytes = Gauge("lir_index_bytes", "Estimated memory of an index in bytes; 0 while it is closed.", ("index",))
        self._index_opens = Counter("lir_index_opens", "Times that an index was opened.", ("index", "result"))

    def for_index(self, name: str) -> "Metrics":
        """Return the same metrics with the label of another index."""
        other = copy.copy(self)
        other._label = {"index": name}
        return other

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            route: The route's path template.
            status: HTTP status of the reply; 499 if the client disconnected before it.
            seconds: Time from request to reply.
        """
        self._requests.inc(1, self._label | {"route": route, "status": str(status)})
        self._request_seconds.observe(seconds, self._label | {"route": route})

    def search(self, response: SearchResponse) -> None:
        """Record the steps, the coverage and the version of a search."""
        timings = response.timings
        steps = {"encode": timings.encode, "plan": timings.plan, "documents": timings.documents}
        steps |= {f"stage-{number}": milliseconds for number, milliseconds in enumerate(timings.stages)}
        for step, milliseconds in steps.items():
            self._step_seconds.observe(milliseconds / 1000, self._label | {"step": step, "engine": response.engine})
        self._coverage.observe(response.coverage, self._label)
        self._search_seconds.observe(timings.total / 1000, self._label | {"version": str(response.index_version)})

    def call(self, target: str, method: str, seconds: float, failed: bool) -> None:
        """Record a call to a deployment.

        Args:
            target: Name of the deployment.
            method: Name of the called method.
            seconds: Duration of the call.
            failed: Whether the call raised an error or missed its deadline.
        """
        labels = self._label | {"target": target, "method": method}
        self._call_seconds.observe(seconds, labels)
        if failed:
            self._failed_calls.inc(1, labels)

    def hedged(self, target: str, method: str) -> None:
        """Count a call that was sent a second time."""
        self._hedged_calls.inc(1, self._label | {"target": target, "method": method})

    def running(self, number: int) -> None:
        """Set the number of requests in progress."""
        self._running.set(number, self._label)

    def refused(self) -> None:
        """Count a refused request."""
        self._refused.inc(1, self._label)

    def written(self, documents: int, deletions: int) -> None:
        """Count accepted writes."""
        for operation, number in (("add", documents), ("delete", deletions)):
            if number:
                self._written.inc(number, self._label | {"operation": operation})

    def unpublished(self, number: int) -> None:
        """Set the number of accepted documents and deletions that no version holds yet."""
        self._unpublished.set(number, self._label)

    def visible(self, seconds: float) -> None:
        """Record the time from the answer of a write until searches see it."""
        self._visible_seconds.observe(seconds, self._label)

    def publish_failed(self) -> None:
        """Count a failed attempt to publish writes or to serve them."""
        self._publish_failures.inc(1, self._label)

    def unencodable(self, number: int) -> None:
        """Count accepted documents that could not be encoded."""
        if number:
            self._unencodable.inc(number, self._label)

    def served(self, served: Served) -> None:
        """Set the served version and the canary's fraction of the traffic."""
        self._version.set(served.version, self._label)
        self._traffic_fraction.set(served.traffic_fraction, self._label)

    def opened(self, num_bytes: int) -> None:
        """Count that an index was opened, and set its estimated memory in bytes."""
        self._index_opens.inc(1, self._label | {"result": "ok"})
        self._index_bytes.set(num_bytes, self._label)

    def failed_to_open(self) -> None:
        """Count that an index could not be opened."""
        self._index_opens.inc(1, self._label | {"result": "error"})

    def closed(self) -> None:
        """Set the memory of a closed index to 0."""
        self._index_bytes.set(0, self._label)

    def open_indexes(self, number: int) -> None:
        """Set the number of open indexes."""
        self._open_indexes.set(number, self._label)


def _kinds(registry: Registry | None) -> tuple[Any, Any, Any]:
    """Return what makes a counter, a gauge and a histogram."""
    if registry:
        return registry.counter, registry.gauge, registry.histogram
    from ray.util.metrics import Counter, Gauge, Histogram  # Ray takes a second to load

    return Counter, Gauge, Histogram
