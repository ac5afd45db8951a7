"""Compacting an index: a version without deleted documents, whose shards hold about equally many tokens again.

Nothing is compressed anew: codes, residuals and scales are copied, so every document keeps its scores.
"""

import logging
from dataclasses import dataclass
from typing import Any

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import Map
from ray_lir.building.build import TOKENS_PER_SHARD, settings_of
from ray_lir.building.merge import Merge, merge_shards
from ray_lir.building.publishing import config_of, overtaken_by, publish, read_parent, work_of
from ray_lir.index.manifest import Change, IndexManifest
from ray_lir.storage.manifest import check_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compaction:
    """An index that is compact.

    Attributes:
        manifest: of its latest version.
        version: that version's number.
        changed: whether there was anything to do.
    """

    manifest: IndexManifest
    version: int
    changed: bool


def compact_index(index: storage.PathOrUrl, num_shards: int | None = None, *, map: Map = ray_lir.base.parallel.threads) -> Compaction:
    """Publishes a version without deleted documents and delta shards. Documents keep their order; their numbers close up.

    Run again after a kill, it continues; an index that is compact is left as it is.

    Args:
        index: folder of the index, on a disk or an object store.
        num_shards: None: as many as the index was built with.
        map: where the steps run, one call a new shard.

    Raises:
        ConfigError: if every document is deleted, or there are fewer than num_shards.
        Conflict: if another change of the index was published meanwhile; this one has changed nothing then.
        FormatError: if a file of the index is missing or cut.
    """
    index = storage.absolute(index)
    change = {"kind": "compact", "num_shards": num_shards}
    number, parent = read_parent(index, change)
    wanted = shards_of(parent, num_shards)
    if not needs_compaction(parent, wanted):
        logger.info("version %d of %s is compact; nothing to do", number, index)
        return Compaction(parent, number, False)
    storage.check_writable(index)
    for file in (file for shard in parent.shards for file in shard.files):
        check_file(index, file)
    merge = Merge(
        index,
        tuple(shard for shard in parent.shards if shard.num_live),
        wanted,
        number + 1,
        work_of(index, number, parent, change),
    )
    try:
        with storage.wrap_errors("write to", index):
            return Compaction(_compact(merge, number, parent, change, map), number + 1, True)
    except Exception:
        done = overtaken_by(index, number, change)
        if done is None:
            raise
        return Compaction(done, done.change.parent + 1, True)


def shards_of(manifest: IndexManifest, num_shards: int | None = None) -> int:
    """How many shards a compact index has."""
    if not manifest.num_docs:
        raise ConfigError("every document of the index is deleted, and an index without any cannot be; add some, or remove it")
    wanted = num_shards or settings_of(manifest).num_shards or max(1, -(-manifest.num_tokens // TOKENS_PER_SHARD))
    if num_shards and num_shards > manifest.num_docs:
        raise ConfigError(f"num_shards is {num_shards}, but there are {manifest.num_docs} documents; choose fewer shards")
    return min(wanted, manifest.num_docs)


def needs_compaction(manifest: IndexManifest, num_shards: int) -> bool:
    """Whether there is anything deleted, a delta shard, or another number of shards than wanted."""
    return len(manifest.shards) != num_shards or any(shard.num_deleted or shard.is_delta for shard in manifest.shards)


def _compact(merge: Merge, number: int, parent: IndexManifest, change: dict[str, Any], map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    manifest = parent.model_copy(
        update={
            "shards": merge_shards(merge, map, records),
            "config": config_of(parent, change),
            "change": Change(parent=number, kind="compact"),
        }
    )
    publish(merge.index, manifest, records)
    return manifest
