"""Refused rows of a corpus: counted, and reported in the log with the first reasons."""

import logging
from collections.abc import Sequence

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.storage.manifest import DeadLetter

DEAD_LETTERS = "dead_letters"
"""Folder with the files of refused rows, in a folder of embeddings and in an index."""
REASONS_SHOWN = 3

logger = logging.getLogger(__name__)


class RefusedRows:
    """Counts of refused rows.

    Attributes:
        num_rows: Number of refused rows.
        num_repeated: Number of rows among them that were refused because another row has the same id.
        reasons: Position and reason of the first few rows.
    """

    def __init__(self) -> None:
        self.num_rows = 0
        self.num_repeated = 0
        self.reasons: list[str] = []

    def add(self, file: str, line: int, reason: object, repeated: bool = False) -> None:
        """Count one refused row.

        Args:
            file: Name of the file.
            line: Line (or row) number from 1.
            reason: Why the row was refused.
            repeated: Whether another row has the same id.
        """
        self.num_rows += 1
        self.num_repeated += repeated
        if len(self.reasons) < REASONS_SHOWN:
            self.reasons.append(f"{file} line {line}: {reason}")

    def merge(self, other: "RefusedRows") -> None:
        """Add the counts of another corpus."""
        self.num_rows += other.num_rows
        self.num_repeated += other.num_repeated
        self.reasons = (self.reasons + other.reasons)[:REASONS_SHOWN]


def log_refused(corpus: str, count: int, reasons: Sequence[str]) -> None:
    """Log refused rows in one line; log nothing if there are none.

    Args:
        corpus: Name of the corpus, for the message.
        count: Number of refused rows.
        reasons: Position and reason of the first few rows.
    """
    if count:
        rows = "1 row of %s was" if count == 1 else f"{count:,} rows of %s were"
        logger.warning(f"corpus: {rows} refused; the first: %s", corpus, "; ".join(reasons))


def read_first_reasons(root: str, letters: Sequence[DeadLetter]) -> list[str]:
    """Return position and reason of the first few refused rows, from the dead letters below `root`."""
    reasons: list[str] = []
    for letter in letters:
        for line in storage.read_bytes(storage.join(root, letter.name)).decode().split("\n")[:-1]:
            row = parse_json(line)
            reasons.append(f"{row['file']} line {row['line']}: {row['reason']}")
            if len(reasons) == REASONS_SHOWN:
                return reasons
    return reasons
