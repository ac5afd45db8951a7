"""A shard's documents: an Arrow file of doc_id, title, text and metadata (JSON), memory-mapped, so a row costs no decoding."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc

from ray_lir.errors import FormatError
from ray_lir.formats import storage

FILE = "documents.arrow"
COLUMNS = ("doc_id", "title", "text", "metadata")
SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
IDS = pa.schema([("doc_id", pa.string())])


def write(path: Path, tables: Iterable[pa.Table]) -> None:
    """Writes one record batch a table, without compression."""
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
        for table in tables:
            writer.write_table(table.select(COLUMNS).cast(SCHEMA).combine_chunks())


def open_table(path: Path) -> pa.Table:
    """The documents, without reading them."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (pa.ArrowException, FileNotFoundError) as error:
        raise FormatError(str(path), "an Arrow file of documents", f"{error!r:.120}", "restore it or build the index anew") from error


def read_batches(url: str, columns: Sequence[str] = COLUMNS) -> Iterator[pa.RecordBatch]:
    """The documents a batch at a time, from a disk or an object store.

    Raises:
        FormatError: if the file is missing or damaged.
    """
    options = pa.ipc.IpcReadOptions(included_fields=[COLUMNS.index(name) for name in columns])
    try:
        with storage.open_input(url) as file:
            reader = pa.ipc.open_file(file, options=options)
            for number in range(reader.num_record_batches):
                yield reader.get_batch(number)
    except (pa.ArrowException, FileNotFoundError) as error:
        raise FormatError(url, "an Arrow file of documents", f"{error!r:.120}", "restore it or build the index anew") from error


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
    return [chunks[owner][row].as_py() for owner, row in places]
