"""Metadata fields: which fields the documents of an index have, with their kinds and values, for forms that build filters.

This module needs neither NumPy nor Arrow, because responses carry its model.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from ray_lir.base.config import Config
from ray_lir.embeddings.page_grid import FIELD as PAGE

Kind = Literal["text", "date", "number", "boolean", "list"]

MAX_DEPTH = 3
MAX_FIELDS = 100
MAX_VALUES = 50
"""Values of a field in the answer."""
MAX_COUNTED = 1000
"""Values of a field that are counted in one shard."""
MAX_VALUE_CHARACTERS = 80
"""Longer texts are not offered as values."""
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ].*)?")


class MetadataField(Config):
    """A metadata field of the index, as a sample of its documents shows it."""

    path: list[str]
    """Keys from the metadata object to the field: ["author", "name"]."""
    kind: Kind
    """Most frequent kind of its values. A date is a text such as 2024-05-31, with or without a time."""
    fraction: float
    """Fraction of the sampled documents that have the field."""
    values: list[str | int | float | bool] = []
    """Frequent values, most frequent first; of a list, its elements. Texts of more than 80 characters are left out."""
    complete: bool = True
    """Whether `values` has all values of the sample."""
    lowest: int | float | str | None = None
    """Lowest number or date of the sample."""
    highest: int | float | str | None = None
    """Highest number or date of the sample."""


@dataclass
class FieldCounts:
    """How often kinds and values of one field occur in some documents.

    Attributes:
        kinds: Number of documents by kind.
        values: Number of documents by value.
        complete: Whether `values` has all values.
        numbers: Lowest and highest number; None if there is none.
        dates: Lowest and highest date; None if there is none.
    """

    kinds: Counter[Kind] = field(default_factory=Counter)
    values: Counter[str | int | float | bool] = field(default_factory=Counter)
    complete: bool = True
    numbers: tuple[float, float] | None = None
    dates: tuple[str, str] | None = None

    def add(self, value: Any) -> None:
        """Count the value of one document."""
        kind = _kind(value)
        self.kinds[kind] += 1
        if kind == "number":
            self.numbers = _wider(self.numbers, (value, value))
        elif kind == "date":
            self.dates = _wider(self.dates, (value, value))
        for each in dict.fromkeys(value if kind == "list" else [value]):
            if isinstance(each, str) and len(each) > MAX_VALUE_CHARACTERS:
                self.complete = False
            else:
                self.values[each] += 1

    def cut(self) -> None:
        """Drop all but the most frequent values."""
        if len(self.values) > MAX_COUNTED:
            self.values = Counter(dict(self.values.most_common(MAX_COUNTED)))
            self.complete = False

    def merge(self, other: "FieldCounts") -> None:
        """Add the counts of other documents."""
        self.kinds += other.kinds
        self.values += other.values
        self.complete &= other.complete
        self.numbers = _wider(self.numbers, other.numbers)
        self.dates = _wider(self.dates, other.dates)


@dataclass
class SampledFields:
    """Counts of all fields in a sample of documents.

    Attributes:
        num_documents: Number of sampled documents.
        fields: Counts by the keys that lead to the field.
    """

    num_documents: int = 0
    fields: dict[tuple[str, ...], FieldCounts] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Iterable[Mapping[str, Any]]) -> "SampledFields":
        """Return the counts of some documents, from their metadata."""
        sample = cls()
        for each in metadata:
            sample.num_documents += 1
            for path, value in _leaves(each):
                if path[0] == PAGE:  # the grid and the thumbnail of an image
                    continue
                sample.fields.setdefault(path, FieldCounts()).add(value)
        for counts in sample.fields.values():
            counts.cut()
        return sample

    def merge(self, other: "SampledFields") -> None:
        """Add the counts of another sample."""
        self.num_documents += other.num_documents
        for path, counts in other.fields.items():
            self.fields.setdefault(path, FieldCounts()).merge(counts)

    def most_frequent(self) -> list[MetadataField]:
        """Return up to 100 fields, those of most documents first."""
        ordered = sorted(self.fields.items(), key=lambda each: (-each[1].kinds.total(), each[0]))
        return [_described(path, counts, self.num_documents) for path, counts in ordered[:MAX_FIELDS]]


def _described(path: tuple[str, ...], counts: FieldCounts, num_documents: int) -> MetadataField:
    [(kind, _)] = counts.kinds.most_common(1)
    ordered = sorted(counts.values.items(), key=lambda each: (-each[1], str(each[0])))
    limits = {"number": counts.numbers, "date": counts.dates}.get(kind)
    return MetadataField(
        path=list(path),
        kind=kind,
        fraction=round(counts.kinds.total() / num_documents, 4),
        values=[value for value, _ in ordered[:MAX_VALUES]],
        complete=counts.complete and len(ordered) <= MAX_VALUES,
        lowest=limits[0] if limits else None,
        highest=limits[1] if limits else None,
    )


def _leaves(metadata: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield each field with a value that a filter can compare, and the keys that lead to it."""
    for key, value in metadata.items():
        if isinstance(value, dict):
            if len(path) + 1 < MAX_DEPTH:
                yield from _leaves(value, (*path, key))
        elif isinstance(value, list):
            if elements := [each for each in value if isinstance(each, (str, int, float))]:
                yield (*path, key), elements
        elif value is not None:
            yield (*path, key), value


def _kind(value: Any) -> Kind:
    if isinstance(value, list):
        return "list"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    return "date" if _DATE.fullmatch(value) else "text"


def _wider(first: Any, second: Any) -> Any:
    """Return the range that covers two ranges; each may be None."""
    if first is None or second is None:
        return first or second
    return min(first[0], second[0]), max(first[1], second[1])
