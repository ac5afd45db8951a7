"""Parts of embeddings: Parquet files with one row per document.

Columns: doc_id string, num_tokens int32, embeddings binary (row-major float16, num_tokens x dim), token_ids binary (int32), weights binary
(float32, only for scorers with token weights), title, text, metadata (JSON object)
strings. Only for scorer attention: attention binary (float32, num_tokens x 2), the attention that each token receives, and the attended
tokens of its text. The schema's metadata holds dim and
the encoder fingerprint. A row group is a block, the unit that a reader holds in memory.

Documents that were encoded in windows have two more columns. windows binary (int32, a row a window): its number of vectors, its first and
its end character in the document's text. continues bool: whether the row continues the document of the row before. A document with very
many vectors has several rows, so that a block stays small; title, text and metadata are in its first row.
"""

import errno
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate

DOCS_PER_BLOCK = 256
TEXT_COLUMNS = ("title", "text", "metadata")
MAX_DIM = 1 << 16
MAX_GROUP_BYTES = 4 << 30
"""Largest row group that is read, in uncompressed bytes; `write_part` writes at most 2 GiB."""
COLUMN_TYPES: dict[str, tuple[pa.DataType | None, ...]] = {
    "num_tokens": (pa.int32(),),
    "embeddings": (pa.binary(),),
    "token_ids": (pa.binary(), None),
    "weights": (pa.binary(), None),
    "attention": (pa.binary(), None),
    "windows": (pa.binary(), None),
    "continues": (pa.bool_(), None),
    **{name: (pa.string(),) for name in ("doc_id", *TEXT_COLUMNS)},
}
"""The types that each column may have; None: the column may be missing."""


@dataclass(frozen=True, eq=False, repr=False)
class Block(ShortRepr):
    """Consecutive documents with their token embeddings.

    Attributes:
        embeddings: Token embeddings of N documents.
        texts: Table of N rows with the columns doc_id, title, text, metadata.
        windows: [W, 3] int32, the windows of all documents in order: number of vectors, first and end character in the text. None if the
            documents were not encoded in windows.
        continues: Whether the first document is the rest of the last document of the block before.
    """

    embeddings: TokenEmbeddings
    texts: pa.Table
    windows: np.ndarray | None = None
    continues: bool = False


def texts_table(doc_ids: Sequence[str], titles: Sequence[str], texts: Sequence[str], metadata: Sequence[str]) -> pa.Table:
    """Return the documents as a table of strings.

    Args:
        doc_ids: N document ids.
        titles: N titles.
        texts: N texts.
        metadata: N JSON objects ("{}" for a document without metadata).
    """
    columns = {"doc_id": doc_ids, "title": titles, "text": texts, "metadata": metadata}
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def write_part(path: Path, blocks: Iterable[Block], fingerprint: str) -> tuple[int, int]:
    """Write one Parquet file; equal content gives equal bytes.

    Args:
        path: The file to write.
        blocks: The documents and their token embeddings, in at least one block. A block gets its own row groups.
        fingerprint: Fingerprint of the encoder contract.

    Returns:
        Number of documents and number of vectors.
    """
    num_docs = num_tokens = 0
    with ExitStack() as stack:
        writer = None
        for block in blocks:
            table = _to_table(block, fingerprint)
            if writer is None:
                plain = [name for name in table.column_names if name not in ("doc_id", *TEXT_COLUMNS)]
                compression = {name: "none" if name in plain else "zstd" for name in table.column_names}
                writer = stack.enter_context(
                    pq.ParquetWriter(path, table.schema, use_dictionary=False, write_statistics=["num_tokens"], compression=compression)
                )
            writer.write_table(table, row_group_size=DOCS_PER_BLOCK)
            num_docs += len(block.embeddings) - block.continues
            num_tokens += block.embeddings.num_tokens
    return num_docs, num_tokens


def _to_table(block: Block, fingerprint: str) -> pa.Table:
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
    if embeddings.attention is not None:
        columns["attention"] = _to_binary(embeddings.attention.astype(np.float32), embeddings.offsets)
    if block.windows is not None:
        columns["windows"] = _to_binary(block.windows.astype(np.int32), _windows_of(embeddings.offsets, block.windows))
        columns["continues"] = pa.array([block.continues] + [False] * (len(embeddings) - 1))
    for name in TEXT_COLUMNS:
        columns[name] = block.texts.column(name).combine_chunks()
    return pa.table(columns).replace_schema_metadata({"ray_lir.dim": str(embeddings.dim), "ray_lir.fingerprint": fingerprint})


def _windows_of(offsets: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Return the offsets [N + 1] of the documents in the windows [W, 3].

    A document begins with a window at character 0 of its text, unless it is the rest of a document.
    """
    begins = np.flatnonzero(windows[:, 1] == 0)
    begins = begins if len(begins) == len(offsets) - 1 else np.concatenate([[0], begins])
    return np.append(begins, len(windows)).astype(np.int64)


def read_blocks(url: str) -> Iterator[Block]:
    """Read a part one block at a time. Only the first document of a block can continue the block before (`Block.continues`).

    Raises:
        FormatError: The file is not a part of embeddings, or is truncated.
    """
    with _open_part(url) as part:
        dim = int((part.schema_arrow.metadata or {})[b"ray_lir.dim"])
        if not 1 <= dim <= MAX_DIM:
            raise ValueError(f"{dim} dimensions")
        for number in range(part.num_row_groups):
            yield _to_block(_checked(part.read_row_group(number)), dim)


def read_whole_documents(url: str) -> Iterator[Block]:
    """Read a part in blocks of whole documents. A block is longer than those of `read_blocks` if it holds a document of several rows.

    Raises:
        FormatError: The file is not a part of embeddings, or is truncated.
    """
    held: list[Block] = []
    for block in read_blocks(url):
        if held and not block.continues:
            yield _joined(held)
            held = []
        held.append(block)
    if held:
        yield _joined(held)


def _joined(blocks: list[Block]) -> Block:
    """Return consecutive blocks as one. Each of them except the first continues the block before."""
    if len(blocks) == 1:
        return blocks[0]
    embeddings = concatenate([block.embeddings for block in blocks])
    continues = np.concatenate([np.arange(len(block.embeddings)) < block.continues for block in blocks])
    firsts = np.flatnonzero(~continues)
    counts = np.diff(np.append(firsts, len(embeddings))).tolist()
    texts = pa.concat_tables([block.texts for block in blocks]).filter(pa.array(~continues))
    windows = [block.windows for block in blocks if block.windows is not None]
    return Block(embeddings.joined(counts, [embeddings.doc_ids[first] for first in firsts.tolist()]), texts, np.concatenate(windows))


def read_texts(url: str) -> pa.Table:
    """Return doc_id, title, text and metadata of a part's documents without reading the embeddings."""
    with _open_part(url) as part:
        return _first_rows(_read_columns(part, ["doc_id", *TEXT_COLUMNS]))


def read_doc_ids(url: str) -> list[str]:
    """Return the ids of a part's documents without reading the embeddings."""
    with _open_part(url) as part:
        return _first_rows(_read_columns(part, ["doc_id"])).column(0).to_pylist()


def read_lengths(url: str) -> np.ndarray:
    """Return the number of tokens of each document of a part, [N] int64, without reading the embeddings."""
    with _open_part(url) as part:
        table = _read_columns(part, ["num_tokens"])
        lengths = table.column(0).to_numpy().astype(np.int64)
        _check_lengths(lengths)
        return np.add.reduceat(lengths, np.flatnonzero(_is_first(table))) if len(lengths) else lengths


def _read_columns(part: pq.ParquetFile, names: list[str]) -> pa.Table:
    """Return columns of all rows, and the column `continues` if the part has it."""
    continues = [name for name in ("continues",) if name in part.schema_arrow.names]
    return _checked(part.read(columns=[*names, *continues]))


def _is_first(table: pa.Table) -> np.ndarray:
    """Return for each row whether a document begins there. Raise ValueError if the first row does not begin one."""
    if "continues" not in table.column_names:
        return np.ones(table.num_rows, bool)
    first = ~table.column("continues").combine_chunks().to_numpy(zero_copy_only=False).astype(bool)
    if len(first) and not first[0]:
        raise ValueError("the first row continues a document")
    return first


def _first_rows(table: pa.Table) -> pa.Table:
    if "continues" not in table.column_names:
        return table
    return table.filter(pa.array(_is_first(table))).drop_columns("continues")


@contextmanager
def _open_part(url: str) -> Iterator[pq.ParquetFile]:
    """Open a part and check its columns. Errors in the body that damaged content causes become a FormatError."""
    try:
        with storage.open_input(url) as file:
            part = pq.ParquetFile(file)
            _check_part(part)
            yield part
    except (pa.ArrowException, OSError, KeyError, ValueError, ConfigError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.ENOENT):  # Arrow's errors about damaged content have no errno
            raise
        found = " ".join(f"{error!r}".split())[:160]
        raise FormatError(url, "a Parquet file of token embeddings", found, "restore it or encode the corpus again") from error


def _check_part(part: pq.ParquetFile) -> None:
    """Raise ValueError unless the columns are those of `write_part` and every row group fits into memory."""
    schema = part.schema_arrow
    for name, kinds in COLUMN_TYPES.items():
        found = schema.field(name).type if name in schema.names else None
        if schema.names.count(name) > 1 or found not in kinds:
            raise ValueError(f"column {name} has type {found}, not {kinds[0]}")
    for number in range(part.num_row_groups):
        group = part.metadata.row_group(number)
        sizes = [group.column(column).total_uncompressed_size for column in range(group.num_columns)]
        if max(group.total_byte_size, sum(sizes)) > MAX_GROUP_BYTES or min(sizes) < 0 or group.num_rows > MAX_GROUP_BYTES:
            raise ValueError(f"a row group of {max(group.total_byte_size, sum(sizes))} bytes and {group.num_rows} rows")


def _checked(table: pa.Table) -> pa.Table:
    """Return the table. Raise ValueError if a value is missing or a text is not UTF-8."""
    for name in table.column_names:
        if name in COLUMN_TYPES and table.column(name).null_count:
            raise ValueError(f"column {name} has missing values")
    table.validate(full=True)
    return table


def _check_lengths(lengths: np.ndarray) -> None:
    if len(lengths) and lengths.min() < 0:
        raise ValueError(f"a document has {lengths.min()} tokens")


def _to_block(table: pa.Table, dim: int) -> Block:
    table = table.combine_chunks()
    _check_lengths(table.column("num_tokens").to_numpy())
    offsets = np.concatenate([[0], np.cumsum(table.column("num_tokens").to_numpy(), dtype=np.int64)])
    values = _from_binary(table, "embeddings", np.float16)
    assert values is not None  # _check_part requires the column
    attention = _from_binary(table, "attention", np.float32)
    embeddings = TokenEmbeddings(
        values.reshape(-1, dim),
        offsets,
        table.column("doc_id").to_pylist(),
        _from_binary(table, "token_ids", np.int32),
        _from_binary(table, "weights", np.float32),
        attention=None if attention is None else attention.reshape(-1, 2),
    )
    windows, continues = _from_binary(table, "windows", np.int32), False
    if windows is not None:
        windows = windows.reshape(-1, 3)
        continues = table.num_rows > 0 and table.column("continues")[0].as_py()
        if windows[:, 0].sum() != embeddings.num_tokens or (windows < 0).any() or (windows[:, 2] < windows[:, 1]).any():
            raise ValueError("windows that do not fit the vectors")
    return Block(embeddings, table.select(["doc_id", *TEXT_COLUMNS]), windows, continues)


def _to_binary(rows: np.ndarray, offsets: np.ndarray) -> pa.Array:
    """Return one binary value per document, without copying the rows."""
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
