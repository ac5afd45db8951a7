"""The documents of a shard: a memory-mapped Arrow file with doc_id, title, text and metadata (JSON). Reading a row needs no decoding."""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from ray_lir import storage
from ray_lir.base.errors import FormatError

FILE = "documents.arrow"
COLUMNS = ("doc_id", "title", "text", "metadata")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
IDS = pa.schema([("doc_id", pa.string())])


def write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Write one uncompressed record batch a table."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table.select(COLUMNS).cast(SCHEMA).combine_chunks())


def open_table(path: Path, num_docs: int) -> pa.Table:
    """Map the documents into memory. Offsets of values are checked; texts are not read.

    Raises:
        FormatError: The file is missing or damaged, or holds another number of documents.
    """
    with _reporting_damage(str(path)):
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        _check_schema(reader.schema)
        table = reader.read_all()
        table.validate()
        if table.num_rows != num_docs:
            raise ValueError(f"{table.num_rows} documents, not {num_docs}")
        for column in table.columns:
            for chunk in column.chunks:
                _check_offsets(chunk)
    return table


def _check_schema(schema: pa.Schema) -> None:
    if not schema.equals(SCHEMA):
        raise ValueError(f"columns {schema.names}")


def _check_offsets(column: pa.StringArray) -> None:
    """Check that every value lies inside the column's data; Arrow checks this only while it reads all texts.

    Raises:
        ValueError: A value is missing, or lies outside of the data.
    """
    _, offsets, text = column.buffers()
    starts = np.frombuffer(offsets or b"", np.int32)[column.offset : column.offset + len(column) + 1]
    size = text.size if text else 0
    if column.null_count or (len(column) and (starts[0] < 0 or starts[-1] > size or (starts[1:] < starts[:-1]).any())):
        raise ValueError("values that are missing, or lie outside of the file")


@contextmanager
def _reporting_damage(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # Arrow's errors about damaged content have no errno
            raise
        raise FormatError(url, "an Arrow file of documents", f"{error!r:.120}", "restore it or build the index anew") from error


def read_batches(url: str, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
    """Yield the documents batch by batch, from a disk or an object store.

    Raises:
        FormatError: The file is missing or damaged.
    """
    options = pa.ipc.IpcReadOptions(included_fields=[COLUMNS.index(name) for name in columns])
    with _reporting_damage(url), storage.open_input(url) as file:
        _check_schema(pa.ipc.open_file(file).schema)
        file.seek(0)
        reader = pa.ipc.open_file(file, options=options)
        for number in range(reader.num_record_batches):
            batch = reader.get_batch(number)
            batch.validate()
            for column in batch.columns:
                _check_offsets(column)
            yield batch


def find(table: pa.Table, doc_ids: Sequence[str]) -> np.ndarray:
    """Return the row numbers of these ids, ascending."""
    return np.flatnonzero(pc.is_in(table.column("doc_id"), value_set=pa.array(doc_ids, pa.string())).to_numpy())


def rows(table: pa.Table, numbers: np.ndarray) -> list[dict[str, str]]:
    """Return the documents with these row numbers, in the order of the numbers."""
    places = _places(table, numbers)
    columns = [_values(table, name, places) for name in COLUMNS]
    return [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]


def column(table: pa.Table, name: str, numbers: np.ndarray) -> list[str]:
    """Return one field of the documents with these row numbers.

    Args:
        table: The documents.
        name: Name of the field.
        numbers: Row numbers.
    """
    return _values(table, name, _places(table, numbers))


def _places(table: pa.Table, numbers: np.ndarray) -> list[tuple[int, int]]:
    """Return the chunk of each row, and the row's number inside it; all columns have the same chunks."""
    ends = np.cumsum([len(chunk) for chunk in table.column(0).chunks])
    owners = np.searchsorted(ends, numbers, side="right")
    return list(zip(owners.tolist(), (numbers - ends[owners]).tolist(), strict=True))


def _values(table: pa.Table, name: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """Read value by value: Arrow's `take` would first copy a column of many chunks into one chunk."""
    chunks = table.column(name).chunks
    try:
        return [chunks[owner][row].as_py() for owner, row in places]
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} of documents", "text in UTF-8", f"{error}"[:120], "restore the file or build the index anew") from None
