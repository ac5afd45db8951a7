"""Files that several jobs may write at once: one writer succeeds, and every other writer gets an error."""

import errno
import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ray_lir import storage
from ray_lir.base.errors import ConfigError, Conflict

LONGEST_NAME = 220
"""Longest file name in bytes. File systems allow 255; temporary files have a longer name than the file that they become."""
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""Errors of a file system that cannot make a hard link."""


def create_bytes(url: str, data: bytes) -> None:
    """Create a file with its whole content in one atomic step. If several jobs create the same file, one succeeds.

    On a disk, the last step is a hard link. On S3, it is a PUT with the header If-None-Match. If a store does not support this header, the
    function first checks whether the file exists; if two jobs write between that check and the PUT, the later one wins.

    Args:
        url: Path or URL of the file.
        data: The whole content.

    Raises:
        FileExistsError: A file with different content exists. A file with the same content counts as created by this call.
    """
    if not storage.exists(url):
        create = _link if storage.is_local(url) else _put
        create(url, data)
    if storage.read_bytes(url) != data:
        raise FileExistsError(errno.EEXIST, "another writer created it", url)


@dataclass(frozen=True)
class OutputFile:
    """A file that a job writes at its end; `check` finds problems before the long work starts.

    Attributes:
        url: Path or URL of the file.
        before: sha256 of the file that existed at the start and may be replaced; None if there was no file.
    """

    url: str
    before: str | None

    @classmethod
    def check(cls, url: str, option: str, overwrite: bool | None = None) -> "OutputFile":
        """Check that the file can be written, and return it as an OutputFile.

        Args:
            url: Path or URL of the file.
            option: The flag that names the file, for messages.
            overwrite: Whether an existing file may be replaced; None if the job has no such flag.

        Raises:
            ConfigError: The path is a folder, is not writable, or names an existing file that must not be replaced.
        """
        url = storage.absolute(url)
        if storage.is_folder(url):
            raise ConfigError(f"{option} {url} is a folder; give the path of a file")
        exists = storage.exists(url)
        if exists and not overwrite:
            instead = "remove that file" if overwrite is None else "set --overwrite true to replace it"
            raise ConfigError(f"{option} {url} exists already; give another {option}, or {instead}")
        folder, _, name = url.rpartition("/")
        storage.check_writable(folder or "/")
        if storage.is_local(url) and len(os.fsencode(name)) > LONGEST_NAME:
            raise ConfigError(f"{option} {url}: the file name is longer than {LONGEST_NAME} bytes; choose a shorter one")
        return cls(url, storage.sha256(url) if exists else None)

    def write(self, data: bytes) -> None:
        """Write the whole file in one atomic step.

        Raises:
            Conflict: Another job created or replaced the file after `check`. That job's file stays unchanged.
            ConfigError: The file cannot be written.
        """
        with storage.wrap_errors("write", self.url):
            try:
                if self.before is None:
                    create_bytes(self.url, data)
                else:
                    replace_bytes(self.url, data, self.before)
            except FileExistsError:
                raise Conflict(
                    f"another job wrote {self.url} while this one ran; its file is unchanged; run again with another file name"
                ) from None


def replace_bytes(url: str, data: bytes, before: str) -> None:
    """Replace a file if its sha256 is still `before`. On a disk, one of several concurrent writers succeeds.

    An object store has no atomic operation for this, so the content is compared immediately before it is replaced.

    Args:
        url: Path or URL of the file.
        data: The new content.
        before: sha256 of the content that may be replaced.

    Raises:
        FileExistsError: The file has different content now.
    """
    with locked(url.rpartition("/")[0]) if storage.is_local(url) else _unlocked():
        found = storage.sha256(url) if storage.exists(url) else None
        if found != before and (found is None or storage.read_bytes(url) != data):
            raise FileExistsError(errno.EEXIST, "another writer replaced it", url)
        storage.write_bytes(url, data)


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold an exclusive lock on a local folder; wait until it is free. The system releases the lock if the process ends."""
    handle = os.open(storage.local_path(folder), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Hold an exclusive lock on a local output folder, so that no other process writes to it. A URL has no lock.

    Raises:
        Conflict: Another process holds the lock.
    """
    if not storage.is_local(folder):
        yield
        return
    with storage.wrap_errors("write to", folder):
        storage.make_folder(storage.local_path(folder))
        handle = os.open(storage.local_path(folder), os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Conflict(f"another process is writing to {folder}; wait until it ends, or choose another output") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


@contextmanager
def _unlocked() -> Iterator[None]:
    yield


def _link(url: str, data: bytes) -> None:
    target = storage.local_path(url)
    attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    storage.write_bytes(str(attempt), data)
    try:
        os.link(attempt, target)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
        with locked(str(target.parent)):
            if not target.exists():
                os.replace(attempt, target)
    finally:
        attempt.unlink(missing_ok=True)


def _put(url: str, data: bytes) -> None:
    fs, path = storage.filesystem(url)
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            storage.write_bytes(url, data)
        elif not storage.exists(url):
            raise
