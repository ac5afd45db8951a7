"""Compacting an index: a version without deleted documents, and with shards of about equally many tokens.

Codes, residuals and scales are copied and not compressed again, so every document keeps its scores.
"""

import logging
from dataclasses import dataclass
from typing import Any

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import Stemmer
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import Map
from ray_lir.building.build import TOKENS_PER_SHARD, settings_of
from ray_lir.building.lexical import check_has_terms, count_terms
from ray_lir.building.merge import Merge, merge_shards
from ray_lir.building.publishing import CompactionIdentity, config_of, overtaken_by, publish, read_parent, workspace_of
from ray_lir.index.lexical import write_statistics
from ray_lir.index.manifest import Change, IndexManifest, change_in
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import check_file

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Compaction:
    """The result of a compaction.

    Attributes:
        manifest: The manifest of the latest version.
        version: Number of that version.
        changed: Whether there was anything to do.
    """

    manifest: IndexManifest
    version: int
    changed: bool


def compact_index(
    index: storage.PathOrUrl,
    num_shards: int | None = None,
    *,
    lexical: bool = False,
    stemmer: Stemmer | None = "english",
    map: Map = ray_lir.base.parallel.threads,
) -> Compaction:
    """Publish a version without deleted documents and delta shards. Documents keep their order and get new, gapless numbers.

    After a kill, the same call continues. A compact index does not change.

    Args:
        index: Folder of the index, on a disk or an object store.
        num_shards: Number of shards; None for as many as the index was built with.
        lexical: Add lexical postings to an index that was built without.
        stemmer: Language of their stemmer; None for no stemming.
        map: Where the steps run, one call a new shard.
    Returns:
        The latest version.
    Raises:
        ConfigError: Every document is deleted, or there are fewer documents than `num_shards`. Or `lexical` is set and no document has a
            text.
        Conflict: Another change of the index was published meanwhile. This one has changed nothing.
        FormatError: A file of the index is missing or cut.
    """
    index = storage.absolute(index)
    adds = lexical and read_version(index).lexical is None
    change = CompactionIdentity(num_shards=num_shards, stemmer=stemmer) if adds else CompactionIdentity(num_shards=num_shards)
    number, parent = read_parent(index, change)
    target = shards_of(parent, num_shards)
    if not adds and not needs_compaction(parent, target):
        logger.info("version %d of %s is compact; nothing to do", number, index)
        return Compaction(parent, number, False)
    storage.check_writable(index)
    for file in (file for shard in parent.shards for file in shard.files):
        check_file(index, file)
    merge = Merge(
        index,
        tuple(shard for shard in parent.shards if shard.num_live),
        target,
        number + 1,
        workspace_of(index, number, parent, change),
        lexical=adds or parent.lexical is not None,
        stemmer=parent.lexical.stemmer if parent.lexical else stemmer,
        has_passages=parent.contract.has_passages,
    )
    try:
        with storage.wrap_errors("write to", index):
            return Compaction(_compact(merge, number, parent, change, map), number + 1, True)
    except Exception:
        done = overtaken_by(index, number, change)
        if done is None:
            raise
        return Compaction(done, change_in(done).parent + 1, True)


def shards_of(manifest: IndexManifest, num_shards: int | None = None) -> int:
    """Return the number of shards of an index once it is compact.

    Raises:
        ConfigError: Every document is deleted, or there are fewer documents than `num_shards`.
    """
    if not manifest.num_docs:
        raise ConfigError("every document of the index is deleted, and an index needs a document; add some, or remove the index")
    target = num_shards or settings_of(manifest).num_shards or max(1, -(-manifest.num_tokens // TOKENS_PER_SHARD))
    if num_shards and num_shards > manifest.num_documents:
        raise ConfigError(f"num_shards is {num_shards}, but there are {manifest.num_documents} documents; choose fewer shards")
    return min(target, manifest.num_documents)


def needs_compaction(manifest: IndexManifest, num_shards: int) -> bool:
    """Return whether the index has deleted documents, a delta shard, or not `num_shards` shards."""
    return len(manifest.shards) != num_shards or any(shard.num_deleted or shard.is_delta for shard in manifest.shards)


def _compact(merge: Merge, number: int, parent: IndexManifest, change: CompactionIdentity, map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    shards = merge_shards(merge, map, records)
    lexical, config = None, config_of(parent, change)
    if merge.lexical:
        terms = count_terms(merge.index, shards, map, records)
        if parent.lexical is None:
            check_has_terms(terms)
            settings = settings_of(parent).model_copy(update={"lexical": True, "stemmer": merge.stemmer})
            config["index"] = settings.model_dump(mode="json")  # updates build delta shards by it
        lexical = write_statistics(merge.index, merge.stemmer, terms, f"-{number + 1:05d}")
    manifest = parent.model_copy(
        update={
            "shards": shards,
            "lexical": lexical,
            "config": config,
            "change": Change(parent=number, kind="compact"),
        }
    )
    publish(merge.index, manifest, records)
    return manifest
