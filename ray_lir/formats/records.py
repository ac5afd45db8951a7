"""Corpus rows: JSONL (plain or gzip) and Parquet files, read as streams, and what makes a row a document.

A row is a JSON object; rows of Parquet are turned into one. Its id is `_id`, `doc_id` or `id`, a string; `text` is
required, `title` is not; the fields of a `metadata` object and all other fields are the document's metadata.
"""

import base64
import gzip
import json
import logging
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir.errors import ConfigError, FormatError
from ray_lir.formats import storage

logger = logging.getLogger(__name__)

ID_FIELDS = ("_id", "doc_id", "id")
BEIR_FILES = ("corpus.jsonl", "corpus.jsonl.gz")
JSONL, GZIP, PARQUET = ".jsonl", ".jsonl.gz", ".parquet"
SUFFIXES = (JSONL, GZIP, PARQUET)
ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class Document:
    """A document of a corpus."""

    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any]


class BadRow(ValueError):
    """A row that is no document; the message is the reason."""


def document_text(title: str, text: str) -> str:
    """What is encoded of a document: its title and its text, as BEIR joins them."""
    return f"{title} {text}".strip()


def corpus_files(url: storage.PathOrUrl) -> list[str]:
    """The files of a corpus: the file itself, the corpus of a BEIR folder, or all files of a folder that can be read.

    Raises:
        ConfigError: if there is nothing there, or nothing that can be read.
    """
    url = storage.absolute(url)
    with storage.told_as("read", url):
        names = storage.list_names(url)
        if not names and not storage.exists(url):
            raise ConfigError(f"no corpus at {url}: no such file or folder; check the path")
    if not names and not storage.is_folder(url):
        names, url = [storage.name_of(url)], url.rstrip("/").rpartition("/")[0] or ("/" if url.startswith("/") else ".")
    names = [name for name in BEIR_FILES if name in names][:1] or names
    readable = [name for name in names if name.endswith(SUFFIXES) and not name.startswith((".", "_"))]
    if not readable:
        found = ", ".join(names[:3]) or "nothing"
        raise ConfigError(f"no corpus at {url}: found {found}, want files that end in {', '.join(SUFFIXES)}; convert it or check the path")
    if len(readable) < len(names):
        logger.info("corpus: %d files of %s are read, %d others are not", len(readable), url, len(names) - len(readable))
    return [storage.join(url, name) for name in readable]


def read_rows(url: storage.PathOrUrl) -> Iterator[tuple[int, bytes]]:
    """The rows of a file, each as (line or row number from 1, the bytes of a JSON object); blank lines are passed over.

    Raises:
        FormatError: if the file is cut or damaged.
        ConfigError: if it cannot be read.
    """
    url = storage.spelled(url)
    with storage.told_as("read", url):
        try:
            yield from _parquet_rows(url) if url.endswith(PARQUET) else _jsonl_rows(url)
        except (gzip.BadGzipFile, EOFError, zlib.error, pa.ArrowInvalid, UnicodeDecodeError) as error:
            kind = {GZIP: "a gzip file of JSON lines", PARQUET: "a Parquet file"}.get(_suffix(url), "JSON lines")
            raise FormatError(url, kind, _short(error), "the file is cut or damaged: fetch it again") from error


def parse_document(row: bytes) -> Document:
    """The document of a row.

    Raises:
        BadRow: if the row is not a JSON object in UTF-8 with a string as id and one as text.
    """
    fields = _parse_object(row)
    doc_id = _take_id(fields)
    title = _take_string(fields, "title", default="")
    text = _take_string(fields, "text")
    nested = fields.pop("metadata", None)
    if nested is not None and not isinstance(nested, dict):
        fields["metadata"] = nested
    return Document(doc_id, title, text, {**(nested if isinstance(nested, dict) else {}), **fields})


@dataclass
class RefusedRows:
    """Rows of a corpus that are no documents.

    Attributes:
        num_rows: How many there were.
        first: File, row and reason of the first one; None if there was none.
    """

    num_rows: int = 0
    first: str | None = None


def read_documents(url: storage.PathOrUrl, refused: RefusedRows | None = None) -> Iterator[Document]:
    """The documents of a corpus one after another. Rows that are none are left out, counted in `refused`, and logged at the end."""
    refused = refused or RefusedRows()
    before = refused.num_rows
    for file in corpus_files(url):
        for number, row in read_rows(file):
            try:
                yield parse_document(row)
            except BadRow as error:
                refused.num_rows += 1
                refused.first = refused.first or f"{file}:{number}: {error}"
    if num_bad := refused.num_rows - before:
        logger.warning("corpus: %d rows of %s are not documents and were left out, the first: %s", num_bad, url, refused.first)


def _jsonl_rows(url: str) -> Iterator[tuple[int, bytes]]:
    with storage.open_input(url) as file:
        lines = gzip.GzipFile(fileobj=file) if url.endswith(GZIP) else BufferedReader(file, storage.BLOCK_BYTES)  # type: ignore[type-var]
        for number, line in enumerate(lines, start=1):
            row = line.removeprefix(b"\xef\xbb\xbf").strip() if number == 1 else line.strip()
            if row:
                yield number, row


def _parquet_rows(url: str) -> Iterator[tuple[int, bytes]]:
    with storage.open_input(url) as file:
        number = 0
        for batch in pq.ParquetFile(file).iter_batches(batch_size=ROWS_PER_BATCH):
            columns = {name: _values(batch.column(name)) for name in batch.schema.names}
            for values in zip(*columns.values(), strict=True):
                number += 1
                fields = dict(zip(columns, values, strict=True))
                yield number, json.dumps(fields, ensure_ascii=False, default=_plain).encode("utf-8", "surrogateescape")


def _values(column: pa.Array) -> list[Any]:
    """A column's values; text that is not UTF-8 is kept byte for byte, for `parse_document` to refuse that row alone."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "surrogateescape") for value in raw]
    return column.to_pylist()


def _plain(value: Any) -> Any:
    """What JSON has no word for: bytes become an object (so they are not taken for text), dates and decimals strings."""
    return {"base64": base64.b64encode(value).decode()} if isinstance(value, bytes) else str(value)


def _parse_object(row: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(row.decode(), parse_constant=lambda _: None)
    except UnicodeDecodeError as error:
        raise BadRow(f"not UTF-8: byte 0x{row[error.start]:02x} at position {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise BadRow(f"not JSON: {_short(error)}") from None
    if not isinstance(fields, dict):
        raise BadRow(f"not a JSON object but {_kind(fields)}")
    try:
        json.dumps(fields, ensure_ascii=False, allow_nan=False).encode()
    except UnicodeEncodeError:
        raise BadRow("holds half of a surrogate pair, which is no Unicode text") from None
    except ValueError:
        raise BadRow("holds a number that is out of range") from None
    return fields


def _take_id(fields: dict[str, Any]) -> str:
    name = next((name for name in ID_FIELDS if fields.get(name) is not None), None)
    if name is None:
        raise BadRow(f"no id: want a field {', '.join(ID_FIELDS[:-1])} or {ID_FIELDS[-1]}")
    doc_id = _take_string(fields, name)
    if not doc_id:
        raise BadRow(f"{name} is empty")
    for other in ID_FIELDS:
        if fields.get(other, doc_id) in (None, doc_id):
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


def _suffix(url: str) -> str:
    return next((suffix for suffix in SUFFIXES if url.endswith(suffix)), "")


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
