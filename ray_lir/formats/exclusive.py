"""A file that only one of several writers creates: how two changes of one index at once are told apart."""

import errno
import os
import uuid

from ray_lir.formats import storage


def create_bytes(url: str, data: bytes) -> None:
    """Writes a whole file in one step, which of several writers at once only one succeeds in.

    On a disk that is a hard link. On S3 it is a put with If-None-Match; a store that does not know that header is asked before
    whether the file is there, which leaves an instant in which the later of two writers wins.

    Raises:
        FileExistsError: if a file of other content is there. One of the same content is this writer's, or as good as.
    """
    if not storage.exists(url):
        create = _link if storage.is_local(url) else _put
        create(url, data)
    if storage.read_bytes(url) != data:
        raise FileExistsError(errno.EEXIST, "somebody else has written it", url)


def _link(url: str, data: bytes) -> None:
    target = storage.local_path(url)
    attempt = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    storage.write_bytes(str(attempt), data)
    try:
        os.link(attempt, target)
    except FileExistsError:
        pass
    finally:
        attempt.unlink()


def _put(url: str, data: bytes) -> None:
    fs, path = storage.filesystem(url)
    try:
        fs.pipe_file(path, data, mode="create")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            storage.write_bytes(url, data)
        elif not storage.exists(url):
            raise
