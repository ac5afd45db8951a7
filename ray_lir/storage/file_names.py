"""Names of files below a folder, as manifests list them: none may lead out of the folder, by its spelling or by a symbolic link."""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from ray_lir import storage
from ray_lir.base.errors import FormatError

LONGEST_NAME = 512
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


def check_name(name: str) -> str:
    """Returns `name`; raises ValueError unless it is a relative path of plain parts such as shards/00000-ab12/codes.npy.

    Parts consist of letters, digits, dots, dashes and underscores and do not begin with a dot or a dash. That leaves out absolute paths,
    `..`, drive letters, URLs, and the patterns that a file system would expand when it removes a file.
    """
    if len(name) > LONGEST_NAME or not all(map(_PART.fullmatch, name.split("/"))):
        raise ValueError(f"{name[:80]!r} is not the name of a file in this folder")
    return name


FileName = Annotated[str, AfterValidator(check_name)]
"""A name that `check_name` accepts."""


def check_links(root: str, names: Iterable[str]) -> None:
    """Raises FormatError if a name below `root` is reached by a symbolic link that leads out of `root`. An object store has no links.

    Each folder on the way is looked at once: about two microseconds a name.
    """
    if not storage.is_local(root):
        return
    folder = str(storage.local_path(root))
    seen: set[str] = set()
    for name in names:
        for part in (name, *map(str, PurePosixPath(name).parents)):
            path = f"{folder}/{part}"
            if part in seen or part == ".":
                continue
            seen.add(part)
            if os.path.islink(path) and not _is_within(os.path.realpath(path), os.path.realpath(folder)):
                fix = "put the files themselves there, or do not use this folder if you do not know who made it"
                raise FormatError(path, "a file or folder", "a symbolic link that leads out of the folder", fix)


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
