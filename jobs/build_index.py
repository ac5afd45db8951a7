"""Builds an index from a folder of token embeddings that jobs.encode wrote."""

import time
from typing import Any

from ray_lir.base.config import IndexConfig

from .cli import main
from .where import Where, runs_on_ray, session


class BuildIndexJob(IndexConfig):
    """Builds an index from a folder of token embeddings; run again after a kill, it continues."""

    embeddings: str
    """Folder or URL that jobs.encode wrote."""
    output: str
    """Folder of the index."""
    where: Where = "auto"
    """Run the steps as Ray tasks (`ray`), or on threads of this process (`here`); `auto` uses Ray if it is installed. The bytes are
    the same."""
    dry_run: bool = False
    """Say how many bytes the index would have and how long it would take, and write nothing."""


def run(job: BuildIndexJob) -> dict[str, Any]:
    start = time.perf_counter()
    from ray_lir.building.build import build_index
    from ray_lir.planning.preview import preview_build
    from ray_lir.storage.manifest import manifest_digest

    config = IndexConfig(**{name: getattr(job, name) for name in IndexConfig.model_fields})
    if job.dry_run:
        return {"output": job.output, "dry_run": True, **preview_build(job.embeddings, job.output, config)}
    with session(runs_on_ray(job.where)) as map:
        manifest = build_index(job.embeddings, job.output, config, map=map)
    num_bytes = sum(file.size for shard in manifest.shards for file in shard.files) + manifest.codec.size
    return {
        "output": job.output,
        "num_docs": manifest.num_docs,
        "num_tokens": manifest.num_tokens,
        "num_shards": len(manifest.shards),
        "num_centroids": manifest.num_centroids,
        "nbits": manifest.nbits,
        "bytes": num_bytes,
        "bytes_per_token": round(num_bytes / manifest.num_tokens, 1),
        **({"num_zero_rows": manifest.num_zero_rows} if manifest.num_zero_rows else {}),
        "unit_norms": manifest.unit_norms,
        "mean_residual_norm": round(manifest.mean_residual_norm, 4),
        "seconds": round(time.perf_counter() - start, 1),
        "manifest_digest": manifest_digest(manifest),
    }


if __name__ == "__main__":
    main(BuildIndexJob, run)
