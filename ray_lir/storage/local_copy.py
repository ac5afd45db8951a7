"""Local copies of an index that lies on an object store."""

import hashlib
import os
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.storage.concurrent_writes import locked
from ray_lir.storage.manifest import FileEntry, check_file


def local_copy(root: str, cache: str, files: Iterable[FileEntry]) -> str:
    """Return a local folder that holds these files of the index at `root`, with the same names.

    A file is downloaded if it is missing or if its sha256 differs. File names carry a digest of the content, so versions of an index share
    files. Processes of one machine take turns for each file, so that each file is downloaded once a machine.

    Args:
        root: URL of the index.
        cache: Local folder for copies of any number of indexes.
        files: Manifest entries of the files.

    Raises:
        FormatError: A file on the store differs from its manifest entry.
        ConfigError: The store does not answer, or the disk of `cache` is full.
    """
    folder = _folder(root, cache)
    storage.make_folder(folder)
    for file in files:
        try:
            check_file(str(folder), file, content=True)
        except FormatError:
            _download_once(storage.join(root, file.name), Path(folder), file)
    return str(folder)


def remove_other_copies(root: str, cache: str, files: Iterable[FileEntry]) -> None:
    """Remove the local copies of the index at `root`, except these files. A process that has memory-mapped a removed file can still read
    it.

    Args:
        root: URL of the index.
        cache: Local folder with the copies.
        files: Manifest entries of the files to keep.
    """
    folder = _folder(root, cache)
    kept = {folder / file.name for file in files}
    for path in sorted(folder.rglob("*"), reverse=True):  # files before the folders that hold them
        if path.is_dir():
            with suppress(OSError):  # the folder is not empty
                path.rmdir()
        elif path not in kept and not path.name.startswith("."):  # a hidden file is a download in progress
            path.unlink(missing_ok=True)


def _folder(root: str, cache: str) -> Path:
    return storage.local_path(storage.absolute(storage.join(cache, hashlib.sha256(root.encode()).hexdigest()[:16])))


def _download_once(url: str, folder: Path, file: FileEntry) -> None:
    """Download a file unless another process has done so while this one waited for the lock of the file's folder."""
    parent = (folder / file.name).parent
    storage.make_folder(parent)
    with locked(str(parent)):
        try:
            check_file(str(folder), file, content=True)
        except FormatError:
            _download(url, folder / file.name, file)


def _download(url: str, target: Path, file: FileEntry) -> None:
    attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    digest = hashlib.sha256()
    try:
        with storage.wrap_errors("read", url), storage.open_input(url) as source, open(attempt, "wb") as copy:
            while block := source.read(storage.BLOCK_BYTES):
                digest.update(block)
                with storage.wrap_errors("write to", target.parent):
                    copy.write(block)
        if digest.hexdigest() != file.sha256:
            raise FormatError(url, f"sha256 {file.sha256[:16]}", digest.hexdigest()[:16], "upload the file, or build the index, again")
        os.replace(attempt, target)
    finally:
        attempt.unlink(missing_ok=True)
