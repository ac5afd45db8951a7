"""Publishing the next version of an index by exactly one writer, and removing old versions with the files that only they use."""

import logging
import platform
import re
from collections.abc import Collection
from typing import Any, Literal

import numpy as np
from pydantic import Field, TypeAdapter

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json, digest
from ray_lir.base.errors import ConfigError, Conflict, FormatError
from ray_lir.building.workspace import GARBAGE, WORKSPACES, Workspace, remove_workspaces
from ray_lir.engines import TUNING
from ray_lir.index.manifest import INDEX_FOLDERS, IndexManifest, change_in
from ray_lir.index.versions import check_index_links, latest_version, listed_by, read_version, version_manifest, version_numbers
from ray_lir.storage.concurrent_writes import create_bytes, locked
from ray_lir.storage.file_names import FileName, check_links
from ray_lir.storage.manifest import LATEST, PROVENANCE, later_field, manifest_digest

logger = logging.getLogger(__name__)


NO_POSTINGS = "-"


class UpdateIdentity(Config):
    """Identity of an update. Updates with equal identities make equal versions of the same parent."""

    kind: Literal["update"] = "update"
    add: str | None
    """Digest of the added embeddings; None if nothing is added."""
    delete: str | None
    """Digest of the sorted ids to delete; None if nothing is deleted."""
    log_position: int | None = later_field(None)
    """Last position of the write log that the update applies; None if it applies none."""


class CompactionIdentity(Config):
    """Identity of a compaction."""

    kind: Literal["compact"] = "compact"
    num_shards: int | None
    """None for as many shards as the index was built with."""
    stemmer: str | None = Field(NO_POSTINGS, exclude_if=lambda value: value == NO_POSTINGS)
    """Stemmer of the lexical postings that the compaction adds. NO_POSTINGS: it adds none."""


ChangeIdentity = UpdateIdentity | CompactionIdentity
"""Stored in the configuration of a version, with the digest of its parent's manifest as `parent`."""


def read_parent(index: str, change: ChangeIdentity) -> tuple[int, IndexManifest]:
    """Return the version that a change starts from, and its manifest.

    If an earlier run of this change was killed while it published, this finishes publishing and returns the new version.

    Raises:
        Conflict: Another change is publishing its version, or was killed while it did.
    """
    number = latest_version(index)
    if storage.exists(version_manifest(index, number + 1)):
        newer = read_version(index, number + 1)
        if not is_same(newer, change):
            raise Conflict(
                f"{storage.join(index, 'versions', str(number + 1))} is there and LATEST says {number}: another change is being published; "
                f"if none is running, write {number + 1} into LATEST, or remove that folder"
            )
        _finish(index, newer, {})
        number += 1
    return number, read_version(index, number)


def finish_publishing(index: str) -> int:
    """Finish a version if its change was killed between manifest and LATEST; return the latest version.

    A version is complete when its manifest exists, and only one change can have created that. So any process may finish it.
    """
    number = latest_version(index)
    while storage.exists(version_manifest(index, number + 1)):
        _finish(index, read_version(index, number + 1), {})
        number += 1
    return number


def is_same(manifest: IndexManifest, change: ChangeIdentity) -> bool:
    """Return whether this change made the version, whatever its parent."""
    stored = manifest.config.get("change", {})
    return {name: value for name, value in stored.items() if name != "parent"} == change.model_dump()


def workspace_of(index: str, number: int, parent: IndexManifest, change: ChangeIdentity) -> Workspace:
    """Return the workspace of a change.

    Args:
        index: Folder or URL of the index.
        number: Version that is changed.
        parent: Its manifest.
        change: Identity of the change.
    """
    key = digest({"change": change.model_dump(), "parent": manifest_digest(parent)})[:16]
    return Workspace(storage.join(index, WORKSPACES, f"version-{number + 1:05d}-{key}"))


def config_of(parent: IndexManifest, change: ChangeIdentity) -> dict[str, Any]:
    """Return the configuration of the version that a change makes from `parent`."""
    return parent.config | {"change": change.model_dump() | {"parent": manifest_digest(parent)}}


def publish(index: str, manifest: IndexManifest, records: list[dict[str, Any]]) -> None:
    """Publish a version as the latest.

    Args:
        index: Folder or URL of the index.
        manifest: The version; its change names the version before it.
        records: Phases of the job, for `provenance.json`.
    Raises:
        Conflict: Another change of the same parent was published first. This one has changed nothing.
    """
    parent = change_in(manifest).parent
    if latest_version(index) != parent:
        raise Conflict(f"{index} has newer versions than {parent}")
    try:
        create_bytes(version_manifest(index, parent + 1), canonical_json(manifest.model_dump(mode="json")))
    except FileExistsError:
        raise Conflict(f"another change published version {parent + 1} of {index}") from None
    if latest_version(index) > parent + 1:  # other changes published newer versions meanwhile and removed this one
        raise Conflict(f"{index} has newer versions than {parent}")
    _finish(index, manifest, {"stages": records, "python": platform.python_version(), "numpy": np.__version__})


def overtaken_by(index: str, parent: int, change: ChangeIdentity) -> IndexManifest | None:
    """Return the manifest that another run of the same change published first; None if no change of version `parent` was published.

    Args:
        index: Folder or URL of the index.
        parent: Version that the change started from.
        change: Identity of the change.
    Raises:
        Conflict: A different change was published.
    """
    latest = latest_version(index)
    if latest == parent and not storage.exists(version_manifest(index, parent + 1)):
        return None
    manifest = read_version(index, max(latest, parent + 1))
    if is_same(manifest, change):
        return manifest
    raise Conflict(f"another change of {index} was published meanwhile, and this one was not; run it again, and it starts from that")


def _finish(index: str, manifest: IndexManifest, provenance: dict[str, Any]) -> None:
    """Write the files that follow a version's manifest: its tuning, provenance and LATEST. Then remove its workspace."""
    number = change_in(manifest).parent + 1
    old, new = (storage.join(index, "versions", str(version)) for version in (number - 1, number))
    if storage.exists(storage.join(old, TUNING)):
        storage.write_bytes(storage.join(new, TUNING), storage.read_bytes(storage.join(old, TUNING)))
    if provenance:
        storage.write_bytes(storage.join(new, PROVENANCE), canonical_json(provenance))
    _set_latest(index, number)
    remove_workspaces(index, lambda name: (started := _version_of(name)) is not None and started <= number)


def _set_latest(index: str, number: int) -> None:
    """Make a version the latest one, unless a newer version is. Several processes may do this at once, and one may be late."""
    if storage.is_local(index):
        with locked(storage.join(index, "versions")):
            if latest_version(index) < number:
                storage.write_bytes(storage.join(index, LATEST), f"{number}\n".encode())
        return
    storage.write_bytes(storage.join(index, LATEST), f"{number}\n".encode())
    while storage.exists(version_manifest(index, number + 1)):  # published before this write, which was late
        number += 1
        storage.write_bytes(storage.join(index, LATEST), f"{number}\n".encode())


def remove_versions(index: str, keep: int, needed: Collection[int] = ()) -> dict[str, Any]:
    """Remove all but the newest `keep` versions, and the files that no remaining version lists.

    Versions are removed first. The names of the files to remove are saved before, so the next run finishes a run that was killed.

    Args:
        index: Folder or URL of the index.
        keep: Number of newest versions to keep.
        needed: Older versions to keep, too.

    Returns:
        The removed versions as `versions_removed`, and the number of other removed folders and files as `removed`.

    Raises:
        ConfigError: `keep` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"keep is {keep}, but at least the latest version has to stay; give 1 or more")
    check_index_links(index)
    numbers = [number for number in version_numbers(index) if number <= latest_version(index)]
    old = [number for number in numbers[:-keep] if number not in needed]
    listed_by(
        index, [number for number in numbers if number not in old]
    )  # raises before anything is removed if a remaining version is damaged
    workspace = Workspace(storage.join(index, WORKSPACES))
    unused = _read_garbage(workspace)
    unused |= {name for number in old for name in _listed(index, number)}
    if unused:
        workspace.save_record(GARBAGE, sorted(unused))
    for number in old:
        storage.remove_tree(storage.join(index, "versions", str(number)))
    unused -= listed_by(index, version_numbers(index))
    for name in sorted(unused):
        storage.remove(storage.join(index, name))
    storage.remove(storage.join(workspace.root, GARBAGE))
    remove_workspaces(index, lambda name: False)
    return {"versions_removed": old, "removed": len(unused)}


def _read_garbage(workspace: Workspace) -> set[str]:
    """Return the names that an earlier run still had to remove; none if the record holds anything but names of an index's files."""
    if not workspace.has(GARBAGE):
        return set()
    try:
        names = TypeAdapter(list[FileName]).validate_python(workspace.load_record(GARBAGE))
        check_links(workspace.root.removesuffix(f"/{WORKSPACES}"), names)
        if all(name.partition("/")[0] in INDEX_FOLDERS and name.count("/") == 1 for name in names):
            return set(names)
    except (ValueError, FormatError):
        pass
    logger.warning("%s does not list files of the index and is removed; jobs.inspect shows files that no version uses", workspace.root)
    return set()


def _listed(index: str, number: int) -> set[str]:
    """Return the files of a version to remove; none if its manifest is damaged, so that only the manifest is removed."""
    try:
        return listed_by(index, [number])
    except FormatError as error:
        logger.warning("version %d is removed, but not the files that only it uses, because its manifest is damaged: %s", number, error)
        return set()


def _version_of(name: str) -> int | None:
    """Return the version that a workspace is for; `workspace_of` names it version-NUMBER-DIGEST."""
    found = re.fullmatch(r"version-(\d{1,10})-[0-9a-f]+", name, re.ASCII)
    return int(found[1]) if found else None
