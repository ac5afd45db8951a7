"""A local copy of the latest version of an index on an object store or on the Hugging Face hub."""

import os
from pathlib import Path

from ray_lir import storage
from ray_lir.index.versions import latest_version, read_version
from ray_lir.storage.local_copy import local_copy
from ray_lir.storage.manifest import LATEST, files_of

ENCODER = "encoder"
"""Folder of an index with the encoder's checkpoint, if the index was published with it."""


def version_files(root: str, version: int) -> list[str]:
    """Return the names of the files of an index that belong to a version alone: its manifest, provenance and tuning."""
    folder = f"versions/{version}"
    return [f"{folder}/{name}" for name in storage.list_names(storage.join(root, folder)) if not name.startswith(".")]


def opened_folder(root: str, cache: str | None = None) -> str:
    """Return a local folder with the latest version of an index. Files that an earlier copy holds are not downloaded again.

    Args:
        root: Path or URL of the index. A path is returned unchanged.
        cache: Local folder for copies. None: ray_lir/indexes in the user's cache folder.

    Raises:
        ConfigError: The store does not answer, or the disk is full.
        FormatError: There is no index, or a file differs from its manifest entry.
    """
    if storage.is_local(root):
        return root
    cache = cache or str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ray_lir" / "indexes")
    with storage.wrap_errors("read", root):
        version = latest_version(root)
        manifest = read_version(root, version)
        folder = local_copy(root, cache, files_of(manifest))
        for name in version_files(root, version):
            storage.write_bytes(storage.join(folder, name), storage.read_bytes(storage.join(root, name)))
        storage.write_bytes(storage.join(folder, LATEST), str(version).encode())
    return folder


def index_content(root: str) -> dict[str, Path]:
    """Return the files of the latest version of a local index by their names.

    Raises:
        FormatError: There is no index, or its manifest is damaged.
    """
    version = latest_version(root)
    names = [LATEST, *version_files(root, version), *(entry.name for entry in files_of(read_version(root, version)))]
    return {name: storage.local_path(storage.join(root, name)) for name in dict.fromkeys(names)}
