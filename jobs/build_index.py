"""Builds an index from a folder of token embeddings that jobs.encode wrote."""

import time
from typing import Any

from ray_lir import storage
from ray_lir.base.config import IndexConfig
from ray_lir.distributed.workers import TaskWorkers

from .cli import main
from .where import JobSize, Where, check_where, runs_on_ray, session


class BuildIndexJob(IndexConfig):
    """Builds an index from a folder of token embeddings. If it is killed, run it again, and it continues."""

    embeddings: str
    """Folder or URL of embeddings that jobs.encode wrote."""
    output: str
    """Folder or URL of the index."""
    workers: TaskWorkers = TaskWorkers()
    where: Where = "auto"
    """ray: run as Ray tasks. here: run on threads of this process. auto: in this process, unless a --workers flag is set, RAY_ADDRESS names
    a cluster, or the embeddings have more than 10 million tokens. The bytes are the same, except those that GPUs compute."""
    dry_run: bool = False
    """Only predict the size of the index and the time of the build; write nothing."""


def run(job: BuildIndexJob) -> dict[str, Any]:
    """Build the index and return its sizes.

    Raises:
        ConfigError: A setting or path is wrong.
        Conflict: Another job wrote the same output.
        FormatError: The embeddings are damaged.
    """
    start = time.perf_counter()
    from ray_lir.building.build import build_index
    from ray_lir.embeddings.manifest import EmbeddingsManifest
    from ray_lir.planning.preview import preview_build
    from ray_lir.storage.manifest import MANIFEST, manifest_digest, read_manifest

    config = IndexConfig(**{name: getattr(job, name) for name in IndexConfig.model_fields})
    if job.dry_run:
        return {"output": job.output, "dry_run": True, **preview_build(job.embeddings, job.output, config)}
    check_where(job.where)
    source = read_manifest(storage.join(storage.absolute(job.embeddings), MANIFEST), EmbeddingsManifest, "jobs.encode")
    on_ray = runs_on_ray(job.where, "build_index", JobSize.of_tokens(source.num_tokens), job.workers)
    with session(on_ray, job.workers) as map:
        manifest = build_index(job.embeddings, job.output, config, map=map)
    num_bytes = sum(file.size for shard in manifest.shards for file in shard.files) + manifest.codec.size
    return {
        "output": job.output,
        "num_docs": manifest.num_documents,
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
