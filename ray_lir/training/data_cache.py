"""The cache of training data of a machine: Arrow files that are written once, under a lock, and that all processes read.

Each entry is a folder with a lock: exclusive for the writer, shared for readers. The manifest is written last, so an entry without a
manifest does not count. An entry that was not used for UNUSED_S is removed when another entry is written.
"""

import fcntl
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ray_lir import storage
from ray_lir.base.config import TrainingSource, digest
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.storage.manifest import FORMAT_VERSION, MANIFEST, check_file, describe_file, read_manifest, write_manifest
from ray_lir.training.data import TrainingData
from ray_lir.training.data_files import FILES, open_data
from ray_lir.training.manifest import TrainingDataManifest
from ray_lir.training.source import SourceFiles, write_training_data

logger = logging.getLogger(__name__)

UNUSED_S = 7 * 24 * 3600.0


@dataclass(frozen=True)
class CachedData:
    """Training data in the cache of this machine.

    Attributes:
        folder: Folder of the entry.
        manifest: Counts, digest and files.
    """

    folder: Path
    manifest: TrainingDataManifest

    def open(self) -> TrainingData:
        """Return the data, mapped into memory; it stays readable after the entry is removed."""
        return open_data((self.folder / self.manifest.files[0].name).parent)


def cache_folder(cache: str | None) -> Path:
    """Return the folder of the cache on this machine; None means `ray_lir/training` in XDG_CACHE_HOME, by default `~/.cache`."""
    if cache is not None:
        return storage.local_path(cache)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_lir" / "training"


@contextmanager
def cached_training_data(source: TrainingSource, cache: str | None = None) -> Iterator[CachedData]:
    """Write the data of a source to the cache, unless it is there, and keep it there during the body.

    Args:
        source: Dataset or examples.
        cache: Local folder of the cache; None: see `cache_folder`.

    Raises:
        ConfigError: There is no such data, an id or a judged document is missing, or the cache cannot be written.
        FormatError: A file of the source is malformed.
    """
    files = SourceFiles.of(source)
    entry = cache_folder(cache) / digest([FORMAT_VERSION, source.model_dump(include={"dataset", "split", "examples"}), files.states])[:16]

    def write(folder: Path) -> TrainingDataManifest:
        counts = write_training_data(source, files, folder)
        data_digest = open_data(folder).digest()
        target = entry / data_digest[:16]
        os.replace(folder, target)
        described = tuple(describe_file(str(entry), f"{target.name}/{name}") for name in FILES)
        return TrainingDataManifest(digest=data_digest, files=described, **counts)

    with cache_entry(entry, write, check_content=True) as cached:
        yield cached


@contextmanager
def cache_entry(entry: Path, write: Callable[[Path], TrainingDataManifest], check_content: bool) -> Iterator[CachedData]:
    """Hold an entry of the cache during the body; make it first if it is missing or damaged. Other processes wait until it is written.

    Args:
        entry: Folder of the entry.
        write: Gets an empty folder on the same disk, moves finished files from there into the entry, and returns the manifest.
        check_content: Whether existing files must have their sha256, not only their size.

    Raises:
        ConfigError: The cache cannot be written, for example because the disk is full.
    """
    with _write_errors(entry):
        storage.make_folder(entry)
        handle = os.open(entry, os.O_RDONLY)
    try:
        _lock(handle, fcntl.LOCK_SH)
        manifest = _finished(entry, check_content)
        if manifest is None:
            _lock(handle, fcntl.LOCK_EX)
            manifest = _finished(entry, check_content) or _make(entry, write)  # another process may have made it meanwhile
            _lock(handle, fcntl.LOCK_SH)
        else:
            logger.info("training data: %d queries and %d documents are in %s already", manifest.queries, manifest.documents, entry)
            with suppress(OSError):
                os.utime(entry / MANIFEST)
        yield CachedData(entry, manifest)
    finally:
        os.close(handle)


def _make(entry: Path, write: Callable[[Path], TrainingDataManifest]) -> TrainingDataManifest:
    _remove_unused(entry)
    with _write_errors(entry):
        _clear(entry)
        try:
            with storage.attempt_folder(str(entry)) as attempt:
                (attempt / "files").mkdir()
                manifest = write(attempt / "files")
                write_manifest(str(entry / MANIFEST), manifest)
                return manifest
        except BaseException:
            _clear(entry)
            raise


def _clear(entry: Path) -> None:
    """Remove the files of an entry; the folder itself stays, because other processes may wait for its lock."""
    storage.make_folder(entry)
    for path in entry.iterdir():
        storage.remove(str(path))


def _finished(entry: Path, check_content: bool) -> TrainingDataManifest | None:
    """The manifest of an entry; None if the entry is not finished or damaged."""
    if not (entry / MANIFEST).exists():
        return None
    try:
        manifest = read_manifest(str(entry / MANIFEST), TrainingDataManifest, made_by="jobs.train")
        for file in manifest.files:
            check_file(str(entry), file, check_content)
    except FormatError as error:
        logger.warning("training data: the files in %s are damaged and are written again (%s)", entry, error)
        return None
    return manifest


def _remove_unused(entry: Path) -> None:
    for folder in entry.parent.iterdir():
        with suppress(OSError):
            if folder == entry or time.time() - folder.stat().st_mtime < UNUSED_S:
                continue
            if (folder / MANIFEST).exists() and time.time() - (folder / MANIFEST).stat().st_mtime < UNUSED_S:
                continue
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises an error while a process uses the entry
                shutil.rmtree(folder)
            finally:
                os.close(handle)


def _lock(handle: int, kind: int) -> None:
    with suppress(OSError):  # the file system has no locks
        fcntl.flock(handle, kind)


@contextmanager
def _write_errors(entry: Path) -> Iterator[None]:
    """Convert an OSError of the disk to a ConfigError."""
    try:
        yield
    except OSError as error:
        raise ConfigError(
            f"cannot write training data to {entry}: {error.strerror or error}; free space there, or give another --data_cache"
        ) from error
