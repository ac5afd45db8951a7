"""Progress of a long step on standard error: a bar where somebody watches, a line every few seconds where nobody does."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SECONDS_BETWEEN_LINES = 5.0


def track(results: Iterable[Result], name: str, total: int, count: Callable[[Result], int], unit: str = "documents", initial: int = 0) -> Iterator[Result]:
    """Passes results on and shows how far they have come: done of total, how many a second, how long it still takes.

    Args:
        count: how many units one result is.
        initial: units that an earlier run has done; they do not count into the speed.
    """
    start = last = time.monotonic()
    done = initial
    with tqdm(total=total, initial=initial, desc=name, unit=f" {unit}", smoothing=0, disable=None) as bar:
        for result in results:
            done += count(result)
            bar.update(count(result))
            now = time.monotonic()
            if bar.disable and now - last >= SECONDS_BETWEEN_LINES:
                speed = (done - initial) / (now - start)
                left = tqdm.format_interval((total - done) / speed) if speed else "?"
                logger.info("%s: %d of %d %s, %.1f a second, %s left", name, done, total, unit, speed, left)
                last = now
            yield result
