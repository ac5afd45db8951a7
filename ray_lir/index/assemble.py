"""Assembling a shard: the pieces of its documents, concatenated, with postings and texts, under a name that carries its digest."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_lir.config import digest
from ray_lir.formats import storage
from ray_lir.formats.manifest import EmbeddingPart, ShardEntry, describe_file
from ray_lir.formats.parquet import read_lengths, read_texts
from ray_lir.index import documents, postings
from ray_lir.index.work import Work


def assemble_shard(
    embeddings: str, parts: Sequence[EmbeddingPart], work: Work, output: str, num_centroids: int, bounds: Sequence[int], number: int
) -> ShardEntry:
    """Writes shard `number`, documents bounds[number] to bounds[number + 1], and publishes it below `output`.

    Memory: the shard's codes and postings (12 bytes a token), and one part's texts and residuals.
    """
    done = f"shards/{number:05d}.json"
    if work.has(done):
        return ShardEntry.model_validate(work.load_record(done))
    first, end = bounds[number], bounds[number + 1]
    spans = list(_spans(embeddings, parts, first, end))
    with storage.attempt_folder(output) as attempt:
        folder = attempt / "shard"
        folder.mkdir()
        num_tokens = _write_arrays(folder, spans, work, num_centroids)
        documents.write(folder / documents.FILE, _texts(embeddings, spans, parts))
        files = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
        name = f"shards/shard-{number:05d}-{digest([file.sha256 for file in files])[:12]}"
        storage.publish(folder, storage.join(output, name))
    entries = tuple(file.model_copy(update={"name": f"{name}/{file.name}"}) for file in files)
    entry = ShardEntry(name=name, first_document=first, num_docs=end - first, num_tokens=num_tokens, files=entries)
    work.save_record(done, entry.model_dump(mode="json"))
    return entry


class _Span:
    """The documents of one part that belong to a shard."""

    def __init__(self, part: int, start: int, stop: int, lengths: np.ndarray):
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        self.part, self.start, self.stop = part, start, stop
        self.first_token, self.last_token = int(offsets[start]), int(offsets[stop])
        self.lengths = lengths[start:stop]


def _spans(embeddings: str, parts: Sequence[EmbeddingPart], first: int, end: int) -> Iterator[_Span]:
    begin = 0
    for number, part in enumerate(parts):
        start, stop = max(first - begin, 0), min(end - begin, part.num_docs)
        if start < stop:
            yield _Span(number, start, stop, read_lengths(storage.join(embeddings, part.name)))
        begin += part.num_docs


def _write_arrays(folder: Path, spans: list[_Span], work: Work, num_centroids: int) -> int:
    lengths = np.concatenate([span.lengths for span in spans])
    doc_offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    num_tokens = int(doc_offsets[-1])
    arrays = {"doc_offsets": doc_offsets}
    for name in ("codes", "residuals"):
        target = None
        position = 0
        for span in spans:
            rows = work.load(f"pieces/{span.part:05d}-{name}.npy")[span.first_token : span.last_token]
            if target is None:
                target = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", rows.dtype, (num_tokens, *rows.shape[1:]))
            target[position : position + len(rows)] = rows
            position += len(rows)
        target.flush()
    arrays.update(postings.layout(np.load(folder / "codes.npy", mmap_mode="r" if num_tokens else None), num_centroids))
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return num_tokens


def _texts(embeddings: str, spans: list[_Span], parts: Sequence[EmbeddingPart]) -> Iterator[pa.Table]:
    for span in spans:
        table = read_texts(storage.join(embeddings, parts[span.part].name))
        yield table.slice(span.start, span.stop - span.start)
