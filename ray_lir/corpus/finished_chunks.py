"""Entries of finished chunks: how a job over the chunks of a corpus, or of files of queries, continues after it was killed."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TypeVar

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.refused_rows import DEAD_LETTERS
from ray_lir.storage.manifest import PROVENANCE, Count, DeadLetter, FileEntry

PROGRESS = "_progress"
"""Folder below an unfinished output, with a folder for each configuration that has written there."""


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


def check_resumable(destination: Destination, content: str, stem: str, files: Collection[str]) -> None:
    """Check that an output without a manifest is empty, or holds only unfinished work of this job.

    Args:
        destination: Where the job writes.
        content: What the output will hold, for messages: embeddings or hits.
        stem: Beginning of the names of the job's entries.
        files: Names that the job writes into the output beside its progress.

    Raises:
        ConfigError: The output is a file, holds other files, or holds finished chunks of another corpus or configuration.
    """
    output = destination.output
    names = storage.list_names(output)
    if not names and storage.exists(output) and not storage.is_folder(output):
        raise ConfigError(f"{output} is a file; choose a folder as output")
    if foreign := sorted(name for name in set(names) - {PROGRESS, PROVENANCE, *files} if not name.startswith(".")):
        raise ConfigError(f"{output} is not empty and holds no {content} (it contains {foreign[0]}); choose another output")
    progress = storage.join(output, PROGRESS)
    others = set(storage.list_names(progress)) - {storage.base_name(destination.progress)}
    if any(entry_names(storage.join(progress, name), stem) for name in sorted(others)):
        raise ConfigError(
            f"{output} holds unfinished work of another corpus or configuration; choose another output, or remove its {PROGRESS}"
        )


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
