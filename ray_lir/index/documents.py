"""A shard's documents: an Arrow file of doc_id, title, text and metadata (JSON), memory-mapped, so a row costs no decoding."""

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
    """Writes one record batch a table, without compression."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table.select(COLUMNS).cast(SCHEMA).combine_chunks())


def open_table(path: Path, num_docs: int) -> pa.Table:
    """The documents, without reading their text; what is checked is where each value begins and ends.

    Raises:
        FormatError: if the file is missing or damaged, or holds another number of documents.
    """
    with _told(str(path)):
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
    """Raises ValueError unless every value lies inside the column's data, which Arrow checks only together with the text itself."""
    _, starts, text = column.buffers()
    starts = np.frombuffer(starts or b"", np.int32)[column.offset : column.offset + len(column) + 1]
    size = text.size if text else 0
    if column.null_count or (len(column) and (starts[0] < 0 or starts[-1] > size or (starts[1:] < starts[:-1]).any())):
        raise ValueError("values that are missing, or lie outside of the file")


@contextmanager
def _told(url: str) -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # what Arrow says of damaged content has no number
            raise
        raise FormatError(url, "an Arrow file of documents", f"{error!r:.120}", "restore it or build the index anew") from error


def read_batches(url: str, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
    """The documents a batch at a time, from a disk or an object store.

    Raises:
        FormatError: if the file is missing or damaged.
    """
    options = pa.ipc.IpcReadOptions(included_fields=[COLUMNS.index(name) for name in columns])
    with _told(url), storage.open_input(url) as file:
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
    """Row numbers of these ids, ascending."""
    return np.flatnonzero(pc.is_in(table.column("doc_id"), value_set=pa.array(doc_ids, pa.string())).to_numpy())


def rows(table: pa.Table, numbers: np.ndarray) -> list[dict[str, str]]:
    """The documents with these row numbers, in their order."""
    places = _places(table, numbers)
    columns = [_values(table, name, places) for name in COLUMNS]
    return [dict(zip(COLUMNS, values, strict=True)) for values in zip(*columns, strict=True)]


def column(table: pa.Table, name: str, numbers: np.ndarray) -> list[str]:
    """One field of the documents with these row numbers."""
    return _values(table, name, _places(table, numbers))


def _places(table: pa.Table, numbers: np.ndarray) -> list[tuple[int, int]]:
    """The chunk that holds each row, and the row's number there; chunks are the same for every column."""
    ends = np.cumsum([len(chunk) for chunk in table.column(0).chunks])
    owners = np.searchsorted(ends, numbers, side="right")
    return list(zip(owners.tolist(), (numbers - ends[owners]).tolist(), strict=True))


def _values(table: pa.Table, name: str, places: Sequence[tuple[int, int]]) -> list[str]:
    """Value by value: Arrow's `take` would first copy a column of many chunks into one."""
    chunks = table.column(name).chunks
    try:
        return [chunks[owner][row].as_py() for owner, row in places]
    except UnicodeDecodeError as error:
        raise FormatError(f"{name} of documents", "text in UTF-8", f"{error}"[:120], "restore the file or build the index anew") from None
