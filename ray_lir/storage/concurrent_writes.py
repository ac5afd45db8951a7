"""Files that several jobs may write at once: one writer succeeds, and the others learn of it."""

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
"""Bytes of a file name: file systems allow 255, and a file in the making has a longer name."""
NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


def create_bytes(url: str, data: bytes) -> None:
    """Write a whole new file in one step. Of several writers at once, one succeeds.

    On a disk this is a hard link. On S3 it is a put with If-None-Match. A store that does not support this header is asked
    first whether the file exists; there, the later of two writers within that instant wins.

    Raises:
        FileExistsError: A file with other content exists. A file with the same content counts as written by this call.
    """
    if not storage.exists(url):
        create = _link if storage.is_local(url) else _put
        create(url, data)
    if storage.read_bytes(url) != data:
        raise FileExistsError(errno.EEXIST, "another writer created it", url)


@dataclass(frozen=True)
class OutputFile:
    """A file that a job writes at its end, checked before the work.

    Attributes:
        url: Path or URL of the file.
        before: sha256 of the file that was there at the start and may be replaced; None if there was none.
    """

    url: str
    before: str | None

    @classmethod
    def check(cls, url: str, option: str, overwrite: bool | None = None) -> "OutputFile":
        """Check that the file can be written.

        Args:
            option: The flag that names the file, for messages.
            overwrite: Whether an existing file may be replaced; None if the job has no such flag.

        Raises:
            ConfigError: The path is a folder, cannot be written, or names an existing file that must not be replaced.
        """
        url = storage.absolute(url)
        if storage.is_folder(url):
            raise ConfigError(f"{option} {url} is a folder; name a file in it")
        exists = storage.exists(url)
        if exists and not overwrite:
            instead = "remove it first" if overwrite is None else "--overwrite true to replace it"
            raise ConfigError(f"{option} {url} is there already; give another {option}, or {instead}")
        folder, _, name = url.rpartition("/")
        storage.check_writable(folder or "/")
        if storage.is_local(url) and len(os.fsencode(name)) > LONGEST_NAME:
            raise ConfigError(f"{option} {url}: the file name is longer than {LONGEST_NAME} bytes; choose a shorter one")
        return cls(url, storage.sha256(url) if exists else None)

    def write(self, data: bytes) -> None:
        """Write the whole file in one step.

        Raises:
            Conflict: Another job created or replaced the file since `check`; that file is left as it is.
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
                    f"another job wrote {self.url} while this one ran, and that file was left as it is; run again with another file name"
                ) from None


def replace_bytes(url: str, data: bytes, before: str) -> None:
    """Replace a file whose sha256 is still `before`. On a disk, of several writers at once, one succeeds.

    An object store has no such operation in general: the file is compared just before it is replaced.

    Raises:
        FileExistsError: The file has another content by now.
    """
    with locked(url.rpartition("/")[0]) if storage.is_local(url) else _unlocked():
        found = storage.sha256(url) if storage.exists(url) else None
        if found != before and (found is None or storage.read_bytes(url) != data):
            raise FileExistsError(errno.EEXIST, "another writer replaced it", url)
        storage.write_bytes(url, data)


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold the lock of a local folder; the system releases it if the process ends."""
    handle = os.open(storage.local_path(folder), os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


@contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Hold the lock of a local output folder for the body, which no second process can enter. Of a URL there is no lock.

    Raises:
        Conflict: Another process holds it.
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
            raise Conflict(f"another process writes to {folder} now; wait until it ends, or choose another output") from None
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
