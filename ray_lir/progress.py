"""Progress of a long step on standard error: a bar where somebody watches, a line every few seconds where nobody does."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SECONDS_BETWEEN_LINES = 5.0


def track(
    results: Iterable[Result], name: str, total: int, count: Callable[[Result], int], unit: str = "documents", initial: int = 0
) -> Iterator[Result]:
    """Passes results on and shows how far they have come: done of total, how many a second, how long it still takes.

    Args:
        count: how many units one result is.
        initial: units that an earlier run has done.
    """
    done, first = initial, None
    last = time.monotonic()
    with tqdm(total=total, initial=initial, desc=name, unit=f" {unit}", disable=None) as bar:
        for result in results:
            done += count(result)
            bar.update(count(result))
            now = time.monotonic()
            first = first or (now, done)  # the time before it went into starting up
            if bar.disable and now - last >= SECONDS_BETWEEN_LINES:
                logger.info("%s: %d of %d %s%s", name, done, total, unit, _speed(done - first[1], now - first[0], total - done))
                last = now
            yield result


def _speed(done: int, seconds: float, left: int) -> str:
    return f", {done / seconds:.1f} a second, {tqdm.format_interval(left * seconds / done)} left" if done and seconds else ""
