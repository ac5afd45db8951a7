"""Logging: module loggers everywhere, configured only by jobs and serving; `stage` times a step and logs one line."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("ray_lir")


def configure(level: int = logging.INFO) -> None:
    """Sends ray_lir's records to standard error; standard output is kept for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


@contextmanager
def stage(name: str, log: list[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """Times a step: the body fills the yielded record with counts; one INFO line is logged at the end.

    The record (stage, seconds and the body's fields) is appended to `log`, for a manifest's provenance.
    """
    record: dict[str, Any] = {"stage": name}
    start = time.perf_counter()
    yield record
    record["seconds"] = round(time.perf_counter() - start, 3)
    fields = " ".join(f"{key}={value}" for key, value in record.items() if key != "stage")
    logger.info("%s: %s", name, fields)
    if log is not None:
        log.append(record)
