"""Rewrites an index without deleted documents and delta shards, as its next version, and removes old versions."""

import time
from typing import Any

from pydantic import Field

from ray_lir.base.config import Config, Stemmer

from .cli import main
from .where import JobSize, Where, check_where, runs_on_ray, session


class CompactJob(Config):
    """Compacts an index. If it is killed, run it again, and it continues. Older versions stay until they are removed."""

    index: str
    """Folder or URL of the index."""
    num_shards: int | None = Field(None, ge=1)
    """Number of shards of the new version. None: as many as the index was built with."""
    lexical: bool = False
    """Add lexical postings to an index that was built without, for the engines bm25 and hybrid."""
    stemmer: Stemmer | None = "english"
    """With --lexical: language of the stemmer. None: no stemming."""
    keep_versions: int | None = Field(None, ge=1)
    """Number of newest versions to keep. Older versions are removed afterwards, with files that no kept version needs. None: keep all.
    A service needs the version that it serves, and the previous one to roll back."""
    where: Where = "auto"
    """ray: run as Ray tasks. here: run on threads of this process. auto: in this process, unless RAY_ADDRESS names a cluster, or the index
    has more than 10 million tokens. The bytes are the same."""
    dry_run: bool = False
    """Only predict what would be written; change no files."""


def run(job: CompactJob) -> dict[str, Any]:
    """Compact the index and return the new version's sizes.

    Raises:
        ConfigError: A setting is wrong. After this and the following errors no version has changed.
        Conflict: Another job changed the index at the same time.
        FormatError: The index is damaged.
    """
    start = time.perf_counter()
    from ray_lir import storage
    from ray_lir.building.compact import compact_index
    from ray_lir.building.publishing import remove_versions
    from ray_lir.index.versions import read_version
    from ray_lir.planning.preview import preview_compaction, shard_bytes
    from ray_lir.storage.manifest import manifest_digest

    if job.dry_run:
        return {"index": job.index, "dry_run": True, **preview_compaction(job.index, job.num_shards, job.lexical)}
    check_where(job.where)
    size = JobSize.of_tokens(read_version(storage.absolute(job.index)).num_tokens)
    with session(runs_on_ray(job.where, "compact", size)) as map:
        compaction = compact_index(job.index, job.num_shards, lexical=job.lexical, stemmer=job.stemmer, map=map)
    removed = remove_versions(storage.absolute(job.index), job.keep_versions) if job.keep_versions else {}
    manifest = compaction.manifest
    return {
        "index": job.index,
        "version": compaction.version,
        "changed": compaction.changed,
        "num_docs": manifest.num_documents,
        "num_tokens": manifest.num_tokens,
        "num_shards": len(manifest.shards),
        "bytes": shard_bytes(manifest),
        **removed,
        "seconds": round(time.perf_counter() - start, 3),
        "manifest_digest": manifest_digest(manifest),
    }


if __name__ == "__main__":
    main(CompactJob, run)
