"""Names of files below a folder, as manifests list them. No name may lead out of the folder, neither by its text nor by a symbolic link."""

import os
import re
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import AfterValidator

from ray_lir import storage
from ray_lir.base.errors import FormatError

LONGEST_NAME = 512
"""Longest name in characters."""
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*", re.ASCII)


def check_name(name: str) -> str:
    """Return `name` if it is a relative path of plain components, such as shards/00000-ab12/codes.npy.

    A component consists of letters, digits, dots, dashes and underscores, and does not begin with a dot or a dash. This excludes absolute
    paths, `..`, drive letters, URLs, and wildcards that a file system would expand when it removes a file.

    Raises:
        ValueError: The name has another form.
    """
    if len(name) > LONGEST_NAME or not all(map(_PART.fullmatch, name.split("/"))):
        raise ValueError(f"{name[:80]!r} is not a valid name of a file in this folder")
    return name


FileName = Annotated[str, AfterValidator(check_name)]
"""A name that `check_name` accepts."""


def check_links(root: str, names: Iterable[str]) -> None:
    """Check that no symbolic link on the way to these files leads out of `root`. An object store has no links.

    Each folder on the way is checked once, which takes about two microseconds a name.

    Raises:
        FormatError: A symbolic link leads out of the folder.
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
                fix = "replace the link by the files; do not use this folder if you do not know who made it"
                raise FormatError(path, "a file or folder", "a symbolic link that leads out of the folder", fix)


def _is_within(path: str, folder: str) -> bool:
    return os.path.commonpath([path, folder]) == folder
