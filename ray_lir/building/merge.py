"""Merging shards: the live documents of several shards become new shards, from their codes, residuals and scales."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.base.short_repr import ShortRepr
from ray_lir.building.assemble import SHARD, balanced_bounds, publish_shard, write_documents, write_windows
from ray_lir.building.compress import array_names
from ray_lir.building.lexical import PostingsWriter
from ray_lir.building.workspace import Workspace
from ray_lir.index import documents
from ray_lir.index.arrays import open_rows, read_array, write_rows
from ray_lir.index.manifest import ShardEntry
from ray_lir.index.shard import WINDOWS, check_windows, has_token_weights, optional_arrays, read_deleted, read_offsets

DOCS_PER_BLOCK = 1024
"""Documents to copy at a time."""


@dataclass(frozen=True)
class Merge:
    """The inputs and settings that every step of a merge needs.

    Attributes:
        index: Folder or URL.
        shards: The shards to merge.
        num_shards: Number of new shards.
        version: Number of the version that lists the new shards.
        workspace: Scratch folder of the merge.
        lexical: Whether the new shards get lexical postings. They are made from the texts again.
        stemmer: Language of their stemmer; None for no stemming.
        prefix: Prefix of the names of the new shards.
        has_passages: Whether the rows are passages. All passages of a document stay in one shard.
    """

    index: str
    shards: tuple[ShardEntry, ...]
    num_shards: int
    version: int
    workspace: Workspace
    lexical: bool = False
    stemmer: str | None = None
    prefix: str = SHARD
    has_passages: bool = False


def merge_shards(merge: Merge, map: Map, records: list[dict[str, Any]]) -> tuple[ShardEntry, ...]:
    """Publish new shards of about equally many tokens. Documents keep their order and are numbered without gaps.

    Args:
        merge: Inputs and settings of the merge.
        map: Where the steps run, one call a shard.
        records: Phases of the job; this phase is appended.
    """
    with phase("merge", records) as record:
        bounds = balanced_bounds(
            [shard.live_tokens for shard in merge.shards],
            [shard.num_live for shard in merge.shards],
            lambda number: _live(merge.index, merge.shards[number])[1],
            merge.num_shards,
        )
        if merge.has_passages:
            bounds = _at_documents(merge, bounds)
        shards = tuple(watched(map, "merge")(partial(_merge_shard, merge, bounds), range(merge.num_shards)))
        record.update(shards=len(shards), bytes=sum(file.size for shard in shards for file in shard.files))
    return shards


def _at_documents(merge: Merge, bounds: list[int]) -> list[int]:
    """Move the bounds of shards to first passages of documents, with at least one document a shard."""
    starts: list[int] = []
    begin = 0
    for shard in merge.shards:
        rows, _, _ = _live(merge.index, shard)
        starts += (begin + np.flatnonzero(_read_windows(merge.index, shard)[rows, 1] == 0)).tolist()
        begin += shard.num_live
    moved = [0]
    for number, bound in enumerate(bounds[1:-1], 1):
        latest = len(starts) - (merge.num_shards - number)
        moved.append(min(max(int(np.searchsorted(starts, bound)), moved[-1] + 1), latest))
    return [*(starts[document] for document in moved), bounds[-1]]


@dataclass(frozen=True, eq=False, repr=False)
class _Span(ShortRepr):
    """The documents of one old shard that belong to a new shard.

    Attributes:
        shard: The old shard.
        rows: [N] int64, ascending row numbers of the documents.
        offsets: The doc_offsets of the old shard.
    """

    shard: ShardEntry
    rows: np.ndarray
    offsets: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        return self.offsets[self.rows + 1] - self.offsets[self.rows]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield runs of consecutive rows, of at most DOCS_PER_BLOCK rows."""
        for start in range(0, len(self.rows), DOCS_PER_BLOCK):
            block = self.rows[start : start + DOCS_PER_BLOCK]
            yield from np.split(block, np.flatnonzero(np.diff(block) > 1) + 1)


def _live(index: str, shard: ShardEntry) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the rows of a shard's live documents, their lengths, and the shard's doc_offsets."""
    offsets = read_offsets(index, shard)
    rows = np.delete(np.arange(shard.num_docs), read_deleted(index, shard))
    return rows, offsets[rows + 1] - offsets[rows], offsets


def _merge_shard(merge: Merge, bounds: list[int], number: int) -> ShardEntry:
    first, end = bounds[number], bounds[number + 1]
    write = partial(_write_shard, merge, first, end)
    prefix = f"{merge.prefix}{number:05d}-{merge.version:05d}"  # so that files of the new version never have the name of an old file
    return publish_shard(merge.workspace, merge.index, f"shards/{number:05d}.json", prefix, first, end - first, write)


def _write_shard(merge: Merge, first: int, end: int, folder: Path) -> int:
    """Write the files of a shard; return its number of tokens. Memory: doc_offsets of the old shards, a block of documents."""
    spans = list(_spans(merge, first, end))
    postings = PostingsWriter(merge.stemmer) if merge.lexical else None
    write_documents(folder, (table for span in spans for table in _texts(merge.index, span)), postings)
    doc_offsets = np.concatenate([[0], np.cumsum(np.concatenate([span.lengths for span in spans]))]).astype(np.int64)
    np.save(folder / "doc_offsets.npy", doc_offsets)
    for kind in array_names(has_token_weights(merge.shards[0])):
        write_rows(folder / f"{kind}.npy", int(doc_offsets[-1]), (rows for span in spans for rows in _tokens(merge.index, span, kind)))
    if all(WINDOWS in optional_arrays(span.shard) for span in spans):
        write_windows(folder, (_windows(merge.index, span) for span in spans))
    return int(doc_offsets[-1])


def _windows(index: str, span: _Span) -> np.ndarray:
    """Return the windows of a span's documents, [W, 3]: number of vectors, first and end character."""
    windows = _read_windows(index, span.shard)
    windows[:, 0] = np.diff(windows[:, 0], append=span.offsets[-1])
    owners = np.arange(len(windows)) if len(windows) == span.shard.num_docs else np.cumsum(windows[:, 1] == 0) - 1
    return windows[np.isin(owners, span.rows)]


def _read_windows(index: str, shard: ShardEntry) -> np.ndarray:
    """Return the windows of a shard, [W, 3] int64."""
    url = storage.join(index, shard.name, f"{WINDOWS}.npy")
    windows = read_array(url, np.uint32)
    check_windows(url, windows, shard)
    return windows.astype(np.int64)


def _spans(merge: Merge, first: int, end: int) -> Iterator[_Span]:
    begin = 0
    for shard in merge.shards:
        start, stop = max(first - begin, 0), min(end - begin, shard.num_live)
        if start < stop:
            rows, _, offsets = _live(merge.index, shard)
            yield _Span(shard, rows[start:stop], offsets)
        begin += shard.num_live


def _tokens(index: str, span: _Span, kind: str) -> Iterator[np.ndarray]:
    with open_rows(storage.join(index, span.shard.name, f"{kind}.npy")) as array:
        for run in span.blocks():
            yield array[span.offsets[run[0]] : span.offsets[run[-1] + 1]]


def _texts(index: str, span: _Span) -> Iterator[pa.Table]:
    begin = 0
    for batch in documents.read_batches(storage.join(index, span.shard.name, documents.FILE)):
        rows = span.rows[np.searchsorted(span.rows, begin) : np.searchsorted(span.rows, begin + len(batch))] - begin
        if len(rows):
            yield pa.Table.from_batches([batch.take(pa.array(rows))])
        begin += len(batch)
