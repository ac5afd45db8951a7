"""Filters: which documents a search may find, by their metadata and ids; evaluated on one shard's documents by DuckDB."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import ConfigDict, Field, StrictBool, StrictFloat, StrictInt, StrictStr, StringConstraints, model_validator

from ray_lir.config import Config, canonical_json
from ray_lir.errors import FormatError
from ray_lir.index import documents

if TYPE_CHECKING:
    import duckdb

MAX_CONDITIONS = 64
MAX_DEPTH = 16
MAX_VALUES = 1000
MAX_IDS = 10_000
KEPT_RESULTS = 16
"""Filters whose results a shard keeps, N / 8 bytes each: services are asked with the same few again and again."""

Key = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Path = Key | Annotated[list[Key], Field(min_length=1, max_length=16)]
"""A field of the metadata: author.name is the field name of the object author. A list of keys where a key has a dot itself; a
number as a key counts into a list."""
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


class Ids(Config):
    """Documents by their ids; those that the index does not have are passed over."""

    include: Annotated[list[str], Field(max_length=MAX_IDS)] | None = None
    """None but these. Null: all."""
    exclude: list[str] = Field([], max_length=MAX_IDS)


class Filters(Config):
    """What a document must be like to be found. Conditions on a field that a document has not, that is null or of another type
    are false, so their `not` is true."""

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

    @model_validator(mode="after")
    def _small(self) -> "Filters":
        level, num_conditions, depth = [self.where] if self.where else [], 0, 0
        while level:
            num_conditions, depth = num_conditions + len(level), depth + 1
            level = list(chain.from_iterable(_parts(condition) for condition in level))
        if num_conditions > MAX_CONDITIONS or depth > MAX_DEPTH:
            raise ValueError(f"where has {num_conditions} conditions, {depth} deep; {MAX_CONDITIONS} and {MAX_DEPTH} are possible")
        return self


class FilteredDocuments:
    """A shard's documents with the results of the last filters. Safe in threads.

    Args:
        table: of documents (index/documents.py).
        live: row numbers that can be found at all, ascending; None for all.
    """

    def __init__(self, table: pa.Table, live: np.ndarray | None):
        self.table = table
        self.live = live
        self._results: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def rows(self, filters: Filters) -> np.ndarray:
        """Row numbers of the documents that the filters let through, ascending.

        Raises:
            FormatError: if metadata is not JSON.
        """
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

    def _evaluate(self, filters: Filters) -> np.ndarray:
        """[N] bool."""
        num_docs = self.table.num_rows
        allowed = _mask(num_docs, self.live)
        if filters.ids.include is not None:
            allowed &= _mask(num_docs, documents.find(self.table, filters.ids.include))
        if filters.ids.exclude:
            allowed[documents.find(self.table, filters.ids.exclude)] = False
        if filters.where is not None and allowed.any():
            allowed &= _mask(num_docs, _matching(self.table, filters.where))
        return allowed


def _mask(length: int, rows: np.ndarray | None) -> np.ndarray:
    mask = np.full(length, rows is None)
    if rows is not None:
        mask[rows] = True
    return mask


def _matching(table: pa.Table, condition: Any) -> np.ndarray:
    """Row numbers for which the condition holds, in no order."""
    import duckdb

    sql = _Sql()
    query = f"SELECT row FROM documents WHERE {sql.condition(condition)}"
    numbered = pa.table({"row": pa.array(np.arange(table.num_rows)), "metadata": table.column("metadata")})
    with _database().cursor() as cursor:
        cursor.register("documents", numbered)
        try:
            return cursor.execute(query, sql.values).fetchnumpy()["row"]
        except duckdb.InvalidInputException as error:
            problem = str(error).partition("\n")[0]
            raise FormatError("metadata of documents", "JSON objects", f"{problem:.120}", "build the index anew from JSON") from None


@cache
def _database() -> "duckdb.DuckDBPyConnection":
    """One for the process, in memory, on the thread that asks; it reaches no file. Imported where a filter first needs it: many
    who know filters, such as clients, never evaluate one."""
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False, "lock_configuration": True})


class _Sql:
    """Conditions as SQL over the column `metadata`. Whatever came with a filter is a parameter, never part of the text.

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
        path = self._bind(_pointer(condition.field))
        kind, text = f"json_type(metadata, {path})", f"json_extract_string(metadata, {path})"
        match condition:
            case Equals(value=value):
                holds = self._one_of(kind, text, [value])
            case OneOf(values=values):
                holds = self._one_of(kind, text, values)
            case Compares(op=op, value=value):
                holds = self._compares(kind, text, {"lt": "<", "le": "<=", "ge": ">=", "gt": ">"}[op], value)
            case Exists():
                holds = f"{kind} <> 'NULL'"
            case StartsWith(value=value):
                holds = f"{kind} = 'VARCHAR' AND starts_with({text}, {self._bind(value)})"
            case Contains(value=value):
                holds = self._contains(kind, text, path, value)
        return f"coalesce({holds}, false)"

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
    keys = field.split(".") if isinstance(field, str) else field
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
