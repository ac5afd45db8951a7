"""Evaluation of filters on the documents of one shard, by DuckDB."""

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from ray_lir.base.config import canonical_json, parse_json
from ray_lir.base.derived import derived
from ray_lir.base.errors import FormatError
from ray_lir.base.forking import fork_safe
from ray_lir.index import documents
from ray_lir.index.filters import OWN_FIELDS, Compares, Condition, Contains, Equals, Exists, Filters, Group, Not, OneOf, StartsWith
from ray_lir.index.metadata_fields import SampledFields

if TYPE_CHECKING:
    import duckdb

MAX_KNOWN_FIELDS = 1000
KEPT_RESULTS = 16
"""Filters with results that a shard keeps, N / 8 bytes each: a service gets the same few filters again and again."""
SAMPLED_DOCUMENTS = 1000
"""Documents of a shard to collect fields from, for the message about an unknown field and for forms."""


class FilteredDocuments:
    """The documents of a shard with the results of recent filters. Safe in threads.

    Args:
        table: The documents (index/documents.py).
        live: Ascending row numbers of live documents; None for all.
    """

    def __init__(self, table: pa.Table, live: np.ndarray | None):
        self.table = table
        self.live = live
        self._results: OrderedDict[bytes, np.ndarray] = OrderedDict()
        self._has: dict[str, bool] = {}
        self._lock = fork_safe(threading.Lock())

    def has_field(self, field: str | list[str]) -> bool:
        """Return whether a document has the field. Empty titles and texts count."""
        if field in OWN_FIELDS:
            return True
        key = _field_name(field)
        if key not in self._has:
            if len(self._has) >= MAX_KNOWN_FIELDS:
                self._has.clear()
            self._has[key] = len(_matching(self.table, Exists(op="exists", field=field), limit=1)) > 0
        return self._has[key]

    def unknown_fields(self, filters: Filters) -> dict[str, frozenset[str]]:
        """Return the names of existing metadata fields, by each field of the filters that no document has."""
        return {_field_name(field): self.field_names for field in filters.fields if not self.has_field(field)}

    @property
    @derived
    def field_names(self) -> frozenset[str]:
        """Paths of metadata fields in a sample of the documents."""
        return frozenset(chain.from_iterable(map(_paths, self._sample(None))))

    @property
    @derived
    def sampled_fields(self) -> SampledFields:
        """Metadata fields in a sample of the live documents, with their kinds and values."""
        return SampledFields.of(metadata for metadata in self._sample(self.live) if isinstance(metadata, dict))

    def _sample(self, rows: np.ndarray | None) -> list[Any]:
        """Return the metadata of up to 1,000 of these documents, evenly spaced; None for all documents."""
        num_rows = self.table.num_rows if rows is None else len(rows)
        chosen = np.unique(np.linspace(0, num_rows - 1, min(SAMPLED_DOCUMENTS, num_rows)).astype(np.int64))
        return [parse_json(text) for text in documents.column(self.table, "metadata", chosen if rows is None else rows[chosen])]

    def rows(self, filters: Filters) -> np.ndarray:
        """Return the row numbers of the live documents that meet the filters, ascending.

        Raises:
            FormatError: Metadata is not JSON.
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
        """Return whether each document meets the filters, [N] bool."""
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


def _field_name(field: str | list[str]) -> str:
    return field if isinstance(field, str) else ".".join(field)


def _paths(metadata: Any, prefix: str = "", depth: int = 3) -> Iterator[str]:
    for key, value in metadata.items() if isinstance(metadata, dict) else ():
        yield prefix + key
        if depth > 1:
            yield from _paths(value, f"{prefix}{key}.", depth - 1)


def _matching(table: pa.Table, condition: Condition, limit: int | None = None) -> np.ndarray:
    """Return the rows for which the condition holds, in any order; at most `limit` rows."""
    import duckdb

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
    """Return the in-memory database of a process. It has no threads and no access to files.

    A forked process opens another one, because a thread of the parent may have been using this one.
    """
    import duckdb

    return duckdb.connect(":memory:", config={"threads": 1, "enable_external_access": False, "lock_configuration": True})


class _Sql:
    """Translates conditions into SQL over the columns of the documents. Values are bound as parameters and never part of the SQL.

    Attributes:
        values: The parameters by name.
    """

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def condition(self, condition: Condition) -> str:
        """Return an expression that is true or false for every document, never null."""
        match condition:
            case Group(op=joint, filters=parts):
                return "(" + f" {joint.upper()} ".join(self.condition(part) for part in parts) + ")"
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
        """Return the same for a column of texts; an empty text counts as missing."""
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
        """Return a test for any of the values. 64-bit integers are compared as integers, other numbers as float64."""
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


def _pointer(field: str | list[str]) -> str:
    """Return the JSON pointer (RFC 6901) of a field."""
    keys = field.removeprefix("metadata.").split(".") if isinstance(field, str) else field
    return "".join("/" + key.replace("~", "~0").replace("/", "~1") for key in keys)
