"""Filters: conditions on metadata, title, text and ids that decide which documents a search may return.

This module has the models that requests carry, and imports neither NumPy nor Arrow; `filter_evaluation` applies them to a shard.
"""

import difflib
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from ray_lir.base.config import Config, parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.ids import check_lookup_id
from ray_lir.index import filter_text

MAX_CONDITIONS = 64
MAX_DEPTH = 16
MAX_VALUES = 1000
MAX_IDS = 10_000

Key = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Path = Key | Annotated[list[Key], Field(min_length=1, max_length=16)]
"""A field. `title`, `text` and `doc_id` are fields of the document; every other name is a field of its metadata, with or without the
prefix `metadata.`. In `author.name`, name is a field of the object author. Where a key contains a dot, use a list of keys, which always
means metadata. A number is an index into a list."""
OWN_FIELDS = ("doc_id", "title", "text")
NAMES_SHOWN = 8
Number = Annotated[StrictInt, Field(ge=-(2**63), lt=2**63)] | Annotated[StrictFloat, Field(allow_inf_nan=False)]
Text = Annotated[StrictStr, StringConstraints(max_length=4096)]
Value = StrictBool | Number | Text


class Equals(Config):
    """The field has this value, of the same type: 1 and 1.0 are equal, 1 and "1" are not."""

    op: Literal["eq"]
    field: Path
    value: Value


class OneOf(Config):
    """The field equals one of these values."""

    op: Literal["in"]
    field: Path
    values: list[Value] = Field(max_length=MAX_VALUES)


class Compares(Config):
    """The field is below (lt), up to (le), from (ge) or above (gt) the value. Numbers are compared with numbers, and texts with texts by
    code points, so dates such as 2024-05-31 are in order."""

    op: Literal["lt", "le", "ge", "gt"]
    field: Path
    value: Number | Text


class Exists(Config):
    """The field exists and is not null."""

    op: Literal["exists"]
    field: Path


class StartsWith(Config):
    """The field is a text that starts with the value."""

    op: Literal["prefix"]
    field: Path
    value: Text


class Contains(Config):
    """The field is a text that contains the value, or a list with an element that equals it."""

    op: Literal["contains"]
    field: Path
    value: Value


class Group(Config):
    """All of the filters hold (and), or at least one does (or)."""

    op: Literal["and", "or"]
    filters: list["Condition"] = Field(min_length=1, max_length=MAX_CONDITIONS)


class Not(Config):
    """The filter does not hold."""

    op: Literal["not"]
    filter: "Condition"


Condition = Annotated[Equals | OneOf | Compares | Exists | StartsWith | Contains | Group | Not, Field(discriminator="op")]


DocId = Annotated[str, BeforeValidator(check_lookup_id)]
"""The id of a document to look up; a whole number stands for its decimal text."""


class Ids(Config):
    """Documents by id. Ids that the index does not hold are ignored."""

    include: Annotated[list[DocId], Field(max_length=MAX_IDS)] | None = None
    """Return only these documents; null for all."""
    exclude: list[DocId] = Field([], max_length=MAX_IDS)


class Filters(Config):
    """Conditions that a document must meet to be returned. A condition is false, and its `not` true, if the document lacks the field, or
    the field is null or has another type. A text such as `year >= 2020, tags ~ news` or a short dict such as {"year": {">=": 2020}} is
    accepted instead of this object, and as `where`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"where": {"op": "eq", "field": "language", "value": "en"}},
                {
                    "where": {
                        "op": "and",
                        "filters": [
                            {"op": "ge", "field": "year", "value": 2020},
                            {"op": "not", "filter": {"op": "contains", "field": "tags", "value": "draft"}},
                        ],
                    },
                    "ids": {"exclude": ["doc-1"]},
                },
            ]
        }
    )

    where: Condition | None = None
    ids: Ids = Ids()

    @classmethod
    def parse(cls, text: str) -> "Filters":
        """Parse a filter such as `year >= 2020 and not (tags ~ news or lang in [en, de])`, or its JSON.

        Raises:
            ConfigError: The text is not a filter; the message names the place.
        """
        if not isinstance(text, str):
            raise ConfigError(f"Filters.parse takes text, not {type(text).__name__}; use Filters.of for other forms")
        return cls.of(text)

    @classmethod
    def of(cls, filters: "Filters | Mapping[str, Any] | str") -> "Filters":
        """Return the filter written as a text, a short dict, a tree of conditions, or an object with `where` and `ids`.

        Raises:
            ConfigError: It is none of these; the message names the place.
        """
        if isinstance(filters, Filters):
            return filters
        try:
            return cls.model_validate(filters)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(["filters", *map(str, first["loc"])])
            raise ConfigError(f"{where}: {first['msg'].removeprefix('Value error, ')}") from None

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = _from_text(value)
        if isinstance(value, CONDITIONS):
            return {"where": value}
        if not isinstance(value, Mapping) or "where" in value or "ids" in value:
            return value
        return {"where": value} if isinstance(value.get("op"), str) or filter_text.is_short(value) else value

    @field_validator("where", mode="before")
    @classmethod
    def _read_where(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = _from_text(value)
        if not isinstance(value, Mapping):
            return value
        try:
            tree = value if isinstance(value.get("op"), str) else filter_text.from_mapping(value)
            from ray_lir.corpus.metadata import to_json_value

            return to_json_value(tree)
        except TypeError as error:
            raise ValueError(str(error)) from None
        except RecursionError:
            raise ValueError(f"the filter is nested more than {MAX_DEPTH} deep") from None

    @property
    def fields(self) -> list[str | list[str]]:
        """The fields that the conditions use, without repetition."""
        conditions: list[Condition] = [self.where] if self.where else []
        found: list[str | list[str]] = []
        for condition in conditions:  # the list grows
            conditions += parts_of(condition)
            if not isinstance(condition, Group | Not) and condition.field not in found:
                found.append(condition.field)
        return found

    @model_validator(mode="after")
    def _small(self) -> "Filters":
        level, num_conditions, depth = [self.where] if self.where else [], 0, 0
        while level:
            num_conditions, depth = num_conditions + len(level), depth + 1
            level = list(chain.from_iterable(parts_of(condition) for condition in level))
        if num_conditions > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise ValueError(f"where has {num_conditions} conditions, {depth} deep; {MAX_CONDITIONS} and {MAX_DEPTH} are possible")
        return self


CONDITIONS = (Equals, OneOf, Compares, Exists, StartsWith, Contains, Group, Not)


def _from_text(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return filter_text.parse(text)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"the filter starts like JSON but is not valid JSON: {error}") from None


def parts_of(condition: Condition) -> "list[Condition]":
    """Return the conditions inside a group or a negation; none for other conditions."""
    match condition:
        case Group(filters=parts):
            return parts
        case Not(filter=part):
            return [part]
    return []


FILTER_NAMES = AliasChoices("filters", "where", "filter")
"""Accepted names of the filters in requests and on command lines."""

FiltersInput = Annotated[Filters | None, BeforeValidator(lambda value: value, json_schema_input_type=Filters | str | None)]
"""Type of filters in requests and on command lines; its JSON schema allows text too."""


def unknown_field_warnings(unknown: Mapping[str, Iterable[str]]) -> list[str]:
    """Return one line for each field that no document has.

    Args:
        unknown: The names of existing fields, by unknown field.
    """
    return [_unknown_field(field, sorted(set(names))) for field, names in unknown.items()]


def _unknown_field(field: str, names: list[str]) -> str:
    near = difflib.get_close_matches(field, [*names, *OWN_FIELDS], n=3, cutoff=0.6)
    if near:
        return f"no document has the field {field!r} of the filter; did you mean {' or '.join(near)}?"
    if not names:
        return f"no document has the field {field!r} of the filter; none has metadata"
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"no document has the field {field!r} of the filter; there are {shown}"
