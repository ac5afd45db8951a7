"""Embedding shards: Parquet files with one row a document.

Columns: doc_id string, num_tokens int32, embeddings binary (row-major float16, num_tokens x dim), token_ids binary
(int32), weights binary (float32, only for scorers that have them), title, text, metadata (JSON object) strings.
The schema's metadata holds dim and the encoder fingerprint. A row group is a block: what a reader holds at once.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

DOCS_PER_BLOCK = 256
TEXT_COLUMNS = ("title", "text", "metadata")
MAX_DIM = 1 << 16
MAX_GROUP_BYTES = 4 << 30
"""Uncompressed bytes of a row group that is read; those that `write_part` writes have 2 GiB at most."""
COLUMN_TYPES: dict[str, tuple[pa.DataType | None, ...]] = {
    "num_tokens": (pa.int32(),),
    "embeddings": (pa.binary(),),
    "token_ids": (pa.binary(), None),
    "weights": (pa.binary(), None),
    **{name: (pa.string(),) for name in ("doc_id", *TEXT_COLUMNS)},
}
"""The types that each column may have; None: it may be missing."""


@dataclass(frozen=True)
class Block:
    """A slice of documents: their token embeddings and their texts.

    Attributes:
        embeddings: token embeddings of N documents.
        texts: table of N rows with columns doc_id, title, text, metadata.
    """

    embeddings: TokenEmbeddings
    texts: pa.Table


def texts_table(doc_ids: Sequence[str], titles: Sequence[str], texts: Sequence[str], metadata: Sequence[str]) -> pa.Table:
    """The documents as a table of strings; `metadata` are JSON objects ("{}" for none)."""
    columns = {"doc_id": doc_ids, "title": titles, "text": texts, "metadata": metadata}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def write_part(path: Path, block: Block, fingerprint: str) -> None:
    """Writes one Parquet file; equal content gives equal bytes."""
    embeddings = block.embeddings
    columns: dict[str, pa.Array] = {
        "doc_id": pa.array(embeddings.doc_ids, pa.string()),
        "num_tokens": pa.array(embeddings.lengths.astype(np.int32)),
        "embeddings": _to_binary(embeddings.values, embeddings.offsets),
    }
    if embeddings.token_ids is not None:
        columns["token_ids"] = _to_binary(embeddings.token_ids.astype(np.int32), embeddings.offsets)
    if embeddings.weights is not None:
        columns["weights"] = _to_binary(embeddings.weights.astype(np.float32), embeddings.offsets)
    for name in TEXT_COLUMNS:
        columns[name] = block.texts.column(name).combine_chunks()
    table = pa.table(columns).replace_schema_metadata({"ray_lir.dim": str(embeddings.dim), "ray_lir.fingerprint": fingerprint})
    plain = [name for name in columns if name not in ("doc_id", *TEXT_COLUMNS)]
    pq.write_table(
        table,
        path,
        row_group_size=DOCS_PER_BLOCK,
        use_dictionary=False,
        write_statistics=["num_tokens"],
        compression={name: "none" if name in plain else "zstd" for name in columns},
    )


def read_blocks(url: str) -> Iterator[Block]:
    """Reads a part one block at a time.

    Raises:
        FormatError: if the file is not an embedding shard, or was cut.
    """
    with _open_part(url) as part:
        dim = int((part.schema_arrow.metadata or {})[b"ray_lir.dim"])
        if not 1 <= dim <= MAX_DIM:
            raise ValueError(f"{dim} dimensions")
        for number in range(part.num_row_groups):
            yield _to_block(_checked(part.read_row_group(number)), dim)


def read_texts(url: str) -> pa.Table:
    """doc_id, title, text and metadata of a part's documents, without reading the embeddings."""
    with _open_part(url) as part:
        return _checked(part.read(columns=["doc_id", *TEXT_COLUMNS]))


def read_doc_ids(url: str) -> list[str]:
    """The ids of a part's documents, without reading the embeddings."""
    with _open_part(url) as part:
        return _checked(part.read(columns=["doc_id"])).column(0).to_pylist()


def read_lengths(url: str) -> np.ndarray:
    """[N] int64, tokens of each document of a part, without reading the embeddings."""
    with _open_part(url) as part:
        lengths = _checked(part.read(columns=["num_tokens"])).column(0).to_numpy().astype(np.int64)
        _check_lengths(lengths)
        return lengths


@contextmanager
def _open_part(url: str) -> Iterator[pq.ParquetFile]:
    """An embedding shard with the columns that one has; what goes wrong in the body because it is damaged becomes a FormatError."""
    try:
        with storage.open_input(url) as file:
            part = pq.ParquetFile(file)
            _check_part(part)
            yield part
    except (pa.ArrowException, OSError, KeyError, ValueError, ConfigError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # what Arrow says of damaged content has no number
            raise
        found = " ".join(f"{error!r}".split())[:160]
        raise FormatError(url, "a Parquet file of token embeddings", found, "restore it or encode the corpus anew") from error


def _check_part(part: pq.ParquetFile) -> None:
    """Raises ValueError unless the columns are those that `write_part` writes, and a row group fits into memory when it is read."""
    schema = part.schema_arrow
    for name, kinds in COLUMN_TYPES.items():
        found = schema.field(name).type if name in schema.names else None
        if schema.names.count(name) > 1 or found not in kinds:
            raise ValueError(f"column {name} of type {found}, not {kinds[0]}")
    for number in range(part.num_row_groups):
        group = part.metadata.row_group(number)
        sizes = [group.column(column).total_uncompressed_size for column in range(group.num_columns)]
        if max(group.total_byte_size, sum(sizes)) > MAX_GROUP_BYTES or min(sizes) < 0 or group.num_rows > MAX_GROUP_BYTES:
            raise ValueError(f"a row group of {max(group.total_byte_size, sum(sizes))} bytes and {group.num_rows} rows")


def _checked(table: pa.Table) -> pa.Table:
    """Raises ValueError if a value is missing, or text is not UTF-8."""
    for name in table.column_names:
        if name in COLUMN_TYPES and table.column(name).null_count:
            raise ValueError(f"column {name} lacks values")
    table.validate(full=True)
    return table


def _check_lengths(lengths: np.ndarray) -> None:
    if len(lengths) and lengths.min() < 0:
        raise ValueError(f"a document of {lengths.min()} tokens")


def _to_block(table: pa.Table, dim: int) -> Block:
    table = table.combine_chunks()
    _check_lengths(table.column("num_tokens").to_numpy())
    offsets = np.concatenate([[0], np.cumsum(table.column("num_tokens").to_numpy(), dtype=np.int64)])
    values = _from_binary(table, "embeddings", np.float16)
    embeddings = TokenEmbeddings(
        values.reshape(-1, dim),
        offsets,
        table.column("doc_id").to_pylist(),
        _from_binary(table, "token_ids", np.int32),
        _from_binary(table, "weights", np.float32),
    )
    return Block(embeddings, table.select(["doc_id", *TEXT_COLUMNS]))


def _to_binary(rows: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """One binary value a document, sharing the rows' memory."""
    row_bytes = rows.itemsize * int(np.prod(rows.shape[1:]))
    ends = pa.py_buffer(np.ascontiguousarray(offsets * row_bytes, np.int64))
    large = pa.Array.from_buffers(pa.large_binary(), len(offsets) - 1, [None, ends, pa.py_buffer(np.ascontiguousarray(rows))])
    return large.cast(pa.binary())


def _from_binary(table: pa.Table, name: str, dtype: type) -> np.ndarray | None:
    if name not in table.column_names:
        return None
    column = table.column(name)
    array = column.chunk(0) if column.num_chunks else pa.array([], pa.binary())
    starts = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    if data is None or len(array) == 0:
        return np.zeros(0, dtype)
    return np.frombuffer(data, np.uint8)[starts[0] : starts[-1]].view(dtype)
