"""Filters: which documents a search may find, by their metadata, title, text and ids; evaluated on one shard's documents by DuckDB.

Arrow, NumPy and DuckDB are imported where a filter is evaluated: clients know filters and never evaluate one.
"""

import difflib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

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

from ray_lir.base.config import Config, canonical_json, parse_json
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.forking import fork_safe
from ray_lir.base.ids import look_up_id
from ray_lir.index import filter_text

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

MAX_CONDITIONS = 64
MAX_DEPTH = 16
MAX_VALUES = 1000
MAX_IDS = 10_000
MAX_KNOWN_FIELDS = 1000
KEPT_RESULTS = 16
"""Filters whose results a shard keeps, N / 8 bytes each: services are asked with the same few again and again."""

Key = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Path = Key | Annotated[list[Key], Field(min_length=1, max_length=16)]
"""A field: `title`, `text` and `doc_id` are the document's own; every other name, also after `metadata.`, is in its metadata, where
author.name is the field name of the object author. A list of keys, always of the metadata, where a key has a dot itself; a number as a
key counts into a list."""
OWN_FIELDS = ("doc_id", "title", "text")
SAMPLED_DOCUMENTS = 1000
"""Documents of a shard whose fields are compared with the name of a field that no document has."""
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
    """The field is a number below (lt), up to (le), from (ge) or above (gt) this number; or the same for two texts, which are
    compared by code points, so that dates such as 2024-05-31 are in their order."""

    op: Literal["lt", "le", "ge", "gt"]
    field: Path
    value: Number | Text


class Exists(Config):
    """The field is there, and not null."""

    op: Literal["exists"]
    field: Path


class StartsWith(Config):
    """The field is a text that starts with this one."""

    op: Literal["prefix"]
    field: Path
    value: Text


class Contains(Config):
    """The field is a text that has this one in it, or a list of which one element equals the value."""

    op: Literal["contains"]
    field: Path
    value: Value


class Group(Config):
    """All of these hold (and), or one of them does (or)."""

    op: Literal["and", "or"]
    filters: list["Condition"] = Field(min_length=1, max_length=MAX_CONDITIONS)


class Not(Config):
    """This does not hold."""

    op: Literal["not"]
    filter: "Condition"


Condition = Annotated[Equals | OneOf | Compares | Exists | StartsWith | Contains | Group | Not, Field(discriminator="op")]


DocId = Annotated[str, BeforeValidator(look_up_id)]
"""The id of a document to look up; a whole number stands for its decimal text."""


class Ids(Config):
    """Documents by their ids; those that the index does not have are passed over."""

    include: Annotated[list[DocId], Field(max_length=MAX_IDS)] | None = None
    """None but these. Null: all."""
    exclude: list[DocId] = Field([], max_length=MAX_IDS)


class Filters(Config):
    """What a document must be like to be found. Conditions on a field that a document does not have, that is null or of another type
    are false, so their `not` is true. Instead of this object a text is accepted, `year >= 2020, tags ~ news`, or a short dict,
    {"year": {">=": 2020}}; both also as `where`."""

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
        """The filter that a text spells: conditions such as `year >= 2020 and not (tags ~ news or lang in [en, de])`, or JSON.

        Raises:
            ConfigError: if it cannot be read; the message says where.
        """
        if not isinstance(text, str):
            raise ConfigError(f"Filters.parse takes text, not {type(text).__name__}; other spellings are for Filters.of")
        return cls.of(text)

    @classmethod
    def of(cls, filters: "Filters | Mapping[str, Any] | str") -> "Filters":
        """The filter that a text, a short dict, a condition's tree or an object with `where` and `ids` spells.

        Raises:
            ConfigError: if it is none of these; the message says where.
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
    def _read(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = _from_text(given)
        if isinstance(given, CONDITIONS):
            return {"where": given}
        if not isinstance(given, Mapping) or "where" in given or "ids" in given:
            return given
        return {"where": given} if isinstance(given.get("op"), str) or filter_text.is_short(given) else given

    @field_validator("where", mode="before")
    @classmethod
    def _read_where(cls, given: Any) -> Any:
        if isinstance(given, str):
            given = _from_text(given)
        if not isinstance(given, Mapping):
            return given
        try:
            tree = given if isinstance(given.get("op"), str) else filter_text.from_mapping(given)
            from ray_lir.corpus.metadata import to_json_value

            return to_json_value(tree)
        except TypeError as error:
            raise ValueError(str(error)) from None
        except RecursionError:
            raise ValueError(f"the filter is nested more than {MAX_DEPTH} deep") from None

    @property
    def fields(self) -> list[str | list[str]]:
        """The fields that the conditions are about, each once."""
        conditions, found = [self.where] if self.where else [], []
        for condition in conditions:  # it grows
            conditions += _parts(condition)
            if hasattr(condition, "field") and condition.field not in found:
                found.append(condition.field)
        return found

    @model_validator(mode="after")
    def _small(self) -> "Filters":
        level, num_conditions, depth = [self.where] if self.where else [], 0, 0
        while level:
            num_conditions, depth = num_conditions + len(level), depth + 1
            level = list(chain.from_iterable(_parts(condition) for condition in level))
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
        raise ValueError(f"the filter starts like JSON and is not: {error}") from None


FILTER_NAMES = AliasChoices("filters", "where", "filter")
"""How requests and command lines may call their filters."""

FiltersInput = Annotated[Filters | None, BeforeValidator(lambda given: given, json_schema_input_type=Filters | str | None)]
"""Filters as requests and command lines take them: text is in their JSON schema too."""


def unknown_field_warnings(unknown: Mapping[str, Iterable[str]]) -> list[str]:
    """One line for each field that no document has, given with the names of the fields that some have."""
    return [_unknown_field(field, sorted(set(names))) for field, names in unknown.items()]


def _unknown_field(field: str, names: list[str]) -> str:
    near = difflib.get_close_matches(field, [*names, *OWN_FIELDS], n=3, cutoff=0.6)
    if near:
        return f"no document has the field {field!r} of the filter; did you mean {' or '.join(near)}?"
    if not names:
        return f"no document has the field {field!r} of the filter; none has metadata"
    shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
    return f"no document has the field {field!r} of the filter; there are {shown}"


class FilteredDocuments:
    """A shard's documents with the results of the last filters. Safe in threads.

    Args:
        table: of documents (index/documents.py).
        live: row numbers that can be found at all, ascending; None for all.
    """

    def __init__(self, table: "pa.Table", live: "np.ndarray | None"):
        self.table = table
        self.live = live
        self._results: OrderedDict[bytes, Any] = OrderedDict()
        self._has: dict[str, bool] = {}
        self._lock = fork_safe(threading.Lock())

    def has_field(self, field: str | list[str]) -> bool:
        """Whether a document has the field (empty fields of its own count)."""
        if field in OWN_FIELDS:
            return True
        key = _field_name(field)
        if key not in self._has:
            if len(self._has) >= MAX_KNOWN_FIELDS:
                self._has.clear()
            self._has[key] = len(_matching(self.table, Exists(op="exists", field=field), limit=1)) > 0
        return self._has[key]

    def unknown_fields(self, filters: Filters) -> dict[str, frozenset[str]]:
        """The fields of the filters that no document has, each with the names of the fields that some have."""
        return {_field_name(field): self.field_names for field in filters.fields if not self.has_field(field)}

    @property
    @derived
    def field_names(self) -> frozenset[str]:
        """Paths of the metadata's fields, in a sample of the documents."""
        import numpy as np

        from ray_lir.index import documents

        rows = np.unique(np.linspace(0, self.table.num_rows - 1, min(SAMPLED_DOCUMENTS, self.table.num_rows)).astype(np.int64))
        return frozenset(chain.from_iterable(_paths(parse_json(text)) for text in documents.column(self.table, "metadata", rows)))

    def rows(self, filters: Filters) -> "np.ndarray":
        """Row numbers of the documents that the filters let through, ascending.

        Raises:
            FormatError: if metadata is not JSON.
        """
        import numpy as np

        key = canonical_json(filters.model_dump(mode="json"))
        with self._lock:
            bits = self._results.get(key)
            if bits is not None:
                self._results.move_to_end(key)
        if bits is None:
            bits = np.packbits(self._evaluate(filters))
            with self._lock:
                self._results[key] = bits
                if len(self._results) > KEPT_RESULTS:
                    self._results.popitem(last=False)
        return np.flatnonzero(np.unpackbits(bits, count=self.table.num_rows))

    def _evaluate(self, filters: Filters) -> "np.ndarray":
        """[N] bool."""
        from ray_lir.index import documents

        num_docs = self.table.num_rows
        allowed = _mask(num_docs, self.live)
        if filters.ids.include is not None:
            allowed &= _mask(num_docs, documents.find(self.table, filters.ids.include))
        if filters.ids.exclude:
            allowed[documents.find(self.table, filters.ids.exclude)] = False
        if filters.where is not None and allowed.any():
            allowed &= _mask(num_docs, _matching(self.table, filters.where))
        return allowed


def _mask(length: int, rows: "np.ndarray | None") -> "np.ndarray":
    import numpy as np

    mask = np.full(length, rows is None)
    if rows is not None:
        mask[rows] = True
    return mask


def _field_name(field: str | list[str]) -> str:
    return field if isinstance(field, str) else ".".join(field)


def _paths(metadata: Any, prefix: str = "", depth: int = 3) -> Iterator[str]:
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        yield prefix + key
        if depth > 1:
            yield from _paths(value, f"{prefix}{key}.", depth - 1)


def _matching(table: "pa.Table", condition: Any, limit: int | None = None) -> "np.ndarray":
    """Row numbers for which the condition holds, in no order; at most `limit` of them."""
    import duckdb
    import numpy as np
    import pyarrow as pa

    sql = _Sql()
    query = f"SELECT row FROM documents WHERE {sql.condition(condition)}"
    if limit is not None:
        query += f" LIMIT {int(limit)}"
    columns = {name: table.column(name) for name in ("metadata", *OWN_FIELDS)}
    numbered = pa.table({"row": pa.array(np.arange(table.num_rows)), **columns})
    with _database(os.getpid()).cursor() as cursor:
        cursor.register("documents", numbered)
        try:
            return cursor.execute(query, sql.values).fetchnumpy()["row"]
        except duckdb.InvalidInputException as error:
            problem = str(error).partition("\n")[0]
            raise FormatError("metadata of documents", "JSON objects", f"{problem:.120}", "build the index anew from JSON") from None


@cache
def _database(process: int) -> "duckdb.DuckDBPyConnection":
    """Return the database of a process: in memory, without threads of its own, and it reaches no file.

    A forked process opens another: a thread of the parent may have been inside this one.
    """
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False, "lock_configuration": True})


class _Sql:
    """Conditions as SQL over the columns of the documents. Whatever came with a filter is a parameter, never part of the text.

    Attributes:
        values: the parameters by name.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def condition(self, condition: Any) -> str:
        """True or false for every document, never null."""
        match condition:
            case Group(op=op, filters=parts):
                return "(" + f" {op.upper()} ".join(self.condition(part) for part in parts) + ")"
            case Not(filter=part):
                return f"(NOT {self.condition(part)})"
            case OneOf(values=[]):
                return "false"
        if condition.field in OWN_FIELDS:
            return f"coalesce({self._of_own(condition)}, false)"
        path = self._bind(_pointer(condition.field))
        kind, text = f"json_type(metadata, {path})", f"json_extract_string(metadata, {path})"
        match condition:
            case Equals(value=value):
                holds = self._one_of(kind, text, [value])
            case OneOf(values=values):
                holds = self._one_of(kind, text, values)
            case Compares(op=op, value=value):
                holds = self._compares(kind, text, SIGNS[op], value)
            case Exists():
                holds = f"{kind} <> 'NULL'"
            case StartsWith(value=value):
                holds = f"{kind} = 'VARCHAR' AND starts_with({text}, {self._bind(value)})"
            case Contains(value=value):
                holds = self._contains(kind, text, path, value)
        return f"coalesce({holds}, false)"

    def _of_own(self, condition: Any) -> str:
        """The same of a column of texts, which is there unless it is empty."""
        kind, text = "'VARCHAR'", condition.field
        match condition:
            case Equals(value=value):
                return self._one_of(kind, text, [value])
            case OneOf(values=values):
                return self._one_of(kind, text, values)
            case Compares(op=op, value=str() as value):
                return f"{text} {SIGNS[op]} {self._bind(value)}"
            case Exists():
                return f"{text} <> ''"
            case StartsWith(value=value):
                return f"starts_with({text}, {self._bind(value)})"
            case Contains(value=str() as value):
                return f"contains({text}, {self._bind(value)})"
        return "false"

    def _bind(self, value: Any) -> str:
        name = f"v{len(self.values)}"
        self.values[name] = value
        return f"${name}"

    def _list(self, values: Sequence[Any]) -> str:
        return ", ".join(self._bind(value) for value in values)

    def _one_of(self, kind: str, text: str, values: Sequence[Any]) -> str:
        """Integers of 64 bits are compared as such, all other numbers in float64."""
        texts = [value for value in values if isinstance(value, str)]
        truths = ["true" if value else "false" for value in values if isinstance(value, bool)]
        integers = [value for value in values if isinstance(value, int) and not isinstance(value, bool)]
        floats = [value for value in values if isinstance(value, float)]
        ways = []
        if texts:
            ways.append(f"{kind} = 'VARCHAR' AND {text} IN ({self._list(texts)})")
        if truths:
            ways.append(f"{kind} = 'BOOLEAN' AND {text} IN ({self._list(truths)})")
        if integers:
            ways.append(f"{kind} IN {INTEGERS} AND TRY_CAST({text} AS HUGEINT) IN ({self._list(integers)})")
            ways.append(f"{kind} = 'DOUBLE' AND TRY_CAST({text} AS DOUBLE) IN ({self._list([float(value) for value in integers])})")
        if floats:
            ways.append(f"{kind} IN {NUMBERS} AND TRY_CAST({text} AS DOUBLE) IN ({self._list(floats)})")
        return " OR ".join(f"({way})" for way in ways)

    def _compares(self, kind: str, text: str, sign: str, value: Any) -> str:
        if isinstance(value, str):
            return f"{kind} = 'VARCHAR' AND {text} {sign} {self._bind(value)}"
        as_float = f"TRY_CAST({text} AS DOUBLE) {sign} {self._bind(float(value))}"
        if isinstance(value, float):
            return f"{kind} IN {NUMBERS} AND {as_float}"
        as_integer = f"TRY_CAST({text} AS HUGEINT) {sign} {self._bind(value)}"
        return f"CASE WHEN {kind} IN {INTEGERS} THEN {as_integer} WHEN {kind} = 'DOUBLE' THEN {as_float} END"

    def _contains(self, kind: str, text: str, path: str, value: Any) -> str:
        element = self._one_of("json_type(each)", "json_extract_string(each, '$')", [value])
        elements = f"TRY_CAST(json_extract(metadata, {path}) AS JSON[])"
        in_list = f"{kind} = 'ARRAY' AND len(list_filter({elements}, lambda each: {element})) > 0"
        return f"({kind} = 'VARCHAR' AND contains({text}, {self._bind(value)})) OR ({in_list})" if isinstance(value, str) else in_list


SIGNS = {"lt": "<", "le": "<=", "ge": ">=", "gt": ">"}
INTEGERS = "('UBIGINT', 'BIGINT')"
NUMBERS = "('UBIGINT', 'BIGINT', 'DOUBLE')"


def _parts(condition: Any) -> list[Any]:
    match condition:
        case Group(filters=parts):
            return parts
        case Not(filter=part):
            return [part]
    return []


def _pointer(field: str | list[str]) -> str:
    """The JSON pointer (RFC 6901) of a field."""
    keys = field.removeprefix("metadata.").split(".") if isinstance(field, str) else field
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
