"""Logging. Modules have loggers everywhere; only jobs and the service configure them. `phase` times a phase of a job."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger("ray_lir")


def configure(level: int = logging.INFO) -> None:
    """Send ray_lir's log records to standard error. Standard output is kept for results."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


@contextmanager
def phase(name: str, log: list[dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """Time a phase of a job, and log one INFO line at its end.

    Yields a record that the body fills with counts. At the end it has the name (key `stage`, as in provenance.json), the counts and the
    seconds.

    Args:
        name: Name of the phase.
        log: List to append the record to, for provenance.json. None: the record is only logged.
    """
    record: dict[str, Any] = {"stage": name}
    start = time.perf_counter()
    yield record
    record["seconds"] = round(time.perf_counter() - start, 3)
    fields = " ".join(f"{key}={value}" for key, value in record.items() if key != "stage")
    logger.info("%s: %s", name, fields)
    if log is not None:
        log.append(record)
