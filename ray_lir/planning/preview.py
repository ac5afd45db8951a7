"""Dry runs: predicts what a build, an update or a compaction would write and how long it would take."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import IndexConfig
from ray_lir.base.parallel import Map, num_cores
from ray_lir.building.build import prepare_build
from ray_lir.building.compact import needs_compaction, shards_of
from ray_lir.building.workspace import Build
from ray_lir.embeddings.parquet import read_texts
from ray_lir.index import documents
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.tombstones import find_in_shard
from ray_lir.index.versions import read_version
from ray_lir.planning.sizes import Collection, build_memory, lexical_bytes, predict_bytes
from ray_lir.planning.workload import build_seconds
from ray_lir.storage.manifest import LATEST

SAMPLED_PARTS = 8
"""Parts of the embeddings to read texts from, to predict the size of the documents."""


def preview_build(embeddings: str, output: str, config: IndexConfig) -> dict[str, Any]:
    """Predict a build: documents, tokens, bytes by kind of file, peak memory of a process with all cores, and core-seconds by phase.

    Args:
        embeddings: Folder or URL of the embeddings.
        output: Folder or URL of the index.
        config: Configuration of the index.

    Raises:
        ConfigError: The build would be refused.
        FormatError: The embeddings are damaged.
    """
    build = prepare_build(embeddings, output, config)
    of = _collection(build)
    seconds = build_seconds(of, build.config.clustering.num_iterations)
    if config.codec_from:
        seconds = {stage: value for stage, value in seconds.items() if stage in ("compress", "assemble")}
    sizes = predict_bytes(of)
    return {
        "there_already": LATEST in storage.list_names(build.output),
        "num_docs": of.num_docs,
        "num_tokens": of.num_tokens,
        "num_shards": of.num_shards,
        "num_centroids": of.num_centroids,
        "nbits": of.nbits,
        "bytes": sizes.index,
        "bytes_by_kind": sizes.model_dump(exclude={"embeddings"}),
        "memory_bytes": build_memory(of, max((part.num_tokens for part in build.parts), default=0), num_cores()),
        "core_seconds": round(sum(seconds.values()), 3),
        "core_seconds_by_stage": {stage: round(value, 3) for stage, value in seconds.items()},
    }


def preview_update(
    index: str, new_ids: Sequence[str], ids: Sequence[str], num_tokens: int | None = None, map: Map = ray_lir.base.parallel.threads
) -> dict[str, Any]:
    """Predict an update: documents added, replaced and deleted, bytes, and core-seconds.

    Args:
        index: Folder or URL of the index.
        new_ids: Ids of the documents to add.
        ids: Ids of documents to delete.
        num_tokens: Tokens of the documents to add. None: the index's mean for each document.
        map: Runs the lookup in the shards.
    """
    index = storage.absolute(index)
    manifest = read_version(index)
    affected = sorted({*new_ids, *ids})
    found = {doc_id for in_shard in map(partial(_found_in, index, affected), manifest.shards) for doc_id in in_shard}
    tokens = round(len(new_ids) * manifest.num_tokens / max(1, manifest.num_docs)) if num_tokens is None else num_tokens
    all_tokens = sum(shard.num_tokens for shard in manifest.shards)
    of = Collection(
        len(new_ids), tokens, manifest.dim, manifest.nbits, manifest.num_centroids, 1, 0, residual_bytes=manifest.residual_bytes
    )
    seconds = build_seconds(of) if tokens else {"compress": 0.0, "assemble": 0.0}
    return {
        "num_added": len(new_ids),
        "num_replaced": len(found.intersection(new_ids)),
        "num_deleted": len(found.difference(new_ids)),
        "num_unknown": len(set(ids) - found),
        "num_docs": manifest.num_docs - len(found) + len(new_ids),
        "added_tokens": tokens,
        "bytes": round(tokens * shard_bytes(manifest) / max(1, all_tokens)),
        "core_seconds": round(seconds["compress"] + seconds["assemble"], 3),
    }


def preview_compaction(index: str, num_shards: int | None = None, lexical: bool = False) -> dict[str, Any]:
    """Predict a compaction. Bytes are predicted in proportion to the tokens of live documents.

    Args:
        index: Folder or URL of the index.
        num_shards: Number of shards afterwards. None: as many as the index was built with.
        lexical: Whether the compaction adds lexical postings to an index without.

    Raises:
        ConfigError: Every document is deleted, or there are fewer documents than `num_shards`.
    """
    manifest = read_version(storage.absolute(index))
    shards_after = shards_of(manifest, num_shards)
    adds = lexical and manifest.lexical is None

    def size(shard: ShardEntry) -> int:
        texts = sum(file.size for file in shard.files if file.name.endswith(documents.FILE))
        return sum(file.size for file in shard.files) + (lexical_bytes(texts) if adds else 0)

    kept = (shard.live_tokens / max(1, shard.num_tokens) * size(shard) for shard in manifest.shards)
    return {
        "changed": adds or needs_compaction(manifest, shards_after),
        "num_docs": manifest.num_docs,
        "num_deleted": sum(shard.num_deleted for shard in manifest.shards),
        "num_deltas": sum(shard.is_delta for shard in manifest.shards),
        "num_shards": shards_after,
        "bytes_before": shard_bytes(manifest),
        "bytes": round(sum(kept)),
    }


def shard_bytes(manifest: IndexManifest) -> int:
    """Return the bytes of all files of all shards."""
    return sum(file.size for shard in manifest.shards for file in shard.files)


def _collection(build: Build) -> Collection:
    codec, texts = build.config.codec, _text_bytes(build)
    sizes = (build.num_docs, build.num_tokens, build.dim, codec.nbits, build.num_centroids, build.num_shards)
    return Collection(*sizes, texts, build.config.lexical, codec.residual_bytes, codec.buckets == "trellis")


def _text_bytes(build: Build) -> float:
    """Mean bytes of a document's id, title, text and metadata, from a few parts."""
    numbers = np.unique(np.linspace(0, len(build.parts) - 1, SAMPLED_PARTS).astype(int)).tolist()
    tables = [read_texts(build.part_url(number)) for number in numbers]
    return sum(table.nbytes for table in tables) / max(1, sum(len(table) for table in tables))


def _found_in(index: str, doc_ids: Sequence[str], entry: ShardEntry) -> list[str]:
    return find_in_shard(index, doc_ids, entry)[1]
