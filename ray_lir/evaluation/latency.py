"""Latency of single calls, as percentiles."""

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

PERCENTILES = (50, 95, 99)


def time_each(function: Callable[[Any], Any], items: Iterable[Any]) -> list[float]:
    """Return the seconds of each call, made one after another. The first item gets one extra call before, as warm-up."""
    seconds = []
    for number, item in enumerate(items):
        if number == 0:
            function(item)
        start = time.perf_counter()
        function(item)
        seconds.append(time.perf_counter() - start)
    return seconds


def percentiles_ms(seconds: list[float]) -> dict[str, float]:
    """Return p50, p95 and p99 in milliseconds, from seconds."""
    values = np.percentile(np.asarray(seconds) * 1e3, PERCENTILES)
    return {f"p{p}": round(float(value), 3) for p, value in zip(PERCENTILES, values, strict=True)}
