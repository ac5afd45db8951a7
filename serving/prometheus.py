"""Registry: counters, gauges and histograms of a process without Ray, as text for Prometheus."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from threading import Lock

PREFIX = "ray_"
"""Prefix that Ray gives to metrics, so that the dashboard and the alerts work for both."""
Labels = tuple[tuple[str, str], ...]


class Registry:
    """The metrics of a process. Its methods take the arguments of the classes of ray.util.metrics."""

    def __init__(self) -> None:
        self._metrics: list[Number | Histogram] = []

    def counter(self, name: str, description: str, tag_keys: Sequence[str] = ()) -> "Number":
        """Return a new counter.

        Args:
            name: Name of the metric.
            description: Its help text.
            tag_keys: Names of its labels.
        """
        counter = Number(f"{PREFIX}{name}_total", description, "counter")
        self._metrics.append(counter)
        return counter

    def gauge(self, name: str, description: str, tag_keys: Sequence[str] = ()) -> "Number":
        """Return a new gauge.

        Args:
            name: Name of the metric.
            description: Its help text.
            tag_keys: Names of its labels.
        """
        gauge = Number(f"{PREFIX}{name}", description, "gauge")
        self._metrics.append(gauge)
        return gauge

    def histogram(self, name: str, description: str, boundaries: Sequence[float], tag_keys: Sequence[str] = ()) -> "Histogram":
        """Return a new histogram.

        Args:
            name: Name of the metric.
            description: Its help text.
            boundaries: Upper bounds of the buckets, ascending.
            tag_keys: Names of its labels.
        """
        histogram = Histogram(f"{PREFIX}{name}", description, boundaries)
        self._metrics.append(histogram)
        return histogram

    def text(self) -> str:
        """Return all metrics in Prometheus' text format."""
        lines: list[str] = []
        for metric in self._metrics:
            lines += [f"# HELP {metric.name} {metric.description}", f"# TYPE {metric.name} {metric.kind}", *metric.lines()]
        return "\n".join(lines) + "\n"


class Number:
    """A counter or a gauge.

    Attributes:
        name: Name in Prometheus.
        description: Help text.
        kind: counter or gauge.
    """

    def __init__(self, name: str, description: str, kind: str):
        self.name = name
        self.description = description
        self.kind = kind
        self._values: dict[Labels, float] = {}
        self._lock = Lock()

    def inc(self, value: float, tags: Mapping[str, str]) -> None:
        """Add to the value of these labels."""
        with self._lock:
            self._values[_labels(tags)] = self._values.get(_labels(tags), 0.0) + value

    def set(self, value: float, tags: Mapping[str, str]) -> None:
        """Set the value of these labels."""
        with self._lock:
            self._values[_labels(tags)] = value

    def lines(self) -> Iterator[str]:
        """Yield a line for each value."""
        with self._lock:
            values = dict(self._values)
        return (_line(self.name, labels, value) for labels, value in values.items())


class Histogram:
    """Counts of values in buckets.

    Attributes:
        name: Name in Prometheus.
        description: Help text.
        kind: histogram.
    """

    kind = "histogram"

    def __init__(self, name: str, description: str, boundaries: Sequence[float]):
        self.name = name
        self.description = description
        self._boundaries = list(boundaries)
        self._counts: dict[Labels, list[int]] = {}
        self._sums: dict[Labels, float] = {}
        self._lock = Lock()

    def observe(self, value: float, tags: Mapping[str, str]) -> None:
        """Count a value under these labels."""
        labels = _labels(tags)
        with self._lock:
            self._counts.setdefault(labels, [0] * (len(self._boundaries) + 1))[bisect_left(self._boundaries, value)] += 1
            self._sums[labels] = self._sums.get(labels, 0.0) + value

    def lines(self) -> Iterator[str]:
        """Yield the buckets, the sum and the count of each set of labels."""
        with self._lock:
            found = [(labels, list(counts), self._sums[labels]) for labels, counts in self._counts.items()]
        for labels, counts, total in found:
            number = 0
            for bound, count in zip([*map(str, self._boundaries), "+Inf"], counts, strict=True):
                number += count
                yield _line(f"{self.name}_bucket", (*labels, ("le", bound)), number)
            yield _line(f"{self.name}_sum", labels, total)
            yield _line(f"{self.name}_count", labels, number)


def _labels(tags: Mapping[str, str]) -> Labels:
    return tuple(tags.items())


def _line(name: str, labels: Labels, value: float) -> str:
    return f"{name}{{{','.join(f'{key}={_quoted(text)}' for key, text in labels)}}} {value}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
