"""Versions of an index: the next one is published by one writer alone; old ones are removed with what only they use."""

import logging
import platform
import re
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from ray_lir import storage
from ray_lir.base.config import canonical_json, digest
from ray_lir.base.errors import ConfigError, Conflict, FormatError
from ray_lir.building.workspace import GARBAGE, WORK, Work, tidy
from ray_lir.engines import TUNING
from ray_lir.index.manifest import INDEX_FOLDERS, IndexManifest
from ray_lir.index.versions import check_index_links, latest_version, listed_by, read_version, version_manifest, version_numbers
from ray_lir.storage.concurrent_writes import create_bytes
from ray_lir.storage.file_names import FileName, check_links
from ray_lir.storage.manifest import LATEST, PROVENANCE, manifest_digest

logger = logging.getLogger(__name__)


def read_parent(index: str, change: dict[str, Any]) -> tuple[int, IndexManifest]:
    """The version that a change starts from, and its manifest.

    If this very change was killed while its version was being published, that is finished, and its version is returned.

    Args:
        change: what the version's configuration will say of the change.

    Raises:
        Conflict: if another change stopped there, or is there just now.
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


def is_same(manifest: IndexManifest, change: dict[str, Any]) -> bool:
    """Whether a version came of this change, whatever it was made from."""
    made = manifest.config.get("change", {})
    return {name: value for name, value in made.items() if name != "parent"} == change


def work_of(index: str, number: int, parent: IndexManifest, change: dict[str, Any]) -> Work:
    """The work folder of a change of `parent`, which is version `number`."""
    made = digest({"change": change, "parent": manifest_digest(parent)})[:16]
    return Work(storage.join(index, WORK, f"version-{number + 1:05d}-{made}"))


def config_of(parent: IndexManifest, change: dict[str, Any]) -> dict[str, Any]:
    """The configuration of the version that a change makes of `parent`."""
    return parent.config | {"change": change | {"parent": manifest_digest(parent)}}


def publish(index: str, manifest: IndexManifest, records: list[dict[str, Any]]) -> None:
    """Makes a version the latest, after the one that its change names as parent.

    Raises:
        Conflict: if another change of that parent was published first; this one has changed nothing then.
    """
    parent = manifest.change.parent
    if latest_version(index) != parent:
        raise Conflict(f"{index} has newer versions than {parent}")
    try:
        create_bytes(version_manifest(index, parent + 1), canonical_json(manifest.model_dump(mode="json")))
    except FileExistsError:
        raise Conflict(f"version {parent + 1} of {index} is another's") from None
    if latest_version(index) > parent + 1:  # in that instant others made newer ones and removed this one's number
        raise Conflict(f"{index} has newer versions than {parent}")
    _finish(index, manifest, {"stages": records, "python": platform.python_version(), "numpy": np.__version__})


def overtaken_by(index: str, parent: int, change: dict[str, Any]) -> IndexManifest | None:
    """Why a change of version `parent` failed, if another was faster: the manifest if that was the same change, run by somebody else.

    Returns None if `parent` is the latest version still.

    Raises:
        Conflict: if it was a different change.
    """
    latest = latest_version(index)
    if latest == parent and not storage.exists(version_manifest(index, parent + 1)):
        return None
    manifest = read_version(index, max(latest, parent + 1))
    if is_same(manifest, change):
        return manifest
    raise Conflict(f"another change of {index} was published meanwhile, and this one was not; run it again, and it starts from that")


def _finish(index: str, manifest: IndexManifest, provenance: dict[str, Any]) -> None:
    """What follows when a version's manifest is there: its measured choices and provenance, LATEST, and the end of its work."""
    number = manifest.change.parent + 1
    old, new = (storage.join(index, "versions", str(version)) for version in (number - 1, number))
    if storage.exists(storage.join(old, TUNING)):
        storage.write_bytes(storage.join(new, TUNING), storage.read_bytes(storage.join(old, TUNING)))
    if provenance:
        storage.write_bytes(storage.join(new, PROVENANCE), canonical_json(provenance))
    storage.write_bytes(storage.join(index, LATEST), f"{number}\n".encode())
    tidy(index, lambda name: (started := _started(name)) is not None and started <= number)


def remove_versions(index: str, keep: int) -> dict[str, Any]:
    """Removes all but the newest `keep` versions, and the files that they list and no other version does.

    Versions disappear first. What was to follow is written down, so that a run that is killed is finished by the next.

    Returns:
        the versions that were removed, and how many folders and files besides.

    Raises:
        ConfigError: if `keep` is less than 1.
    """
    if keep < 1:
        raise ConfigError(f"at least the latest version is kept, not {keep}")
    check_index_links(index)
    numbers = [number for number in version_numbers(index) if number <= latest_version(index)]
    old = numbers[:-keep]
    listed_by(index, numbers[-keep:])  # raises before anything is removed if a version that stays is damaged
    work = Work(storage.join(index, WORK))
    unused = _read_garbage(work)
    unused |= {name for number in old for name in _listed(index, number)}
    if unused:
        work.save_record(GARBAGE, sorted(unused))
    for number in old:
        storage.remove_tree(storage.join(index, "versions", str(number)))
    unused -= listed_by(index, version_numbers(index))
    for name in sorted(unused):
        storage.remove(storage.join(index, name))
    storage.remove(storage.join(work.root, GARBAGE))
    tidy(index, lambda name: False)
    return {"versions_removed": old, "removed": len(unused)}


def _read_garbage(work: Work) -> set[str]:
    """The names that an earlier run has left to be removed; none if the note holds anything that is not a name of an index's file."""
    if not work.has(GARBAGE):
        return set()
    try:
        names = TypeAdapter(list[FileName]).validate_python(work.load_record(GARBAGE))
        check_links(work.root.removesuffix(f"/{WORK}"), names)
        if all(name.partition("/")[0] in INDEX_FOLDERS and name.count("/") == 1 for name in names):
            return set(names)
    except (ValueError, FormatError):
        pass
    logger.warning("%s does not list files of the index and is removed; jobs.inspect shows files that no version uses", work.root)
    return set()


def _listed(index: str, number: int) -> set[str]:
    """What an old version that is to be removed consists of; nothing if its manifest is damaged, so that only the manifest goes."""
    try:
        return listed_by(index, [number])
    except FormatError as error:
        logger.warning("version %d is removed, but not the files that only it uses, because its manifest is damaged: %s", number, error)
        return set()


def _started(name: str) -> int | None:
    """The version that a work folder is for, which `work_of` names version-NUMBER-DIGEST."""
    found = re.fullmatch(r"version-(\d{1,10})-[0-9a-f]+", name, re.ASCII)
    return int(found[1]) if found else None
