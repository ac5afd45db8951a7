"""Assembling shards: the compressed parts of a shard's documents are concatenated and get a name with a digest of their content."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.base.config import digest
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.base.short_repr import ShortRepr
from ray_lir.building.compress import BLOCK_WINDOWS, LENGTHS, array_names, load_part, part_file
from ray_lir.building.lexical import PostingsWriter
from ray_lir.building.workspace import Build, Workspace
from ray_lir.embeddings.parquet import read_texts
from ray_lir.index import documents
from ray_lir.index.arrays import write_rows
from ray_lir.index.manifest import ShardEntry
from ray_lir.index.passages import split_texts
from ray_lir.index.shard import WINDOWS
from ray_lir.storage.manifest import describe_file

SHARD = "shards/shard-"
"""Prefix of the names of shards that a build or a compaction made."""


def assemble(
    build: Build, part_tokens: Sequence[int], map: Map, records: list[dict[str, Any]], prefix: str = SHARD
) -> tuple[ShardEntry, ...]:
    """Publish the folder of every shard below the output. Documents are numbered from 0.

    Args:
        build: Inputs and settings of the build.
        part_tokens: Tokens of each compressed part.
        map: Where the steps run, one call a shard.
        records: Phases of the job; this phase is appended.
        prefix: Prefix of the names of the shards.
    """
    with phase("assemble", records) as record:
        bounds = shard_bounds(build, part_tokens)
        step = partial(_assemble_shard, build, bounds, prefix)
        shards = tuple(watched(map, "assemble")(step, range(len(bounds) - 1)))
        record.update(shards=len(shards), bytes=sum(file.size for shard in shards for file in shard.files))
    return shards


def shard_bounds(build: Build, part_tokens: Sequence[int]) -> list[int]:
    """Return the document numbers at which shards begin, and the number of documents."""
    docs = [part.num_docs for part in build.parts]
    return balanced_bounds(part_tokens, docs, lambda part: load_part(build.workspace, part, LENGTHS), build.num_shards)


def balanced_bounds(tokens: Sequence[int], docs: Sequence[int], lengths: Callable[[int], np.ndarray], num_shards: int) -> list[int]:
    """Split documents into shards of about equally many tokens, with at least one document each.

    Args:
        tokens: Tokens of each part that holds the documents, in order.
        docs: Documents of each part.
        lengths: Function from a part's number to the tokens of each of its documents.
        num_shards: Number of shards.
    Returns:
        Document numbers at which shards begin, and the number of documents.
    """
    first_tokens = np.concatenate([[0], np.cumsum(tokens)])
    first_docs = np.concatenate([[0], np.cumsum(docs)])
    num_tokens, num_docs = int(first_tokens[-1]), int(first_docs[-1])
    bounds = [0]
    for shard in range(1, num_shards):
        target = num_tokens * shard // num_shards
        part = min(int(np.searchsorted(first_tokens, target, side="right")) - 1, len(docs) - 1)
        ends = first_tokens[part] + np.cumsum(lengths(part))
        found = int(first_docs[part] + np.searchsorted(ends, target, side="left")) + 1
        bounds.append(min(max(found, bounds[-1] + 1), num_docs - (num_shards - shard)))
    return [*bounds, num_docs]


def publish_shard(
    workspace: Workspace, output: str, done: str, prefix: str, first: int, num_docs: int, write: Callable[[Path], int]
) -> ShardEntry:
    """Make the folder of a shard and move it to its published name, unless an earlier run did.

    Args:
        workspace: Scratch folder of the job.
        output: Folder or URL of the index.
        done: Name of the record in the workspace that exists once the shard is published.
        prefix: Prefix of the shard's name, before the digest of the content.
        first: Number of its first document.
        num_docs: Number of its documents.
        write: Writes the files into an empty folder and returns their number of tokens.
    """
    if workspace.has(done):
        return ShardEntry.model_validate(workspace.load_record(done))
    with storage.attempt_folder(workspace.root) as attempt:
        folder = attempt / "shard"
        folder.mkdir()
        num_tokens = write(folder)
        files = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
        name = f"{prefix}-{digest([file.sha256 for file in files])[:12]}"
        storage.publish(folder, storage.join(output, name))
    entries = tuple(file.model_copy(update={"name": f"{name}/{file.name}"}) for file in files)
    entry = ShardEntry(name=name, first_document=first, num_docs=num_docs, num_tokens=num_tokens, files=entries)
    workspace.save_record(done, entry.model_dump(mode="json"))
    return entry


def _assemble_shard(build: Build, bounds: list[int], prefix: str, number: int) -> ShardEntry:
    first, end = bounds[number], bounds[number + 1]
    write = partial(_write_shard, build, first, end)
    first_row, end_row = (_num_passages(build, first), _num_passages(build, end)) if build.contract.has_passages else (first, end)
    record, name = f"shards/{number:05d}.json", f"{prefix}{number:05d}"
    return publish_shard(build.workspace, build.output, record, name, first_row, end_row - first_row, write)


def _num_passages(build: Build, end: int) -> int:
    """Return the number of passages of the documents before document `end`."""
    return sum(len(_windows(build, span)) for span in _spans(build, 0, end))


def _write_shard(build: Build, first: int, end: int, folder: Path) -> int:
    """Write the files of a shard; return its number of tokens. Holds one part's texts and residuals in memory."""
    spans = list(_spans(build, first, end))
    texts = (_texts(build, span) for span in spans)
    write_documents(folder, texts, PostingsWriter(build.config.stemmer) if build.config.lexical else None)
    return _write_arrays(build, folder, spans)


def _texts(build: Build, span: "_Span") -> pa.Table:
    table = read_texts(build.part_url(span.part)).slice(span.start, len(span.lengths))
    return split_texts(table, _windows(build, span)[:, 1:]) if build.contract.has_passages else table


def write_documents(folder: Path, tables: Iterable[pa.Table], postings: PostingsWriter | None) -> None:
    """Write the documents of a shard, and their lexical postings if the index has them.

    Args:
        folder: Folder of the shard.
        tables: The documents.
        postings: Writer of the postings; None for an index without.
    """
    documents.write(folder / documents.FILE, tables if postings is None else postings.reading(tables))
    if postings is not None:
        postings.write(folder)


@dataclass(frozen=True, eq=False, repr=False)
class _Span(ShortRepr):
    """The documents of one part that belong to a shard.

    Attributes:
        part: Number of the part.
        start: First document inside the part.
        lengths: [N] int64, tokens of each document.
        first_token: First token inside the part.
    """

    part: int
    start: int
    lengths: np.ndarray
    first_token: int

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum())


def _spans(build: Build, first: int, end: int) -> Iterator[_Span]:
    begin = 0
    for number, part in enumerate(build.parts):
        start, stop = max(first - begin, 0), min(end - begin, part.num_docs)
        if start < stop:
            lengths = load_part(build.workspace, number, LENGTHS)
            yield _Span(number, start, lengths[start:stop], int(lengths[:start].sum()))
        begin += part.num_docs


def _write_arrays(build: Build, folder: Path, spans: list[_Span]) -> int:
    """Write the shard's arrays; return its number of tokens."""
    lengths = [_windows(build, span)[:, 0] if build.contract.has_passages else span.lengths for span in spans]
    doc_offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)]).astype(np.int64)
    for kind in array_names(build.has_token_weights):
        _concatenate(build, folder / f"{kind}.npy", spans, kind)
    np.save(folder / "doc_offsets.npy", doc_offsets)
    if build.contract.windows and build.workspace.has(part_file(spans[0].part, BLOCK_WINDOWS)):
        write_windows(folder, (_windows(build, span) for span in spans))
    return int(doc_offsets[-1])


def write_windows(folder: Path, counted: Iterable[np.ndarray]) -> None:
    """Write the windows of a shard.

    Args:
        folder: Folder of the shard.
        counted: Arrays [W, 3] in order: number of vectors, first and end character of each window.
    """
    windows = np.concatenate(list(counted)).astype(np.uint32)
    windows[:, 0] = np.cumsum(windows[:, 0], dtype=np.int64) - windows[:, 0]
    np.save(folder / f"{WINDOWS}.npy", windows)


def _windows(build: Build, span: "_Span") -> np.ndarray:
    """Return the windows [W, 3] of the documents of a span. A document begins with a window at its first character."""
    windows = load_part(build.workspace, span.part, BLOCK_WINDOWS)
    begins = np.append(np.flatnonzero(windows[:, 1] == 0), len(windows))
    return windows[begins[span.start] : begins[span.start + len(span.lengths)]]


def _concatenate(build: Build, path: Path, spans: list[_Span], kind: str) -> None:
    """Write one array of the rows of all spans, part by part."""
    blocks = (load_part(build.workspace, span.part, kind)[span.first_token : span.first_token + span.num_tokens] for span in spans)
    write_rows(path, sum(span.num_tokens for span in spans), blocks)
