"""Cache: copies of an index's files on a machine's disk, for an index that lies on an object store."""

import hashlib
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.storage.manifest import FileEntry, check_file


def local_copy(root: str, cache: str, files: Iterable[FileEntry]) -> str:
    """The folder below `cache` that has these files of the index at `root`.

    What is missing, or not what its digest says, is downloaded. Names of an index's files carry digests of their content,
    so versions share files, and replicas on one machine may download the same one at a time.

    Raises:
        FormatError: if a file on the store is not what the manifest says.
        ConfigError: if the store does not answer.
    """
    folder = _folder(root, cache)
    for file in files:
        try:
            check_file(folder, file, content=True)
        except FormatError:
            _download(storage.join(root, file.name), Path(folder, file.name), file)
    return folder


def remove_others(root: str, cache: str, files: Iterable[FileEntry]) -> None:
    """Removes the copies of all files of the index at `root` but these. Who has one mapped keeps it until it is closed."""
    folder = Path(_folder(root, cache))
    kept = {folder / file.name for file in files}
    for path in sorted(folder.rglob("*"), reverse=True):  # what is in a folder before the folder
        if path.is_dir():
            with suppress(OSError):  # it holds something
                path.rmdir()
        elif path not in kept and not path.name.startswith("."):  # not what somebody is downloading
            path.unlink(missing_ok=True)


def _folder(root: str, cache: str) -> str:
    return storage.absolute(storage.join(cache, hashlib.sha256(root.encode()).hexdigest()[:16]))


def _download(url: str, target: Path, file: FileEntry) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    digest = hashlib.sha256()
    try:
        with storage.told_as("read", url), storage.open_input(url) as source, open(attempt, "wb") as copy:
            while block := source.read(storage.BLOCK_BYTES):
                digest.update(block)
                copy.write(block)
        if digest.hexdigest() != file.sha256:
            raise FormatError(url, f"sha256 {file.sha256[:16]}", digest.hexdigest()[:16], "upload the file, or build the index, again")
        os.replace(attempt, target)
    finally:
        attempt.unlink(missing_ok=True)
