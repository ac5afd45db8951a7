"""Rows of a corpus that are refused: counted and reported in the log with the first reasons, and kept as dead letters."""

import logging
from collections.abc import Sequence

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.storage.manifest import DeadLetter

DEAD_LETTERS = "dead_letters"
"""Folder of the files of refused rows, in a folder of embeddings and in an index."""
REASONS_SHOWN = 3

logger = logging.getLogger(__name__)


class RefusedRows:
    """Rows that are refused.

    Attributes:
        num_rows: how many.
        num_repeated: how many of them because another row has their id.
        reasons: where and why, of the first few.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_repeated = 0
        self.reasons: list[str] = []

    def add(self, file: str, line: int, reason: object, repeated: bool = False) -> None:
        self.num_rows += 1
        self.num_repeated += repeated
        if len(self.reasons) < REASONS_SHOWN:
            self.reasons.append(f"{file} line {line}: {reason}")

    def merge(self, others: "RefusedRows") -> None:
        """Count the rows of another corpus too."""
        self.num_rows += others.num_rows
        self.num_repeated += others.num_repeated
        self.reasons = (self.reasons + others.reasons)[:REASONS_SHOWN]


def log_refused(corpus: str, count: int, reasons: Sequence[str]) -> None:
    """Report refused rows in one line, if there are any."""
    if count:
        rows = "1 row of %s was" if count == 1 else f"{count:,} rows of %s were"
        logger.warning(f"corpus: {rows} refused; the first: %s", corpus, "; ".join(reasons))


def read_first_reasons(root: str, letters: Sequence[DeadLetter]) -> list[str]:
    """Where and why the first rows were refused, from the dead letters below `root`."""
    reasons: list[str] = []
    for letter in letters:
        for line in storage.read_bytes(storage.join(root, letter.name)).decode().split("\n")[:-1]:
            row = parse_json(line)
            reasons.append(f"{row['file']} line {row['line']}: {row['reason']}")
            if len(reasons) == REASONS_SHOWN:
                return reasons
    return reasons
