"""Counts of the text that is cut off because it exceeds the encoder's maximum length, for one text and summed over many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_lir.base.config import Config


@dataclass(frozen=True)
class Truncation:
    """Tokens of one text before and after truncation, including special tokens and markers.

    Attributes:
        kept: Number of tokens that are encoded.
        total: Number of tokens of the whole text.
        exact: False if the text is so long that only its beginning was tokenized; `total` is then a lower bound.
    """

    kept: int
    total: int
    exact: bool = True

    @property
    def is_cut(self) -> bool:
        return self.total > self.kept or not self.exact

    def __str__(self) -> str:
        return f"{self.kept:,} of {'' if self.exact else 'at least '}{self.total:,} tokens"


class TruncationCounts(Config):
    """Sums over documents. None: unknown, as in folders written before truncation was counted."""

    num_truncated_docs: int | None
    """Documents longer than `document_length`."""
    num_tokens_dropped: int | None
    """Tokens of those documents that are not encoded."""
    num_source_tokens: int | None
    """Tokens of all documents before truncation, including special tokens, markers and tokens of the skip list."""
    dropped_is_minimum: bool = False
    """Whether the two token counts are lower bounds, because a very long text was tokenized only in part."""

    @classmethod
    def of(cls, truncations: Iterable[Truncation]) -> "TruncationCounts":
        """Return the counts over these texts."""
        docs = dropped = total = 0
        minimum = False
        for each in truncations:
            docs += each.is_cut
            dropped += each.total - each.kept
            total += each.total
            minimum |= not each.exact
        return cls(num_truncated_docs=docs, num_tokens_dropped=dropped, num_source_tokens=total, dropped_is_minimum=minimum)

    @classmethod
    def from_fields(cls, holder: Any) -> "TruncationCounts":
        """Return the counts that a manifest, or another object with the same fields, holds."""
        return cls(**{name: getattr(holder, name) for name in cls.model_fields})

    @classmethod
    def sum(cls, parts: Iterable["TruncationCounts"]) -> "TruncationCounts":
        """Return the counts of all parts together; unknown if the counts of one part are unknown."""
        parts = list(parts)
        if any(part.num_truncated_docs is None for part in parts):
            return UNKNOWN
        docs, dropped, total = (
            sum(getattr(part, name) for part in parts) for name in ("num_truncated_docs", "num_tokens_dropped", "num_source_tokens")
        )
        minimum = any(part.dropped_is_minimum for part in parts)
        return cls(num_truncated_docs=docs, num_tokens_dropped=dropped, num_source_tokens=total, dropped_is_minimum=minimum)

    @property
    def fields(self) -> dict[str, Any]:
        """The counts as manifest fields."""
        return self.model_dump()

    @property
    def report(self) -> dict[str, Any]:
        """The counts as fields of a job's result."""
        return {**self.fields, "dropped_fraction": self.dropped_fraction}

    @property
    def dropped_fraction(self) -> float | None:
        """Fraction of all tokens that is not encoded; None: unknown."""
        if self.num_source_tokens is None or self.num_tokens_dropped is None:
            return None
        return round(self.num_tokens_dropped / max(1, self.num_source_tokens), 4)

    def describe(self, num_docs: int, document_length: int) -> str | None:
        """Return a one-line summary for users; None if no document was cut or the counts are unknown.

        Args:
            num_docs: Number of documents in total.
            document_length: The limit in tokens, for the message.
        """
        if not self.num_truncated_docs:
            return None
        bound = "at least " if self.dropped_is_minimum else ""
        return (
            f"{self.num_truncated_docs:,} of {num_docs:,} documents are longer than document_length {document_length} and were cut: "
            f"{bound}{self.num_tokens_dropped:,} of {bound}{self.num_source_tokens:,} tokens ({self.dropped_fraction:.1%}) are not encoded "
            "and cannot be found; set --encoder.windows to encode long documents whole, or raise --encoder.document_length"
        )


UNKNOWN = TruncationCounts(num_truncated_docs=None, num_tokens_dropped=None, num_source_tokens=None)
