"""Assembling shards: the pieces of a shard's documents, concatenated, with their texts, under a name that carries a digest of
their content."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.config import digest
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.building.compress import LENGTHS, kinds_of, load_piece
from ray_lir.building.workspace import Build, Work
from ray_lir.embeddings.parquet import read_texts
from ray_lir.index import documents
from ray_lir.index.arrays import write_rows
from ray_lir.index.manifest import ShardEntry
from ray_lir.storage.manifest import describe_file

SHARD = "shards/shard-"
"""How the names of shards begin that a whole index was cut into."""


def assemble(
    build: Build, part_tokens: Sequence[int], map: Map, records: list[dict[str, Any]], prefix: str = SHARD
) -> tuple[ShardEntry, ...]:
    """Publishes every shard's folder below the output, its name beginning with `prefix`; documents are numbered from 0.

    Args:
        part_tokens: tokens of each part's piece.
    """
    with phase("assemble", records) as record:
        bounds = shard_bounds(build, part_tokens)
        step = partial(_assemble_shard, build, bounds, prefix)
        shards = tuple(watched(map, "assemble")(step, range(len(bounds) - 1)))
        record.update(shards=len(shards), bytes=sum(file.size for shard in shards for file in shard.files))
    return shards


def shard_bounds(build: Build, part_tokens: Sequence[int]) -> list[int]:
    """Documents at which shards begin, and the end."""
    docs = [part.num_docs for part in build.parts]
    return cut(part_tokens, docs, lambda part: load_piece(build.work, part, LENGTHS), build.num_shards)


def cut(tokens: Sequence[int], docs: Sequence[int], lengths: Callable[[int], np.ndarray], num_shards: int) -> list[int]:
    """Documents at which shards of about equally many tokens begin, at least one document each, and the end.

    Args:
        tokens: of each piece that the documents lie in, one after another.
        docs: the same for its documents.
        lengths: from a piece's number to the tokens of each of its documents.
    """
    first_tokens = np.concatenate([[0], np.cumsum(tokens)])
    first_docs = np.concatenate([[0], np.cumsum(docs)])
    num_tokens, num_docs = int(first_tokens[-1]), int(first_docs[-1])
    bounds = [0]
    for shard in range(1, num_shards):
        target = num_tokens * shard // num_shards
        piece = min(int(np.searchsorted(first_tokens, target, side="right")) - 1, len(docs) - 1)
        ends = first_tokens[piece] + np.cumsum(lengths(piece))
        found = int(first_docs[piece] + np.searchsorted(ends, target, side="left")) + 1
        bounds.append(min(max(found, bounds[-1] + 1), num_docs - (num_shards - shard)))
    return [*bounds, num_docs]


def publish_shard(work: Work, output: str, done: str, prefix: str, first: int, num_docs: int, write: Callable[[Path], int]) -> ShardEntry:
    """Makes a shard's folder and moves it to its name; what an earlier run finished is not made again.

    Args:
        done: record of the work folder that says the shard is there.
        prefix: of the name, before the digest of the content.
        first: number of its first document.
        write: writes the files into an empty folder and returns how many tokens they hold.
    """
    if work.has(done):
        return ShardEntry.model_validate(work.load_record(done))
    with storage.attempt_folder(work.root) as attempt:
        folder = attempt / "shard"
        folder.mkdir()
        num_tokens = write(folder)
        files = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
        name = f"{prefix}-{digest([file.sha256 for file in files])[:12]}"
        storage.publish(folder, storage.join(output, name))
    entries = tuple(file.model_copy(update={"name": f"{name}/{file.name}"}) for file in files)
    entry = ShardEntry(name=name, first_document=first, num_docs=num_docs, num_tokens=num_tokens, files=entries)
    work.save_record(done, entry.model_dump(mode="json"))
    return entry


def _assemble_shard(build: Build, bounds: list[int], prefix: str, number: int) -> ShardEntry:
    first, end = bounds[number], bounds[number + 1]
    write = partial(_write_shard, build, first, end)
    return publish_shard(build.work, build.output, f"shards/{number:05d}.json", f"{prefix}{number:05d}", first, end - first, write)


def _write_shard(build: Build, first: int, end: int, folder: Path) -> int:
    """Memory: the lengths of the shard's documents, and one part's texts and residuals."""
    spans = list(_spans(build, first, end))
    texts = (read_texts(build.part_url(span.part)).slice(span.start, len(span.lengths)) for span in spans)
    documents.write(folder / documents.FILE, texts)
    return _write_arrays(build, folder, spans)


@dataclass(frozen=True)
class _Span:
    """The documents of one part that belong to a shard: from `start`, as many as there are lengths."""

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
            lengths = load_piece(build.work, number, LENGTHS)
            yield _Span(number, start, lengths[start:stop], int(lengths[:start].sum()))
        begin += part.num_docs


def _write_arrays(build: Build, folder: Path, spans: list[_Span]) -> int:
    """Writes the shard's arrays; returns its number of tokens."""
    doc_offsets = np.concatenate([[0], np.cumsum(np.concatenate([span.lengths for span in spans]))]).astype(np.int64)
    for kind in kinds_of(build.weighed):
        _concatenate(build, folder / f"{kind}.npy", spans, kind)
    np.save(folder / "doc_offsets.npy", doc_offsets)
    return int(doc_offsets[-1])


def _concatenate(build: Build, path: Path, spans: list[_Span], kind: str) -> None:
    """One array of all spans' rows, written piece by piece."""
    pieces = (load_piece(build.work, span.part, kind)[span.first_token : span.first_token + span.num_tokens] for span in spans)
    write_rows(path, sum(span.num_tokens for span in spans), pieces)
