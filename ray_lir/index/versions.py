"""Versions of an index: their numbers, the latest version, and their manifests."""

from contextlib import suppress

import numpy as np

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.index.arrays import read_array
from ray_lir.index.manifest import INDEX_FOLDERS, IndexManifest, listed_names
from ray_lir.storage.file_names import check_links
from ray_lir.storage.manifest import LATEST, MANIFEST, files_of, read_manifest

LAST_VERSION = 1 << 31


def version_manifest(index: str, number: int) -> str:
    """Return the URL of the manifest of a version of an index."""
    return storage.join(index, "versions", str(number), MANIFEST)


def read_index_manifest(index: str, number: int) -> IndexManifest:
    """Read the manifest of a version of an index.

    Raises:
        FormatError: There is no such version, its manifest is damaged, or a symbolic link on the way to a file leads out of the index.
    """
    check_index_links(index)
    check_links(index, [f"versions/{number}/{MANIFEST}"])
    manifest = read_manifest(version_manifest(index, number), IndexManifest, "jobs.build_index")
    check_links(index, [file.name for file in files_of(manifest)])
    return manifest


def check_index_links(index: str) -> None:
    """Check that no folder that changes of an index write to, or remove files from, is a symbolic link out of the index.

    Raises:
        FormatError: A folder is such a link.
    """
    check_links(index, [LATEST, "versions", "_work", *INDEX_FOLDERS])


def version_numbers(index: str) -> list[int]:
    """Return the numbers of all versions that have a manifest, ascending."""
    return sorted(
        number
        for number in map(_number, storage.list_names(storage.join(index, "versions")))
        if number and storage.exists(version_manifest(index, number))
    )


def parse_version(text: bytes | str) -> int:
    """Parse the number of a version.

    Raises:
        ValueError: It is not written in digits, or not between 1 and LAST_VERSION.
    """
    digits = (text.decode("ascii") if isinstance(text, bytes) else text).strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(LAST_VERSION)) and 1 <= int(digits) <= LAST_VERSION):
        raise ValueError(f"{digits[:20]!r} is not the number of a version")
    return int(digits)


def _number(name: str) -> int | None:
    """Return the version of a folder in versions/; None if ray_lir does not make such a name."""
    with suppress(ValueError):
        return number if name == str(number := parse_version(name)) else None
    return None


def listed_by(index: str, numbers: list[int]) -> set[str]:
    """Return the names of the shards and files that these versions list; versions that are removed meanwhile list none."""
    names: set[str] = set()
    for number in numbers:
        try:
            names |= listed_names(read_index_manifest(index, number))
        except FormatError:
            if storage.exists(version_manifest(index, number)):
                raise
    return names


def latest_version(root: storage.PathOrUrl) -> int:
    """Return the number of the version that searches use by default.

    Raises:
        FormatError: There is no index.
    """
    try:
        return parse_version(storage.read_bytes(storage.join(root, LATEST)))
    except (FileNotFoundError, NotADirectoryError):
        raise FormatError(str(root), "an index", "no LATEST file", "check the path, or make one with jobs.build_index") from None
    except ValueError:
        fix = "write the number of a folder in versions/ into it"
        raise FormatError(storage.join(root, LATEST), "a version number", "something else", fix) from None


def read_version(root: storage.PathOrUrl, version: int | None = None) -> IndexManifest:
    """Read the manifest of a version of the index; None for the latest.

    Raises:
        FormatError: There is no index, or no such version.
    """
    version = latest_version(root) if version is None else version
    return read_index_manifest(str(root), version)


def existing_version(root: str, number: int) -> int:
    """Return a version if it exists, and otherwise the latest one: a service that publishes writes removes old versions.

    Raises:
        FormatError: There is no index.
    """
    return number if storage.exists(version_manifest(root, number)) else latest_version(root)


def read_cluster_sizes(root: str, manifest: IndexManifest) -> np.ndarray:
    """Read the tokens of each cluster over all shards, [C] int64.

    Raises:
        FormatError: The file does not hold the cluster sizes of this index.
    """
    url = storage.join(root, manifest.cluster_sizes.name)
    sizes = read_array(url, np.int64, (manifest.num_centroids,))
    if sizes.min() < 0 or sizes.sum() != manifest.num_tokens:
        fix = "restore the file or build the index anew"
        raise FormatError(url, f"cluster sizes that add up to {manifest.num_tokens} tokens", f"{sizes.sum()}", fix)
    return sizes
