"""Reading and publishing files on a local disk or any fsspec URL (s3://...), so that nothing is ever half visible.

A file is written under a name unique to the attempt and then renamed (a disk) or put in one request (an object store).
"""

import hashlib
import os
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import fsspec

from ray_lir.errors import ConfigError

BLOCK_BYTES = 1 << 20


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> Path:
    return Path(url.removeprefix("file://")).expanduser()


def absolute(url: str) -> str:
    """The same place for every process of a cluster: local paths are made absolute, URLs are kept."""
    return str(local_path(url).absolute()) if is_local(url) else url.rstrip("/")


def join(base: str, *parts: str) -> str:
    return "/".join([base.rstrip("/"), *parts])


def name_of(url: str) -> str:
    return url.rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `url` and the path inside it."""
    try:
        return fsspec.core.url_to_fs(absolute(url))
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {url}: {error}; use a local path or a URL that fsspec knows, such as s3://bucket/folder") from error


def store_errors() -> tuple[type[Exception], ...]:
    """What a disk or an object store raises when it does not do its part; for `except`."""
    botocore = sys.modules.get("botocore.exceptions")  # loaded with the first s3:// URL
    return (OSError, botocore.BotoCoreError, botocore.ClientError) if botocore else (OSError,)


@contextmanager
def told_as(action: str, url: str) -> Iterator[None]:
    """Tells the store's errors in the body as a ConfigError: "cannot <action> <url>: ..."."""
    try:
        yield
    except store_errors() as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"cannot {action} {url}: {why}; check the address, your rights and the space left") from error


def exists(url: str) -> bool:
    """Whether the file or folder is there now, not when a listing was last cached."""
    fs, path = filesystem(url)
    fs.invalidate_cache(fs._parent(path))
    return fs.exists(path)


def is_folder(url: str) -> bool:
    fs, path = filesystem(url)
    return fs.isdir(path)


def list_names(url: str) -> list[str]:
    """The names directly inside a folder, sorted; empty if the folder does not exist. Never from a stale listing cache."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)
    if not fs.isdir(path):
        return []
    return sorted(name_of(entry) for entry in fs.ls(path, detail=False) if entry.rstrip("/") != path.rstrip("/"))


@contextmanager
def open_input(url: str) -> Iterator[IO[bytes]]:
    fs, path = filesystem(url)
    with fs.open(path, "rb") as file:
        yield file


def read_bytes(url: str) -> bytes:
    with open_input(url) as file:
        return file.read()


def sha256(url: str) -> str:
    """The hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with open_input(url) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def size(url: str) -> int:
    fs, path = filesystem(url)
    return fs.size(path)


def write_bytes(url: str, data: bytes) -> None:
    """Writes a whole file in one atomic step."""
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with open(attempt, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(attempt, target)
        finally:
            attempt.unlink(missing_ok=True)
    else:
        fs, path = filesystem(url)
        fs.pipe_file(path, data)


def publish(attempt: Path, url: str) -> None:
    """Moves a finished file or folder, made in an `attempt_folder` near `url`, to its published name.

    If a folder of that name is there already, another attempt with the same content was faster and this one is dropped:
    published names carry a digest of their content.
    """
    if is_local(url):
        target = local_path(url)
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.replace(attempt, target)
        except OSError:
            if not (attempt.is_dir() and target.is_dir()):
                raise
    else:
        fs, path = filesystem(url)
        files = sorted(attempt.rglob("*")) if attempt.is_dir() else [attempt]
        for file in files:
            if file.is_file():
                fs.put_file(str(file), path if file == attempt else f"{path}/{file.relative_to(attempt).as_posix()}")


@contextmanager
def attempt_folder(near: str) -> Iterator[Path]:
    """A local scratch folder that is removed afterwards: beside the output when that is local (so that publishing is a
    rename on one disk), in the temporary folder otherwise."""
    parent = None
    if is_local(near):
        parent = local_path(near)
        parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=".attempt-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_tree(url: str) -> None:
    """Removes a folder and what is in it, if it is there. Somebody else may be removing it, or writing to it, at the same time."""
    if is_local(url):
        shutil.rmtree(local_path(url), ignore_errors=True)
    elif exists(url):
        fs, path = filesystem(url)
        fs.rm(path, recursive=True)
