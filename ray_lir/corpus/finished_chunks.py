"""Entries of finished chunks: how a job over the chunks of a corpus, or of files of queries, continues after it was killed."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json
from ray_lir.corpus.refused_rows import DEAD_LETTERS
from ray_lir.storage.manifest import Count, DeadLetter, FileEntry


@dataclass(frozen=True)
class Destination:
    """Where chunks are written: parts and dead letters below `output`, entries and unfinished files below `progress`."""

    output: str
    progress: str


class FinishedChunk(Config):
    """Record of a finished chunk: its part (None if all rows were refused) and its dead letters (None if no row was refused)."""

    number: Count
    part: FileEntry | None
    dead: DeadLetter | None


Entry = TypeVar("Entry", bound=FinishedChunk)


def write_entry(destination: Destination, stem: str, entry: FinishedChunk) -> None:
    """Write the entry that marks a chunk as finished. Its files must have been written before.

    Args:
        destination: Where the chunk was written.
        stem: Beginning of the file's name.
        entry: The entry.
    """
    url = storage.join(destination.progress, f"{stem}-{entry.number:05d}.json")
    storage.write_bytes(url, canonical_json(entry.model_dump(mode="json")))


def entry_names(progress: str, stem: str) -> list[str]:
    """Return the names of the entries in a progress folder."""
    return [name for name in storage.list_names(progress) if name.startswith(f"{stem}-")]


def read_entries(destination: Destination, stem: str, kind: type[Entry], folder: str) -> Iterator[Entry]:
    """Yield the entries of chunks that an earlier run finished, if their files still exist.

    Args:
        destination: Where the chunks were written.
        stem: Beginning of the names of the entries.
        kind: Type of the entries.
        folder: Folder of the parts below the output.
    """
    existing: Collection[str] = {
        f"{each}/{name}" for each in (folder, DEAD_LETTERS) for name in storage.list_names(storage.join(destination.output, each))
    }
    for name in entry_names(destination.progress, stem):
        entry = kind.model_validate_json(storage.read_bytes(storage.join(destination.progress, name)))
        if all(file is None or file.name in existing for file in (entry.part, entry.dead)):
            yield entry
