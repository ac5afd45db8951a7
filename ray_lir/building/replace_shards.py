"""Compacting some shards of an index while other changes are published: merge them first, then put the result in their place.

The merge takes no part of a publication, so it may take long. Documents that were deleted meanwhile are deleted from the merged shards.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import digest
from ray_lir.base.errors import Conflict
from ray_lir.base.parallel import Map
from ray_lir.building.assemble import SHARD
from ray_lir.building.compact import shards_of
from ray_lir.building.merge import Merge, merge_shards
from ray_lir.building.publishing import CompactionIdentity, config_of, finish_publishing, publish
from ray_lir.building.workspace import WORKSPACES, Workspace, remove_workspaces
from ray_lir.index import documents
from ray_lir.index.manifest import DELTA, Change, IndexManifest, ShardEntry
from ray_lir.index.shard import read_deleted
from ray_lir.index.tombstones import delete_from_shard
from ray_lir.index.versions import read_version

PREFIX = "replace-"
"""Prefix of the names of workspaces."""
ATTEMPTS = 20
"""Attempts to publish beside other changes."""


def shards_to_replace(manifest: IndexManifest, max_deltas: int, max_fraction: float) -> tuple[ShardEntry, ...]:
    """Return consecutive shards that a compaction should replace; none if there is no need.

    All shards, if delta shards and deleted documents are a large part of the index. Otherwise the newest delta shards: as many as are
    together larger than the one before, so that a document is copied a logarithmic number of times.

    Args:
        manifest: The latest version.
        max_deltas: Delta shards above which a compaction is needed.
        max_fraction: Fraction of deleted tokens above which a compaction is needed, and of deleted tokens and tokens of delta shards above
            which it includes all shards.
    """
    deltas = [shard for shard in manifest.shards if shard.is_delta]
    deleted = sum(shard.deleted_tokens for shard in manifest.shards)
    total = manifest.num_tokens + deleted
    if not manifest.num_docs or (len(deltas) <= max_deltas and deleted <= max_fraction * total):
        return ()
    if deleted + sum(shard.live_tokens for shard in deltas) > max_fraction * total:
        return manifest.shards
    newest: list[ShardEntry] = []
    for shard in reversed(deltas):
        if len(newest) > max_deltas // 2 and shard.live_tokens > sum(each.live_tokens for each in newest):
            break
        newest.insert(0, shard)
    return tuple(newest)


def replace_shards(index: str, old: Sequence[ShardEntry], map: Map = ray_lir.base.parallel.threads) -> int:
    """Replace shards by merged ones without deleted documents, publish the result, and return the number of the new version.

    Delta shards become one delta shard. All shards become as many as the index was built with.

    Args:
        index: Folder or URL of the index.
        old: Consecutive shards of its latest version, with at least one live document.
        map: Where the steps run, one call a new shard.
    Raises:
        Conflict: Another compaction has replaced some of the shards. This one has changed nothing.
        FormatError: A file of the index is missing or damaged.
    """
    number = finish_publishing(index)
    manifest = read_version(index, number)
    only_deltas = all(shard.is_delta for shard in old)
    workspace = Workspace(storage.join(index, WORKSPACES, f"{PREFIX}{digest([shard.model_dump(mode='json') for shard in old])[:16]}"))
    merge = Merge(
        index,
        tuple(shard for shard in old if shard.num_live),
        1 if only_deltas else shards_of(manifest),
        number + 1,
        workspace,
        lexical=manifest.lexical is not None,
        stemmer=manifest.lexical.stemmer if manifest.lexical else None,
        prefix=DELTA if only_deltas else SHARD,
    )
    records: list[dict[str, object]] = []
    with storage.wrap_errors("write to", index):
        merged = merge_shards(merge, map, records) if merge.shards else ()
        for _ in range(ATTEMPTS):
            number = finish_publishing(index)
            latest = read_version(index, number)
            change = CompactionIdentity(num_shards=len(merged))
            update = {
                "shards": _in_place(index, latest.shards, old, merged),
                "config": config_of(latest, change),
                "change": Change(parent=number, kind="compact"),
            }
            try:
                publish(index, latest.model_copy(update=update), records)
            except Conflict:
                continue
            remove_workspaces(index, lambda name: name.startswith(PREFIX))
            return number + 1
    raise Conflict(f"other changes of {index} were published at each of {ATTEMPTS} attempts; try again when there are fewer")


def _in_place(index: str, shards: Sequence[ShardEntry], old: Sequence[ShardEntry], merged: Sequence[ShardEntry]) -> tuple[ShardEntry, ...]:
    """Return the shards of a version with the merged shards in the place of the old ones."""
    names = [shard.name for shard in shards]
    if not {shard.name for shard in old} <= set(names):
        raise Conflict(f"another compaction of {index} was published meanwhile, and this one was not")
    start = names.index(old[0].name)
    gone = [
        doc_id for before, now in zip(old, shards[start : start + len(old)], strict=True) for doc_id in _deleted_since(index, before, now)
    ]
    placed = [shard.model_copy(update={"first_document": old[0].first_document + shard.first_document}) for shard in merged]
    if gone:
        placed = [delete_from_shard(index, gone, shard).entry for shard in placed]
    return (*shards[:start], *placed, *shards[start + len(old) :])


def _deleted_since(index: str, before: ShardEntry, now: ShardEntry) -> list[str]:
    """Return the ids of the documents that were deleted from a shard between two versions."""
    if before.num_deleted == now.num_deleted:
        return []
    rows = np.setdiff1d(read_deleted(index, now), read_deleted(index, before), assume_unique=True)
    batches = documents.read_batches(storage.join(index, now.name, documents.FILE), ["doc_id"])
    return documents.column(pa.Table.from_batches(batches, documents.IDS), "doc_id", rows.astype(np.int64))
