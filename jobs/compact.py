"""Writes a version of an index without deleted documents and delta shards, and removes old versions."""

import time
from typing import Any

from pydantic import Field

from ray_lir.base.config import Config

from .cli import main
from .where import Where, runs_on_ray, session


class CompactJob(Config):
    """Compacts an index; run again after a kill, it continues. The version before stays until it is removed."""

    index: str
    """Folder or URL of the index."""
    num_shards: int | None = Field(None, ge=1)
    """Shards of the new version. None: as many as the index was built with."""
    keep_versions: int | None = Field(None, ge=1)
    """Remove all but the newest so many versions afterwards, with the files that none of those needs. None: remove none.
    A service needs the version that it serves, and the one before to roll back."""
    where: Where = "auto"
    """Run the steps as Ray tasks (`ray`), or on threads of this process (`here`); `auto` uses Ray if it is installed. The bytes are
    the same."""
    dry_run: bool = False
    """Say what would be written, and write and remove nothing."""


def run(job: CompactJob) -> dict[str, Any]:
    """Raises ConfigError, FormatError or Conflict; no version has changed then."""
    start = time.perf_counter()
    from ray_lir import storage
    from ray_lir.building.compact import compact_index
    from ray_lir.building.publishing import remove_versions
    from ray_lir.planning.preview import preview_compaction, shard_bytes
    from ray_lir.storage.manifest import manifest_digest

    if job.dry_run:
        return {"index": job.index, "dry_run": True, **preview_compaction(job.index, job.num_shards)}
    with session(runs_on_ray(job.where)) as map:
        compaction = compact_index(job.index, job.num_shards, map=map)
    removed = remove_versions(storage.absolute(job.index), job.keep_versions) if job.keep_versions else {}
    manifest = compaction.manifest
    return {
        "index": job.index,
        "version": compaction.version,
        "changed": compaction.changed,
        "num_docs": manifest.num_docs,
        "num_tokens": manifest.num_tokens,
        "num_shards": len(manifest.shards),
        "bytes": shard_bytes(manifest),
        **removed,
        "seconds": round(time.perf_counter() - start, 3),
        "manifest_digest": manifest_digest(manifest),
    }


if __name__ == "__main__":
    main(CompactJob, run)
