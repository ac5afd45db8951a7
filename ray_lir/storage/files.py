"""Reading and publishing files on a local disk or any fsspec URL (s3://...), so that nothing is ever half visible.

A file is written under a name unique to the attempt and then renamed (a disk) or put in one step (an object store). Faults
of an object store that pass are waited out (s3.py); one that does not is a ConfigError that names the file.
"""

import errno
import hashlib
import os
import re
import shutil
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import fsspec

from ray_lir.base.errors import ConfigError

BLOCK_BYTES = 1 << 20
ATTEMPTS = 20
"""Attempts to make a folder while another process removes an empty parent."""
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""What says that something is not there: for the caller to deal with."""


PathOrUrl = str | os.PathLike[str]
CHAINING = "asyncwrapper|blockcache|cached|dir|filecache|libarchive|reference|simplecache|tar|zip"
"""The file systems of fsspec that read from another one, which "::" separates from them."""
URL = re.compile(rf"(?:(?:{CHAINING})::)*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
"""How a URL begins, chained ones (simplecache::s3://...) included. Everything else is a path of this machine, "::" in it or not."""


def path_text(place: PathOrUrl) -> str:
    """A path or URL as text: the only place where either enters the library.

    Raises:
        ConfigError: if it is neither a string nor a path object, or nothing can have that name.
    """
    text = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(text, str):
        raise ConfigError(f"a path is a string or a pathlib.Path, not {type(place).__name__} {place!r:.60}")
    if not text or "\0" in text:
        raise ConfigError(f"{text!r:.80} is no path; give the path of a file or folder, or a URL")
    return text


def is_local(url: PathOrUrl) -> bool:
    """Whether it is a path of this machine rather than a URL of an object store."""
    found = URL.match(path_text(url))
    return found is None or found[0] == "file://"


def local_path(url: PathOrUrl) -> Path:
    """The absolute path that a local path, or file:// URL, names.

    `~` and `~/...` are the home folder. `~name` is a file or folder of that name, as a shell leaves only such names unexpanded.
    """
    text = path_text(url).removeprefix("file://")
    if text == "~" or text.startswith("~/"):
        text = f"{Path.home()}{text[1:]}"
    return Path(text).absolute()


def absolute(url: PathOrUrl) -> str:
    """The same place for every process of a cluster: local paths are made absolute, URLs are kept."""
    return str(local_path(url)) if is_local(url) else path_text(url).rstrip("/")


def join(base: PathOrUrl, *parts: str) -> str:
    return "/".join([path_text(base).rstrip("/"), *parts])


def base_name(url: PathOrUrl) -> str:
    return path_text(url).rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: PathOrUrl) -> tuple[fsspec.AbstractFileSystem, str]:
    """The fsspec file system of `url` and the path inside it."""
    if is_local(url):
        return fsspec.filesystem("file"), absolute(url)  # not by its text, in which fsspec would look for "::"
    try:
        if not _is_s3(url):
            return _of_url(absolute(url))
        from ray_lir.storage import s3

        fs, path = _of_url(absolute(url), **s3.OPTIONS)
        with wrap_errors("open", url):
            s3.prepare(fs)
        return fs, path
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {url}: {error}; use a local path or a URL that fsspec knows, such as s3://bucket/folder") from error


def _of_url(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """As fsspec's url_to_fs, but "::" separates file systems only after one that reads from another."""
    if re.match(rf"(?:{CHAINING})(?:::|://)", url):
        return fsspec.core.url_to_fs(url, **options)
    kind = fsspec.get_filesystem_class(url.partition("://")[0])
    return fsspec.filesystem(url.partition("://")[0], **{**kind._get_kwargs_from_urls(url), **options}), kind._strip_protocol(url)


def store_errors() -> tuple[type[Exception], ...]:
    """What a disk or an object store raises when it does not do its part; for `except`."""
    botocore, aiohttp = sys.modules.get("botocore.exceptions"), sys.modules.get("aiohttp")  # loaded with the first s3:// URL
    return (
        OSError,
        *((botocore.BotoCoreError, botocore.ClientError) if botocore else ()),
        *((aiohttp.ClientError,) if aiohttp else ()),
    )


@contextmanager
def wrap_errors(action: str, url: PathOrUrl) -> Iterator[None]:
    """Tells the store's errors in the body as a ConfigError: "cannot <action> <url>: ..."."""
    try:
        yield
    except store_errors() as error:
        raise _told(action, url, error) from error


def _told(action: str, url: PathOrUrl, error: Exception) -> ConfigError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return ConfigError(f"cannot {action} {url}: {why}; check the address, your rights and the space left")


@contextmanager
def _answered(action: str, url: PathOrUrl) -> Iterator[None]:
    """As `wrap_errors` for an object store; that something is not there, and what a disk raises, stays as it is."""
    try:
        yield
    except MISSING:
        raise
    except store_errors() as error:
        if is_local(url):
            raise
        raise _told(action, url, error) from error


def exists(url: PathOrUrl) -> bool:
    """Whether the file or folder is there now, not when a listing was last cached."""
    fs, path = filesystem(url)
    fs.invalidate_cache(fs._parent(path))
    with _answered("look for", url):
        return fs.exists(path)


def is_folder(url: PathOrUrl) -> bool:
    fs, path = filesystem(url)
    with _answered("look for", url):
        return fs.isdir(path)


def list_names(url: PathOrUrl) -> list[str]:
    """The names directly inside a folder, sorted; empty if the folder does not exist. Never from a stale listing cache."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)
    try:
        with _answered("list", url):
            entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(base_name(entry) for entry in entries if entry.rstrip("/") != path.rstrip("/"))


@contextmanager
def open_input(url: PathOrUrl) -> Iterator[IO[bytes]]:
    """A file to read as a stream. What a read of it raises is the caller's to tell (`wrap_errors`)."""
    fs, path = filesystem(url)
    with _answered("read", url):
        file = fs.open(path, "rb")
    with file:
        yield file


def read_bytes(url: PathOrUrl) -> bytes:
    with _answered("read", url), open_input(url) as file:
        return file.read()


def sha256(url: PathOrUrl) -> str:
    """The hex digest of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    with _answered("read", url), open_input(url) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def size(url: PathOrUrl) -> int:
    fs, path = filesystem(url)
    with _answered("look for", url):
        return fs.size(path)


def listing_digest(url: PathOrUrl) -> str:
    """A digest of the names, sizes and tags (or times) that an object store says of a folder's files: another when one has changed.

    Raises:
        FileNotFoundError: if there is no such folder.
    """
    fs, path = filesystem(url)
    with _answered("look for", url):
        files = fs.find(path, detail=True)
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    states = [[name, info["size"], str(info.get("ETag") or info.get("mtime"))] for name, info in sorted(files.items())]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def download(url: PathOrUrl, folder: Path) -> None:
    """Copies a folder of an object store to a new local one."""
    fs, path = filesystem(url)
    with _answered("read", url):
        for name in fs.find(path):
            target = folder / name.removeprefix(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with fs.open(name, "rb") as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, BLOCK_BYTES)


def make_folder(path: Path) -> None:
    """Makes a local folder and its parents, even if another process removes an empty parent at the same time.

    Raises:
        OSError: The folder cannot be made.
    """
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def check_writable(url: PathOrUrl) -> None:
    """Check that files can be written to a folder, before the long work that ends with writing them. Nothing is left behind.

    Args:
        url: Local folder or URL; the folder need not exist yet.

    Raises:
        ConfigError: The folder cannot be written, or is a file.
    """
    try:
        with wrap_errors("write to", url):
            if is_local(url):
                if (folder := _nearest_folder(local_path(url))).is_file():
                    raise ConfigError(f"cannot write to {url}: {folder} is a file; choose a folder")
                with tempfile.TemporaryFile(dir=folder):
                    pass
            else:
                fs, path = filesystem(url)
                probe = f"{path}/.writable-{uuid.uuid4().hex}"
                fs.pipe_file(probe, b"")
                fs.rm_file(probe)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(f"cannot write to {url}: {' '.join(str(error).split()) or 'it is read-only'}; choose another output") from error


def _nearest_folder(path: Path) -> Path:
    """The path itself, or its nearest parent that exists."""
    while True:
        try:
            os.lstat(path)
            return path
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent


def write_bytes(url: PathOrUrl, data: bytes) -> None:
    """Writes a whole file in one atomic step."""
    if is_local(url):
        target = local_path(url)
        make_folder(target.parent)
        attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        try:
            with open(attempt, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(attempt, target)
        except OSError as error:
            raise error if error.filename else OSError(error.errno, error.strerror, str(target)) from error
        finally:
            attempt.unlink(missing_ok=True)
    else:
        fs, path = filesystem(url)
        with _answered("write", url):
            fs.pipe_file(path, data, **_upload_options(url, len(data)))


def publish(attempt: Path, url: PathOrUrl) -> None:
    """Moves a finished file or folder, made in an `attempt_folder` near `url`, to its published name.

    If a folder of that name is there already, another attempt with the same content was faster and this one is dropped:
    published names carry a digest of their content.
    """
    if is_local(url):
        target = local_path(url)
        make_folder(target.parent)
        try:
            os.replace(attempt, target)
        except OSError:
            if not (attempt.is_dir() and target.is_dir()):
                raise
    else:
        fs, path = filesystem(url)
        files = sorted(attempt.rglob("*")) if attempt.is_dir() else [attempt]
        with _answered("write", url):
            for file in filter(Path.is_file, files):
                target = path if file == attempt else f"{path}/{file.relative_to(attempt).as_posix()}"
                fs.put_file(str(file), target, **_upload_options(url, file.stat().st_size))


@contextmanager
def attempt_folder(near: PathOrUrl) -> Iterator[Path]:
    """A local scratch folder that is removed afterwards: beside the output when that is local (so that publishing is a
    rename on one disk), in the temporary folder otherwise.

    Raises:
        OSError: that says so, and where, if the body fails because the disk is full; NumPy and Arrow do not say that.
    """
    parent = None
    if is_local(near):
        parent = local_path(near)
        make_folder(parent)
    folder = Path(tempfile.mkdtemp(prefix=".attempt-", dir=parent))
    try:
        yield folder
    except OSError as error:
        if error.errno == errno.ENOSPC or shutil.disk_usage(folder).free < BLOCK_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder.parent)) from error
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove(url: PathOrUrl) -> None:
    """Remove a file or a folder, if it is there. Another process may remove it at the same time."""
    if is_local(url) and not local_path(url).is_dir():
        local_path(url).unlink(missing_ok=True)
    else:
        remove_tree(url)


def remove_tree(url: PathOrUrl) -> None:
    """Removes a folder and what is in it, if it is there. Somebody else may be removing it, or writing to it, at the same time."""
    if is_local(url):
        shutil.rmtree(local_path(url), ignore_errors=True)
    else:
        fs, path = filesystem(url)
        with _answered("remove", url), suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def _is_s3(url: PathOrUrl) -> bool:
    return path_text(url).startswith(("s3://", "s3a://"))


def _upload_options(url: PathOrUrl, num_bytes: int) -> dict[str, int]:
    if not _is_s3(url):
        return {}
    from ray_lir.storage import s3

    return s3.upload_options(num_bytes)
