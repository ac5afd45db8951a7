"""Read and publish files on a local disk or any fsspec URL (s3://...). A reader never sees a half-written file.

On a disk, a file is written under a temporary name and then renamed. On an object store, one PUT publishes it. Temporary errors of an
object store are retried (s3.py); an error that remains becomes a ConfigError that names the file.
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
from ray_lir.base.extras import require

BLOCK_BYTES = 1 << 20
"""Bytes that are read or written at once."""
ATTEMPTS = 20
"""Attempts to make a folder while another process removes an empty parent."""
MISSING = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
"""Errors that mean "no such file or folder". They are not converted, so that the caller can handle them."""


PathOrUrl = str | os.PathLike[str]
CHAINING = "asyncwrapper|blockcache|cached|dir|filecache|libarchive|reference|simplecache|tar|zip"
"""fsspec file systems that read from another file system; "::" separates the two in a URL."""
URL = re.compile(rf"(?:(?:{CHAINING})::)*(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://")
"""Start of a URL, including chained ones (simplecache::s3://...). Any other text is a local path, even if it contains "::"."""


def path_text(place: PathOrUrl) -> str:
    """Return a path or URL as text. Every path that enters the library passes through this function.

    Raises:
        ConfigError: The value is neither a string nor a path object, is empty, or contains a null character.
    """
    text = os.fspath(place) if isinstance(place, os.PathLike) else place
    if not isinstance(text, str):
        raise ConfigError(f"a path must be a string or a pathlib.Path, not {type(place).__name__} {place!r:.60}; convert it with str()")
    if not text or "\0" in text:
        raise ConfigError(f"{text!r:.80} is not a path; give the path of a file or folder, or a URL")
    return text


def is_local(url: PathOrUrl) -> bool:
    """Return whether this is a local path (or file:// URL) and not the URL of an object store."""
    found = URL.match(path_text(url))
    return found is None or found[0] == "file://"


def local_path(url: PathOrUrl) -> Path:
    """Return the absolute path of a local path or file:// URL.

    `~` and `~/...` mean the home folder. `~name` means a file or folder with exactly that name: a shell has already expanded every `~user`
    that exists.
    """
    text = path_text(url).removeprefix("file://")
    if text == "~" or text.startswith("~/"):
        text = f"{Path.home()}{text[1:]}"
    return Path(text).absolute()


def local_output(url: PathOrUrl) -> Path:
    """Return the absolute path of an output that must lie on a local disk.

    Raises:
        ConfigError: It is the URL of an object store.
    """
    if not is_local(url):
        raise ConfigError(f"{path_text(url)} is not on a disk of this machine; give a local path, and copy the result")
    return local_path(url)


def absolute(url: PathOrUrl) -> str:
    """Return a name that means the same place in every process of a cluster: local paths become absolute, URLs stay unchanged."""
    return str(local_path(url)) if is_local(url) else path_text(url).rstrip("/")


def join(base: PathOrUrl, *parts: str) -> str:
    """Return the path or URL of `parts` below `base`."""
    return "/".join([path_text(base).rstrip("/"), *parts])


def base_name(url: PathOrUrl) -> str:
    """Return the last component of a path or URL."""
    return path_text(url).rstrip("/").rsplit("/", 1)[-1]


def filesystem(url: PathOrUrl) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the fsspec file system of a path or URL, and the path inside that file system.

    Raises:
        ConfigError: fsspec does not know the URL, or the store cannot be reached.
    """
    if is_local(url):
        return fsspec.filesystem("file"), absolute(url)  # fsspec would interpret "::" in the path text
    try:
        if not _is_s3(url):
            return _of_url(absolute(url))
        require("s3fs", f"reading and writing {url}")
        from ray_lir.storage import s3

        fs, path = _of_url(absolute(url), **s3.OPTIONS)
        with wrap_errors("open", url):
            s3.prepare(fs)
        return fs, path
    except (ValueError, ImportError) as error:
        raise ConfigError(f"cannot open {url}: {error}; use a local path or a URL that fsspec knows, such as s3://bucket/folder") from error


def _of_url(url: str, **options: Any) -> tuple[fsspec.AbstractFileSystem, str]:
    """Do what fsspec's `url_to_fs` does, except that "::" separates file systems only after a file system that reads from another."""
    if re.match(rf"(?:{CHAINING})(?:::|://)", url):
        fs, path = fsspec.core.url_to_fs(url, **options)
        return fs, path
    kind = fsspec.get_filesystem_class(url.partition("://")[0])
    return fsspec.filesystem(url.partition("://")[0], **{**kind._get_kwargs_from_urls(url), **options}), kind._strip_protocol(url)


def store_errors() -> tuple[type[Exception], ...]:
    """Return the exception types that a disk or an object store raises when it fails; for use in `except`."""
    botocore, aiohttp = sys.modules.get("botocore.exceptions"), sys.modules.get("aiohttp")  # loaded with the first s3:// URL
    return (
        OSError,
        *((botocore.BotoCoreError, botocore.ClientError) if botocore else ()),
        *((aiohttp.ClientError,) if aiohttp else ()),
    )


@contextmanager
def wrap_errors(action: str, url: PathOrUrl) -> Iterator[None]:
    """Convert storage errors in the body into a ConfigError: "cannot <action> <url>: ...".

    Args:
        action: What the body does, such as "read" or "write to".
        url: The file or folder, for the message.

    Raises:
        ConfigError: The disk or the object store failed.
    """
    try:
        yield
    except store_errors() as error:
        raise _storage_error(action, url, error) from error


def _storage_error(action: str, url: PathOrUrl, error: Exception) -> ConfigError:
    why = " ".join(str(error).split())[:200] or type(error).__name__
    return ConfigError(f"cannot {action} {url}: {why}; check the path or URL, your permissions and the free space")


@contextmanager
def _wrap_store_errors(action: str, url: PathOrUrl) -> Iterator[None]:
    """Like `wrap_errors`, but for object stores only, and without the errors in `MISSING`."""
    try:
        yield
    except MISSING:
        raise
    except store_errors() as error:
        if is_local(url):
            raise
        raise _storage_error(action, url, error) from error


def exists(url: PathOrUrl) -> bool:
    """Return whether the file or folder exists now; listing caches are not used."""
    fs, path = filesystem(url)
    fs.invalidate_cache(fs._parent(path))
    with _wrap_store_errors("look for", url):
        return bool(fs.exists(path))


def is_folder(url: PathOrUrl) -> bool:
    """Return whether this is a folder."""
    fs, path = filesystem(url)
    with _wrap_store_errors("look for", url):
        return bool(fs.isdir(path))


def list_names(url: PathOrUrl) -> list[str]:
    """Return the sorted names directly inside a folder; [] if the folder does not exist. Listing caches are not used."""
    fs, path = filesystem(url)
    fs.invalidate_cache(path)
    try:
        with _wrap_store_errors("list", url):
            entries = fs.ls(path, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(base_name(entry) for entry in entries if entry.rstrip("/") != path.rstrip("/"))


@contextmanager
def open_input(url: PathOrUrl) -> Iterator[IO[bytes]]:
    """Open a file as a stream of bytes. Errors while reading are not converted: use `wrap_errors` around the reads."""
    fs, path = filesystem(url)
    with _wrap_store_errors("read", url):
        file = fs.open(path, "rb")
    with file:
        yield file


def read_bytes(url: PathOrUrl) -> bytes:
    """Return the whole content of a file."""
    with _wrap_store_errors("read", url), open_input(url) as file:
        return file.read()


def sha256(url: PathOrUrl) -> str:
    """Return the sha256 (hex) of a file; it is read in blocks."""
    digest = hashlib.sha256()
    with _wrap_store_errors("read", url), open_input(url) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def size(url: PathOrUrl) -> int:
    """Return the size of a file in bytes."""
    fs, path = filesystem(url)
    with _wrap_store_errors("look for", url):
        return int(fs.size(path))


def listing_digest(url: PathOrUrl) -> str:
    """Return a digest of the names, sizes and ETags (or modification times) of a folder's files. It changes when a file changes.

    Raises:
        FileNotFoundError: The folder does not exist.
    """
    fs, path = filesystem(url)
    with _wrap_store_errors("look for", url):
        files = fs.find(path, detail=True)
    if not files:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), url)
    keys = ("ETag", "blob_id", "mtime")  # of S3, of the Hugging Face hub, of a disk
    states = [[name, info["size"], str(next((info[key] for key in keys if info.get(key)), None))] for name, info in sorted(files.items())]
    return hashlib.sha256(repr(states).encode()).hexdigest()


def download(url: PathOrUrl, folder: Path) -> None:
    """Copy a folder of an object store to a new local folder."""
    fs, path = filesystem(url)
    with _wrap_store_errors("read", url):
        for name in fs.find(path):
            target = folder / name.removeprefix(path).lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            with fs.open(name, "rb") as source, open(target, "wb") as copy:
                shutil.copyfileobj(source, copy, BLOCK_BYTES)


def make_folder(path: Path) -> None:
    """Make a local folder and its parents, even if another process removes an empty parent at the same time.

    Raises:
        OSError: The folder cannot be made.
    """
    for _ in range(ATTEMPTS):
        with suppress(FileNotFoundError):
            path.mkdir(parents=True, exist_ok=True)
            return
    path.mkdir(parents=True, exist_ok=True)


def check_writable(url: PathOrUrl) -> None:
    """Check that files can be written to a folder, before long work that ends with writing them. No file remains after the check.

    Args:
        url: Local folder or URL; the folder need not exist yet.

    Raises:
        ConfigError: The folder is not writable, or is a file.
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
    """Return the path itself, or its nearest parent that exists."""
    while True:
        try:
            os.lstat(path)
            return path
        except (FileNotFoundError, NotADirectoryError):
            path = path.parent


def write_bytes(url: PathOrUrl, data: bytes) -> None:
    """Write a whole file in one atomic step."""
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
        with _wrap_store_errors("write", url):
            fs.pipe_file(path, data, **_upload_options(url, len(data)))


def publish(attempt: Path, url: PathOrUrl) -> None:
    """Move a finished file or folder from an `attempt_folder` to its final name.

    If a folder with that name exists, another attempt published the same content first, and this one is dropped. (Published names carry a
    digest of their content.)
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
        with _wrap_store_errors("write", url):
            for file in filter(Path.is_file, files):
                destination = path if file == attempt else f"{path}/{file.relative_to(attempt).as_posix()}"
                fs.put_file(str(file), destination, **_upload_options(url, file.stat().st_size))


@contextmanager
def attempt_folder(near: PathOrUrl) -> Iterator[Path]:
    """Yield a local scratch folder, and remove it afterwards.

    It lies beside a local output, so that publishing is a rename on one disk. For an object store, it lies in the system's temporary
    folder.

    Args:
        near: Path or URL of the output.

    Raises:
        OSError: ENOSPC with the folder's name, if the body fails because the disk is full. NumPy and Arrow do not report a full disk.
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
    """Remove a file or a folder if it exists. Another process may remove it at the same time."""
    if is_local(url) and not local_path(url).is_dir():
        local_path(url).unlink(missing_ok=True)
    else:
        remove_tree(url)


def remove_tree(url: PathOrUrl) -> None:
    """Remove a folder and its content if it exists. Another process may remove it, or write to it, at the same time."""
    if is_local(url):
        shutil.rmtree(local_path(url), ignore_errors=True)
    else:
        fs, path = filesystem(url)
        with _wrap_store_errors("remove", url), suppress(FileNotFoundError):
            fs.rm(path, recursive=True)


def _is_s3(url: PathOrUrl) -> bool:
    return path_text(url).startswith(("s3://", "s3a://"))


def _upload_options(url: PathOrUrl, num_bytes: int) -> dict[str, int]:
    if not _is_s3(url):
        return {}
    from ray_lir.storage import s3

    return s3.upload_options(num_bytes)
