"""Progress of a long phase, on standard error: a bar on a terminal, otherwise a line every few seconds."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

from tqdm import tqdm

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
SECONDS_TO_FIRST_LINE = 1.0
SECONDS_BETWEEN_LINES = 5.0


def track(
    results: Iterable[Result], name: str, total: int | None, count: Callable[[Result], int], unit: str = "documents", initial: int = 0
) -> Iterator[Result]:
    """Yield the results unchanged, and report progress: units done, units a second, remaining time.

    Lines appear after the first second, also while the first result is still awaited.

    Args:
        results: The results of the phase.
        name: Name of the phase.
        total: Total number of units. None: unknown.
        count: Returns the number of units of a result.
        unit: Name of the units, in the plural.
        initial: Units that an earlier run has done.
    """
    state = _State(name, total, unit, initial, time.monotonic())
    ended = threading.Event()
    with tqdm(total=total, initial=initial, desc=name, unit=f" {unit}", disable=None) as bar:
        reporter = threading.Thread(target=_report, args=(state, ended), daemon=True) if bar.disable else None
        if reporter:
            reporter.start()
        try:
            for result in results:
                units = count(result)
                state.add(units)
                bar.update(units)
                yield result
        finally:
            ended.set()


@dataclass
class _State:
    name: str
    total: int | None
    unit: str
    done: int
    start: float
    first: tuple[float, int] | None = None
    """Time of the first result, and the units done then. The time before it is start-up and does not count for the speed."""

    def add(self, units: int) -> None:
        self.done += units
        self.first = self.first or (time.monotonic(), self.done)

    def line(self) -> str:
        now = time.monotonic()
        of = "" if self.total is None else f" of {self.total}"
        text = f"{self.name}: {self.done}{of} {self.unit}"
        if self.first is None:
            return f"{text}, waiting for the first result since {now - self.start:.0f} s"
        seconds, done = now - self.first[0], self.done - self.first[1]
        if not done or not seconds:
            return text
        speed = f", {done / seconds:.1f} a second"
        return text + speed + ("" if self.total is None else f", {tqdm.format_interval((self.total - self.done) * seconds / done)} left")


def _report(state: _State, ended: threading.Event) -> None:
    pause = SECONDS_TO_FIRST_LINE
    while not ended.wait(pause):
        logger.info("%s", state.line())
        pause = SECONDS_BETWEEN_LINES
