"""Training data as Arrow files: written as a stream, read through a memory map that all processes of a machine share.

A writer holds only the texts of the current block in memory. It also holds 20 bytes a text to number the texts, and 16 bytes a list to
group the lists by query.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from ray_lir.base.errors import FormatError
from ray_lir.training.data import ROWS_AT_ONCE, Texts, TrainingData

QUERIES, DOCUMENTS, LISTS, ORDER, STARTS = "queries.arrow", "documents.arrow", "lists.arrow", "order.arrow", "starts.arrow"
FILES = (QUERIES, DOCUMENTS, LISTS, ORDER, STARTS)
BLOCK_CHARACTERS = 4 << 20
"""Characters of text in a record batch: few enough for 32-bit offsets, whatever the script."""
TEXT = pa.schema([("text", pa.string())])
NUMBER = pa.schema([("number", pa.int64())])


class ArrowFile:
    """An Arrow file that is being written, one record batch a call."""

    def __init__(self, path: Path, schema: pa.Schema):
        """Args:
        path: Path of the new file; its folder exists.
        schema: Columns of the file.
        """
        self._schema = schema
        self._sink = open(path, "wb")  # noqa: SIM115
        self._writer = pa.ipc.new_file(self._sink, schema)

    def write(self, *columns: pa.Array | Sequence[object] | np.ndarray) -> None:
        """Append a record batch with these columns, in the order of the schema."""
        arrays = [
            column if isinstance(column, pa.Array) else pa.array(column, field.type)
            for column, field in zip(columns, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self._writer.close()
            self._sink.flush()
            os.fsync(self._sink.fileno())  # a mapped page counts as private memory of the process until it is on the disk
        finally:
            self._sink.close()


class TextFile(ArrowFile):
    """An Arrow file of texts that is being written; `len` is the number of texts so far."""

    def __init__(self, path: Path):
        """Args:
        path: Path of the new file; its folder exists.
        """
        super().__init__(path, TEXT)
        self._block: list[str] = []
        self._characters = self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, text: str) -> None:
        """Append a text."""
        self._block.append(text)
        self._count += 1
        self._characters += len(text)
        if len(self._block) == ROWS_AT_ONCE or self._characters >= BLOCK_CHARACTERS:
            self._flush()

    def extend(self, texts: Iterable[str]) -> None:
        """Append several texts."""
        for text in texts:
            self.add(text)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            super().__exit__(kind, error, trace)

    def _flush(self) -> None:
        if self._block:
            try:
                self.write(self._block)
            except UnicodeEncodeError as error:
                found = f"half of a surrogate pair in {error.object[max(0, error.start - 20) : error.start]!r}..."
                raise FormatError("training data", "Unicode text", found, "repair or leave out that text") from None
        self._block, self._characters = [], 0


class ListFile(ArrowFile):
    """An Arrow file of document lists that is being written, with or without a teacher's scores."""

    def __init__(self, path: Path, has_scores: bool):
        """Args:
        path: Path of the new file; its folder exists.
        has_scores: Whether each list comes with scores.
        """
        scores = [("scores", pa.list_(pa.float64()))] if has_scores else []
        super().__init__(path, pa.schema([("documents", pa.list_(pa.int32())), *scores]))


class Numbering:
    """Numbers distinct texts in the order of their first occurrence. It holds 20 bytes a text: a 128-bit digest and the number.

    Two texts get one number only if their digests are equal. The digests lie in sorted arrays of growing sizes, which are merged.
    """

    def __init__(self) -> None:
        self._levels: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def number(self, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
        """Return the number of each text, and the texts that had none before, in the order of their new numbers.

        Args:
            texts: N texts; some may be equal.

        Returns:
            Numbers [N] int64, and the new texts.
        """
        digests, numbers = self._find(texts)
        fresh: dict[bytes, int] = {}
        new: list[str] = []
        for place in np.flatnonzero(numbers < 0).tolist():
            number = fresh.setdefault(digests[place], self._count)
            if number == self._count:
                self._count += 1
                new.append(texts[place])
            numbers[place] = number
        if fresh:
            self._add(_halves(list(fresh)), np.fromiter(fresh.values(), np.int32, len(fresh)))
        return numbers, new

    def find(self, texts: Sequence[str]) -> np.ndarray:
        """Return the number of each text, [N] int64; -1 for a text without a number."""
        return self._find(texts)[1]

    def _find(self, texts: Sequence[str]) -> tuple[list[bytes], np.ndarray]:
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        high, low = _halves(digests)
        numbers = np.full(len(texts), -1, np.int64)
        for level_high, level_low, level_numbers in self._levels:
            place = np.minimum(np.searchsorted(level_high, high), len(level_high) - 1)
            found = (level_high[place] == high) & (level_low[place] == low)
            numbers[found] = level_numbers[place[found]]
        return digests, numbers

    def _add(self, halves: tuple[np.ndarray, np.ndarray], numbers: np.ndarray) -> None:
        high, low = halves
        while self._levels and len(self._levels[-1][0]) <= 2 * len(high):
            last_high, last_low, last_numbers = self._levels.pop()
            high, low = np.concatenate([last_high, high]), np.concatenate([last_low, low])
            numbers = np.concatenate([last_numbers, numbers])
        order = np.argsort(high, kind="stable")
        self._levels.append((high[order], low[order], numbers[order]))


def _halves(digests: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
    both = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
    return np.ascontiguousarray(both[:, 0]), np.ascontiguousarray(both[:, 1])


def open_texts(path: Path) -> Texts:
    """Return the texts of a file, mapped into memory.

    Raises:
        FormatError: The file is damaged.
    """
    return Texts(_table(path).column("text"))


def open_lists(path: Path) -> tuple[pa.ChunkedArray, pa.ChunkedArray | None]:
    """Return the document lists of a file and their scores (None without scores), mapped into memory.

    Raises:
        FormatError: The file is damaged.
    """
    table = _table(path)
    return table.column("documents"), table.column("scores") if "scores" in table.column_names else None


def open_data(folder: Path) -> TrainingData:
    """Return the training data of a folder, mapped into memory. The files may be unlinked while the data is in use.

    Raises:
        FormatError: A file is damaged.
    """
    lists, scores = open_lists(folder / LISTS)
    starts, order = (_table(folder / name).column("number").chunk(0).to_numpy() for name in (STARTS, ORDER))
    return TrainingData(open_texts(folder / QUERIES), open_texts(folder / DOCUMENTS), starts, order, lists, scores)


def write_groups(folder: Path, query_of_list: np.ndarray, num_queries: int) -> np.ndarray:
    """Write which lists belong to which query.

    Args:
        folder: Where the files go.
        query_of_list: [L] query number of each list.
        num_queries: Queries; each has a list.

    Returns:
        [L] int64, row numbers of the lists, grouped by query: the order in which digests and document numbers follow them.
    """
    order = np.argsort(query_of_list, kind="stable")
    starts = np.concatenate([[0], np.cumsum(np.bincount(query_of_list, minlength=num_queries))])
    for name, numbers in ((ORDER, order), (STARTS, starts)):
        with ArrowFile(folder / name, NUMBER) as file:
            file.write(numbers)
    return order


def reorder_texts(texts: Texts, path: Path, order: np.ndarray) -> None:
    """Write texts in another order.

    Args:
        texts: N texts.
        path: Path of the new file.
        order: [M] numbers of the texts to write, first to last.
    """
    with TextFile(path) as file:
        for number in order:
            file.add(texts[number])


def renumber_lists(lists: pa.ChunkedArray, scores: pa.ChunkedArray | None, path: Path, numbers: np.ndarray) -> None:
    """Write lists with other document numbers.

    Args:
        lists: Rows of document numbers.
        scores: Rows of scores, which are copied; None without scores.
        path: Path of the new file.
        numbers: [D] the new number of each document.
    """
    with ListFile(path, scores is not None) as file:
        for start in range(0, len(lists), ROWS_AT_ONCE):
            block = lists.slice(start, ROWS_AT_ONCE).combine_chunks()
            renumbered = as_lists(numbers[block.flatten().to_numpy()], block.value_lengths().to_numpy())
            file.write(renumbered, *([] if scores is None else [scores.slice(start, ROWS_AT_ONCE).combine_chunks()]))


def as_lists(numbers: np.ndarray, lengths: np.ndarray) -> pa.ListArray:
    """Return document numbers as lists of the given lengths, an Arrow column of list<int32>."""
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(numbers, pa.int32()))


def first_use(lists: pa.ChunkedArray, order: np.ndarray, num_documents: int) -> np.ndarray:
    """Return the documents in the order of their first use by the lists, [D] int64.

    Args:
        lists: L rows of document numbers; every document is in a list.
        order: [L] the order in which the rows are followed.
        num_documents: D.
    """
    seen = np.zeros(num_documents, bool)
    result = np.empty(num_documents, np.int64)
    count = 0
    for documents in _followed(lists, order):
        fresh = documents[~seen[documents]]
        distinct, places = np.unique(fresh, return_index=True)
        new = distinct[np.argsort(places)]
        seen[new] = True
        result[count : count + len(new)] = new
        count += len(new)
    return result


def _followed(lists: pa.ChunkedArray, order: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(order), ROWS_AT_ONCE):
        yield np.concatenate([np.array(lists[int(row)].as_py(), np.int64) for row in order[start : start + ROWS_AT_ONCE]])


def _table(path: Path) -> pa.Table:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid as error:
        found = " ".join(str(error).split())[:160]
        raise FormatError(str(path), "an Arrow file of training data", found, "remove its folder, so that it is written again") from error


def blocks(items: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    """Yield items in lists of at most ROWS_AT_ONCE items and about BLOCK_CHARACTERS characters."""
    block: list[tuple[str, str]] = []
    characters = 0
    for item in items:
        block.append(item)
        characters += len(item[1])
        if len(block) == ROWS_AT_ONCE or characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block
