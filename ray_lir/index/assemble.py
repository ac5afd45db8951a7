"""Assembling shards: the pieces of a shard's documents, concatenated, with postings and texts, under a name that carries
a digest of their content."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir.config import digest
from ray_lir.formats import storage
from ray_lir.formats.manifest import ShardEntry, describe_file
from ray_lir.formats.parquet import read_lengths, read_texts
from ray_lir.index import documents, postings
from ray_lir.index.pieces import KINDS, load_piece
from ray_lir.index.work import Build
from ray_lir.logs import stage
from ray_lir.parallel import Map, watched


def assemble(build: Build, num_centroids: int, map: Map, records: list[dict[str, Any]]) -> tuple[ShardEntry, ...]:
    """Publishes every shard's folder below the output."""
    with stage("assemble", records) as record:
        bounds = shard_bounds(build)
        step = partial(_assemble_shard, build, num_centroids, bounds)
        shards = tuple(watched(map, "assemble")(step, range(len(bounds) - 1)))
        record.update(shards=len(shards), bytes=sum(file.size for shard in shards for file in shard.files))
    return shards


def shard_bounds(build: Build) -> list[int]:
    """Documents at which shards begin, and the end: about equally many tokens each, at least one document."""
    tokens = np.concatenate([[0], np.cumsum([part.num_tokens for part in build.parts])])
    docs = np.concatenate([[0], np.cumsum([part.num_docs for part in build.parts])])
    bounds = [0]
    for shard in range(1, build.num_shards):
        target = build.num_tokens * shard // build.num_shards
        part = min(int(np.searchsorted(tokens, target, side="right")) - 1, len(build.parts) - 1)
        ends = tokens[part] + np.cumsum(read_lengths(build.part_url(part)))
        cut = int(docs[part] + np.searchsorted(ends, target, side="left")) + 1
        bounds.append(min(max(cut, bounds[-1] + 1), build.num_docs - (build.num_shards - shard)))
    return [*bounds, build.num_docs]


def _assemble_shard(build: Build, num_centroids: int, bounds: list[int], number: int) -> ShardEntry:
    """Memory: the codes and postings of the shard (16 bytes a token), and one part's texts and residuals."""
    done = f"shards/{number:05d}.json"
    if build.work.has(done):
        return ShardEntry.model_validate(build.work.load_record(done))
    first, end = bounds[number], bounds[number + 1]
    spans = list(_spans(build, first, end))
    with storage.attempt_folder(build.work.root) as attempt:
        folder = attempt / "shard"
        folder.mkdir()
        num_tokens = _write_arrays(build, folder, spans, num_centroids)
        documents.write(
            folder / documents.FILE, (read_texts(build.part_url(span.part)).slice(span.start, len(span.lengths)) for span in spans)
        )
        files = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
        name = f"shards/shard-{number:05d}-{digest([file.sha256 for file in files])[:12]}"
        storage.publish(folder, storage.join(build.output, name))
    entries = tuple(file.model_copy(update={"name": f"{name}/{file.name}"}) for file in files)
    entry = ShardEntry(name=name, first_document=first, num_docs=end - first, num_tokens=num_tokens, files=entries)
    build.work.save_record(done, entry.model_dump(mode="json"))
    return entry


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
            lengths = read_lengths(build.part_url(number))
            yield _Span(number, start, lengths[start:stop], int(lengths[:start].sum()))
        begin += part.num_docs


def _write_arrays(build: Build, folder: Path, spans: list[_Span], num_centroids: int) -> int:
    """Writes the shard's arrays; returns its number of tokens."""
    doc_offsets = np.concatenate([[0], np.cumsum(np.concatenate([span.lengths for span in spans]))]).astype(np.int64)
    for kind in KINDS:
        _concatenate(build, folder / f"{kind}.npy", spans, kind)
    arrays = {"doc_offsets": doc_offsets, **postings.layout(np.load(folder / "codes.npy"), num_centroids)}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return int(doc_offsets[-1])


def _concatenate(build: Build, path: Path, spans: list[_Span], kind: str) -> None:
    """One array of all spans' rows, written piece by piece."""
    num_tokens = sum(span.num_tokens for span in spans)
    with open(path, "wb") as file:
        for position, span in enumerate(spans):
            rows = load_piece(build.work, span.part, kind)[span.first_token : span.first_token + span.num_tokens]
            if position == 0:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (num_tokens, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)
