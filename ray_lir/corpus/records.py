"""Corpus rows: read JSONL, TSV (both plain or gzip) and Parquet files as streams, and turn rows into documents.

A row is a JSON object; Parquet rows are converted to one. So are TSV rows: id and text, or id, text and title, as ColBERT's collections
have them, or the id, url, title and body of MS MARCO documents. Its id is `_id`, `doc_id` or `id`, a string or an integer (the rule is in
`ray_lir/base/ids.py`). `text` is required, `title` is optional. The fields of a `metadata` object and all other fields are the document's
metadata.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.ids import BadId, check_id
from ray_lir.corpus.parquet_values import column_values, distinct_names
from ray_lir.corpus.refused_rows import RefusedRows, log_refused
from ray_lir.corpus.text_lines import MAX_LINE_BYTES, read_lines

logger = logging.getLogger(__name__)

ID_FIELDS = ("_id", "doc_id", "id")
JSONL, GZIP, PARQUET = ".jsonl", ".jsonl.gz", ".parquet"
TSV_SUFFIXES = (".tsv", ".tsv.gz")
TSV_COLUMNS = {2: ("_id", "text"), 3: ("_id", "text", "title"), 4: ("_id", "url", "title", "text")}
TSV_HEADERS = ("id", "_id", "pid", "docid", "doc_id")
"""First column of a first line that holds the names of columns."""
SUFFIXES = (JSONL, GZIP, PARQUET, *TSV_SUFFIXES)
UNNAMED_SUFFIXES = (JSONL, GZIP, PARQUET)
"""Suffixes of a corpus in a folder without names that mark the corpus."""
CORPUS_NAMES = tuple(
    re.compile(pattern)
    for pattern in (
        r"corpus\.jsonl",
        r"corpus\.jsonl\.gz",
        r"corpus\.parquet",
        r"corpus",
        r"corpus[-_.].*\.(jsonl|jsonl\.gz|parquet)",
        r"(collection|corpus)\.tsv",
        r"(collection|corpus)\.tsv\.gz",
    )
)
"""Names of a corpus in a folder, in order of precedence."""
OTHER_NAMES = re.compile(r"(queries|query|questions|qas|topics|qrels|qrel|judgements|judgments|runs?)([-_.]|$)", re.IGNORECASE)
"""Names of files of a test collection that hold no documents."""
ROWS_PER_BATCH = 256
LARGEST_EXPANSION = 1 << 30
MOST_EXPANSION = 200
"""A row group of a Parquet file is read if it has at most LARGEST_EXPANSION bytes, or at most this many times its compressed size."""
Kept = Literal["first", "last"]
"""Which row with a repeated id becomes the document; the other rows are refused."""
MAX_NESTING = 100
"""Maximum nesting of lists and objects in a row. Python's own limit depends on the process that parses."""


@dataclass(frozen=True)
class Document:
    """A document of a corpus."""

    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any]


class BadRow(ValueError):
    """A row is not a document; the message is the reason."""


def document_text(title: str, text: str) -> str:
    """Return the text of a document that is encoded: its title and its text, joined as BEIR joins them."""
    return f"{title} {text}".strip()


def title_length(title: str, text: str) -> int:
    """Return the number of characters at the beginning of `document_text(title, text)` that are the title."""
    return min(len(title.strip()), len(document_text(title, text)))


def corpus_files(url: storage.PathOrUrl) -> list[str]:
    """Return the files of a corpus, in reading order.

    A single file is returned as it is. In a folder, names that begin with "corpus" mark the corpus: corpus.jsonl, corpus.jsonl.gz,
    corpus.parquet, a folder corpus/, or numbered files such as corpus-00000-of-00002.parquet. So does collection.tsv (LoTTE, MS MARCO).
    Only the first of these kinds that exists is read. A folder without such names is read whole, except for queries, judgements, TSV
    files and hidden files. The log names the files that are not read.

    Raises:
        ConfigError: The path does not exist, or no file can be read as a corpus.
    """
    url = storage.absolute(url)
    with storage.wrap_errors("read", url):
        names = storage.list_names(url)
        if not names and not storage.exists(url):
            raise ConfigError(f"no corpus at {url}: no such file or folder; check the path")
        if not names and not storage.is_folder(url):
            if not url.endswith(SUFFIXES):
                raise ConfigError(
                    f"{url} is not a corpus: expected a file that ends in {', '.join(SUFFIXES)}; convert it or check the path"
                )
            return [url]
        return _folder_files(url, names)


def has_corpus(names: Iterable[str]) -> bool:
    """Return whether one of these names of a folder marks the corpus of a collection."""
    return any(kind.fullmatch(name) for name in names for kind in CORPUS_NAMES)


def _folder_files(url: str, names: list[str]) -> list[str]:
    visible = [name for name in names if not name.startswith((".", "_"))]
    for kind in CORPUS_NAMES:
        found = [name for name in visible if kind.fullmatch(name)]
        if not found:
            continue
        folders = [name for name in found if storage.is_folder(storage.join(url, name))]
        if folders:
            return corpus_files(storage.join(url, folders[0]))
        _log_unread_files(url, names, found)
        return [storage.join(url, name) for name in found]
    if any(name.startswith("qas.") for name in names):
        raise ConfigError(f"no corpus at {url}: LoTTE's collection.tsv is missing; get the whole LoTTE archive again")
    readable = [name for name in visible if name.endswith(UNNAMED_SUFFIXES) and not OTHER_NAMES.match(name)]
    readable = [name for name in readable if not storage.is_folder(storage.join(url, name))]
    if not readable:
        first_names = ", ".join(names[:3]) or "nothing"
        if "manifest.json" in names or "LATEST" in names:
            raise ConfigError(f"{url} holds token embeddings or an index, not a corpus (it has {first_names}); give the original corpus")
        want = f"files that end in {', '.join(UNNAMED_SUFFIXES)} and are not queries"
        inside = [name for name in visible if not OTHER_NAMES.match(name) and storage.is_folder(storage.join(url, name))]
        fix = f"give one of its folders, such as {storage.join(url, inside[0])}" if inside else "convert it or check the path"
        raise ConfigError(f"no corpus at {url}: found {first_names}, expected {want}; {fix}")
    _log_unread_files(url, names, readable)
    return [storage.join(url, name) for name in readable]


def _log_unread_files(url: str, names: list[str], read: list[str]) -> None:
    unread = [name for name in names if name not in read and not OTHER_NAMES.match(name)]
    if unread:
        logger.info("corpus: %d files of %s are read; others are not: %s", len(read), url, ", ".join(unread[:10]))


def read_rows(url: storage.PathOrUrl) -> Iterator[tuple[int, bytes]]:
    """Yield the rows of a file as (line or row number from 1, JSON object as bytes); blank lines are skipped.

    Raises:
        FormatError: The file is truncated or damaged.
        ConfigError: The file cannot be read.
    """
    url = storage.path_text(url)
    with storage.wrap_errors("read", url):
        try:
            rows = _parquet_rows if url.endswith(PARQUET) else _tsv_rows if url.endswith(TSV_SUFFIXES) else _jsonl_rows
            yield from rows(url)
        except (pa.ArrowException, UnicodeDecodeError) as error:
            raise FormatError(url, "a Parquet file", _short(error), "the file is truncated or damaged: get it again") from error


def parse_document(row: bytes) -> Document:
    """Return the document of a row.

    Raises:
        BadRow: The row is not a JSON object in UTF-8 with an id and a text.
    """
    fields = _parse_object(row)
    doc_id = _take_id(fields)
    title = _take_string(fields, "title", default="")
    text = _take_string(fields, "text")
    nested = fields.pop("metadata", None)
    if nested is not None and not isinstance(nested, dict):
        fields["metadata"] = nested
    return Document(doc_id, title, text, {**(nested if isinstance(nested, dict) else {}), **fields})


def read_documents(url: storage.PathOrUrl, refused: RefusedRows | None = None) -> Iterator[Document]:
    """Yield the documents of a corpus; the first row with an id counts, as in jobs.encode.

    Memory is about 60 bytes per document.

    Args:
        url: File or folder of the corpus.
        refused: Counts the refused rows; None: they are only reported in the log at the end.
    """
    url = storage.absolute(url)
    found = RefusedRows()
    seen: set[int] = set()
    for file in corpus_files(url):
        for line, row in read_rows(file):
            try:
                document = parse_document(row)
            except BadRow as error:
                found.add(storage.base_name(file), line, error)
                continue
            key = int.from_bytes(hashlib.blake2b(document.doc_id.encode(), digest_size=8).digest())
            if key in seen:
                found.add(storage.base_name(file), line, repeat_reason(document.doc_id), repeated=True)
            else:
                seen.add(key)
                yield document
    log_refused(url, found.num_rows, found.reasons)
    if refused is not None:
        refused.merge(found)


def repeat_reason(doc_id: str, kept: Kept = "first") -> str:
    """Return the reason why a row with a repeated id is refused."""
    return (
        f"the id {doc_id!r} is that of an earlier row"
        if kept == "first"
        else f"a later row has the id {doc_id!r} too, and replaces this one"
    )


def _jsonl_rows(url: str) -> Iterator[tuple[int, bytes]]:
    return ((number, line.strip(b" \t\r")) for number, line in read_lines(url))


def _tsv_rows(url: str) -> Iterator[tuple[int, bytes]]:
    names = None
    for position, (number, line) in enumerate(read_lines(url)):
        columns = line.decode("utf-8", "surrogateescape").split("\t")
        if position == 0 and columns[0].lower() in TSV_HEADERS and len(columns) > 1:
            names = ("_id", *(name.strip().lower() for name in columns[1:]))
            continue
        fields = dict(zip(names or TSV_COLUMNS.get(len(columns), ("_id",)), columns, strict=False))
        yield number, json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")


def _parquet_rows(url: str) -> Iterator[tuple[int, bytes]]:
    with storage.open_input(url) as file:
        number = 0
        parquet = pq.ParquetFile(file)
        rows_per_batch = _rows_per_batch(url, parquet.metadata)
        if b"ray_lir.dim" in (parquet.schema_arrow.metadata or {}):
            raise ConfigError(f"{url} holds token embeddings, not a corpus; give its parent folder to jobs.build_index or jobs.update")
        for batch in parquet.iter_batches(batch_size=rows_per_batch):
            names = distinct_names(batch.schema.names)
            if names != batch.schema.names:
                renamed = ", ".join(name for name, was in zip(names, batch.schema.names, strict=True) if name != was)
                _notice("corpus: %s has columns with equal names; all but the first are renamed to %s", url, renamed)
            columns = [_values(name, column) for name, column in zip(names, batch.columns, strict=True)]
            for values in zip(*columns, strict=True):
                number += 1
                fields = dict(zip(names, values, strict=True))
                row = json.dumps(fields, ensure_ascii=False).encode("utf-8", "surrogateescape")
                if len(row) > MAX_LINE_BYTES:
                    found = f"a row {number} of {len(row):,} bytes"
                    raise FormatError(url, "rows that fit into memory", found, "cut the text into several documents")
                yield number, row


def _rows_per_batch(url: str, metadata: pq.FileMetaData) -> int:
    """Return how many rows to read at once: fewer if a row group expands far more than compressed text does. Rows can share one stored
    value, and a batch then holds a copy for each row.

    Raises:
        FormatError: A row group is too large even then: one megabyte of a file can expand to ten gigabytes of text.
    """
    rows = ROWS_PER_BATCH
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(column) for column in range(group.num_columns)]
        stored = sum(max(0, column.total_compressed_size) for column in columns)
        expanded = max(group.total_byte_size, sum(column.total_uncompressed_size for column in columns))
        if expanded <= MOST_EXPANSION * stored:
            continue
        if expanded > LARGEST_EXPANSION:
            found = f"row group {number} of {stored:,} bytes that become {expanded:,}"
            raise FormatError(url, "rows that fit into memory", found, "write the file again with smaller row groups, or as JSON lines")
        rows = min(rows, max(1, LARGEST_EXPANSION // max(1, expanded)))
    return rows


def _values(name: str, column: pa.Array) -> list[Any]:
    """Return a column as JSON values. Ids and texts that are not UTF-8 keep their bytes, so that `parse_document` refuses their rows."""
    return column_values(column, "surrogateescape" if name in (*ID_FIELDS, "title", "text") else "backslashreplace")


@lru_cache(maxsize=1024)
def _notice(message: str, *values: str) -> None:
    """Log a warning about a file once in a process, although the file is read more than once."""
    logger.warning(message, *values)


def _parse_object(row: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(row.decode(), parse_constant=lambda _: None, object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: byte 0x{row[error.start]:02x} at position {error.start}") from None
    except BadRow:
        raise
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {_short(error)}") from None
    if not isinstance(fields, dict):
        raise BadRow(f"not a JSON object but {_kind(fields)}")
    if row.count(b"[") + row.count(b"{") > MAX_NESTING and _depth(fields) > MAX_NESTING:
        raise BadRow(f"nested more than {MAX_NESTING} deep")
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadRow("holds half of a surrogate pair, which is not valid Unicode") from None
    except ValueError:
        raise BadRow("holds a number that is out of range") from None
    return fields


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise BadRow(f"holds the field {next(name for name in names if names.count(name) > 1)!r} twice")
    return fields


def _depth(value: Any) -> int:
    """Return how deeply lists and objects are nested. This does not recurse, because recursion has a limit."""
    level, depth = [value], 0
    while level := [each for each in level if isinstance(each, dict | list)]:
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
        depth += 1
    return depth


def _take_id(fields: dict[str, Any]) -> str:
    name = next((name for name in ID_FIELDS if fields.get(name) is not None), None)
    if name is None:
        raise BadRow(f"no id: expected a field {', '.join(ID_FIELDS[:-1])} or {ID_FIELDS[-1]}")
    value = fields[name]
    try:
        doc_id = check_id(value)
    except BadId as error:
        raise BadRow(f"{name} {error}") from None
    for other in ID_FIELDS:
        if type(fields.get(other)) in (type(None), type(value)) and fields.get(other) in (None, value):
            fields.pop(other, None)
    return doc_id


def _take_string(fields: dict[str, Any], name: str, default: str | None = None) -> str:
    value = fields.pop(name, None)
    if value is None:
        value = default
    if value is None:
        raise BadRow(f"no {name}")
    if not isinstance(value, str):
        raise BadRow(f"{name} is {_kind(value)}, not a string")
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "an object", str: "a string"}
    return f"{names[type(value)]} ({json.dumps(value)[:40]})"


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
