"""How much of a text is left out because it is longer than the encoder reads, for one text and summed over many."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ray_lir.base.config import Config


@dataclass(frozen=True)
class Truncation:
    """Tokens of one text before and after it is cut, special tokens and markers included.

    Attributes:
        kept: tokens that are encoded.
        total: tokens of the whole text.
        exact: False if the text is so long that only its beginning was tokenised; `total` is then a lower bound.
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
    """Sums over documents. None: unknown, as in folders that were written before truncation was counted."""

    num_truncated_docs: int | None
    """Documents that are longer than `document_length`."""
    num_tokens_dropped: int | None
    """Tokens of those documents that are not encoded."""
    num_source_tokens: int | None
    """Tokens of all documents before they were cut: special tokens, markers and tokens of the skip list included."""
    dropped_is_minimum: bool = False
    """Whether the two numbers of tokens are lower bounds, because a very long text was not tokenised to its end."""

    @classmethod
    def of(cls, truncations: Iterable[Truncation]) -> "TruncationCounts":
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
        """The counts that a manifest (or another object with the same fields) holds."""
        return cls(**{name: getattr(holder, name) for name in cls.model_fields})

    @classmethod
    def sum(cls, parts: Iterable["TruncationCounts"]) -> "TruncationCounts":
        """The counts of all parts together; unknown if one of them is."""
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
        """As a manifest holds them."""
        return self.model_dump()

    @property
    def report(self) -> dict[str, Any]:
        """As the result of a job holds them."""
        return {**self.fields, "dropped_fraction": self.dropped_fraction}

    @property
    def dropped_fraction(self) -> float | None:
        """Fraction of all tokens that is not encoded; None if unknown."""
        if self.num_source_tokens is None or self.num_tokens_dropped is None:
            return None
        return round(self.num_tokens_dropped / max(1, self.num_source_tokens), 4)

    def describe(self, num_docs: int, document_length: int) -> str | None:
        """One line for people; None if no document was cut, or it is unknown."""
        if not self.num_truncated_docs:
            return None
        bound = "at least " if self.dropped_is_minimum else ""
        return (
            f"{self.num_truncated_docs:,} of {num_docs:,} documents are longer than document_length {document_length} and were cut: "
            f"{bound}{self.num_tokens_dropped:,} of {bound}{self.num_source_tokens:,} tokens ({self.dropped_fraction:.1%}) are not encoded "
            "and cannot be found; raise --encoder.document_length or split long documents"
        )


UNKNOWN = TruncationCounts(num_truncated_docs=None, num_tokens_dropped=None, num_source_tokens=None)
