"""Shows and verifies the content of a folder: embeddings, an index, a training, an export or a checkpoint."""

from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel, Field

from ray_lir import storage
from ray_lir.base.config import Config, EncoderConfig, parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.embeddings.contract import EncoderContract, check_same_encoder
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.index.manifest import INDEX_FOLDERS, IndexManifest, ShardEntry, listed_names
from ray_lir.index.versions import latest_version, read_version, version_numbers
from ray_lir.storage.manifest import LATEST, MANIFEST, PROVENANCE, check_file, files_of, manifest_digest, read_manifest
from ray_lir.training.manifest import TrainingManifest

from .cli import main
from .export_manifest import ExportManifest

CHECKPOINT_FILES = {"modules.json", "config.json", "artifact.metadata"}
MADE_BY: dict[str, tuple[type[EmbeddingsManifest | TrainingManifest | ExportManifest], str]] = {
    "embeddings": (EmbeddingsManifest, "jobs.encode"),
    "training": (TrainingManifest, "jobs.train"),
    "export": (ExportManifest, "jobs.export"),
}


class InspectJob(Config):
    """Shows and verifies the content of a folder: embeddings, an index, a training, an export or a checkpoint."""

    folder: str
    """Folder or URL (s3://bucket/folder)."""
    version: int | None = Field(None, ge=1)
    """For an index: the version to show. None: the latest."""
    verify: bool = True
    """Read every file and compare its sha256. false: compare only sizes."""


def run(job: InspectJob) -> dict[str, Any]:
    """Verify a folder and return a description of its content.

    Raises:
        ConfigError: The folder holds nothing that ray_lir writes, or cannot be read.
        FormatError: A manifest or a file is missing, truncated or altered. All such files are printed first.
        IncompatibleError: A training's checkpoint is not the one that its manifest describes.
    """
    folder = storage.absolute(job.folder)
    with storage.wrap_errors("read", folder):
        result = _kind(folder)(folder, job)
    return result


def _kind(folder: str) -> Callable[[str, InspectJob], dict[str, Any]]:
    names = set(storage.list_names(folder))
    if LATEST in names:
        return _index
    if MANIFEST in names:
        return _published
    if CHECKPOINT_FILES & names or folder.endswith(".dnn"):
        return _checkpoint
    if not names and storage.exists(folder) and not storage.is_folder(folder):
        raise ConfigError(f"{folder} is a file; give the folder that holds it")
    if not names:
        raise ConfigError(f"{folder} is empty or does not exist; check the path")
    unfinished = sorted(name for name in names if name.startswith("_"))
    hint = f"{unfinished[0]} belongs to an unfinished job; run the job again" if unfinished else "give a folder that a job wrote"
    raise ConfigError(f"{folder} holds no index, embeddings, training, export or checkpoint; {hint}")


def _index(root: str, job: InspectJob) -> dict[str, Any]:
    version = latest_version(root) if job.version is None else job.version
    manifest = read_version(root, version)
    versions = version_numbers(root)
    listed = {name for number in versions for name in listed_names(read_version(root, number))}
    there = {f"{part}/{name}" for part in INDEX_FOLDERS for name in storage.list_names(storage.join(root, part))}
    changed = _drift(manifest) if manifest.added_tokens else {}
    return {
        **_head(root, manifest),
        **({} if manifest.num_whole_docs is None else {"documents": manifest.num_whole_docs, "passages": manifest.num_docs}),
        "version": version,
        "versions": versions,
        "nbits": manifest.nbits,
        **({"residual_bytes": manifest.residual_bytes} if manifest.residual_bytes else {}),
        "centroids": manifest.num_centroids,
        "deleted": sum(shard.num_deleted for shard in manifest.shards),
        **manifest.truncation.report,
        **({"num_zero_rows": manifest.num_zero_rows} if manifest.num_zero_rows else {}),
        "unit_norms": manifest.unit_norms,
        **({"lexical": {"stemmer": manifest.lexical.stemmer, "num_terms": manifest.lexical.num_terms}} if manifest.lexical else {}),
        "mean_residual_norm": round(manifest.mean_residual_norm, 4),
        "held_out_residual_norm": manifest.held_out_residual_norm,
        **changed,
        **({"change": manifest.change.model_dump(exclude_none=True)} if manifest.change else {}),
        "bytes_per_token": round(_sizes(manifest)["bytes"] / max(1, manifest.num_tokens), 1),
        "shards": [_shard(shard) for shard in manifest.shards],
        "not_listed": sorted(there - listed),
        **_provenance(storage.join(root, "versions", str(version))),
        **_checked(root, manifest, job),
    }


def _drift(manifest: IndexManifest) -> dict[str, Any]:
    from ray_lir.building.update import advice, drift_of  # this import loads all building code

    return {"drift": drift_of(manifest), "advice": advice(manifest)}


def _shard(shard: ShardEntry) -> dict[str, Any]:
    counts = {"documents": shard.num_live, "deleted": shard.num_deleted, "tokens": shard.live_tokens}
    return {"name": shard.name, "delta": shard.is_delta, **counts, **_sizes(shard)}


def _published(root: str, job: InspectJob) -> dict[str, Any]:
    """Describes a folder with one manifest: embeddings, a training or an export."""
    url = storage.join(root, MANIFEST)
    try:
        kind = parse_json(storage.read_bytes(url)).get("kind")
    except (ValueError, AttributeError) as error:
        raise FormatError(url, "a manifest of ray_lir", f"damaged content ({error})", "restore the file, or run the job again") from None
    if kind not in MADE_BY:
        raise FormatError(url, f"a manifest of {', '.join(MADE_BY)}", f"kind {kind!r}", "give a folder that a job wrote")
    manifest_type, job_name = MADE_BY[kind]
    manifest = read_manifest(url, manifest_type, job_name)
    result = {**_head(root, manifest), **_provenance(root), **_checked(root, manifest, job)}
    if isinstance(manifest, EmbeddingsManifest):
        if manifest.contract.windows:
            result["num_windows"] = manifest.num_windows
        if precision := (manifest.config.get("encoder") or {}).get("precision"):  # external embeddings have none
            result["precision"] = precision
        result |= {"parts": len(manifest.parts), "rows_refused": manifest.num_dead, **manifest.truncation.report}
    if isinstance(manifest, TrainingManifest):
        result |= {"steps": manifest.num_steps, "final_loss": manifest.final_loss}
        if storage.is_local(root):
            found = _contract(storage.join(root, manifest.contract.checkpoint))
            check_same_encoder(found, manifest.contract, "the checkpoint", "its manifest")
    return result


def _checkpoint(folder: str, _: InspectJob) -> dict[str, Any]:
    if not storage.is_local(folder):
        raise ConfigError(f"{folder} is not on a local disk; copy the checkpoint to a local disk and inspect the copy")
    contract = _contract(folder)
    settings = contract.model_dump(mode="json", exclude_defaults=True, exclude={"checkpoint", "skip_tokens", "query_skip_tokens"})
    return {
        "folder": folder,
        "kind": "checkpoint",
        "fingerprint": contract.fingerprint,
        "tokens_left_out": len(contract.skip_tokens),
        **settings,
    }


def _contract(folder: str) -> EncoderContract:
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load, and only checkpoints need it

    return Encoder.load(EncoderConfig(checkpoint=folder, device="cpu")).contract


def _head(root: str, manifest: Any) -> dict[str, Any]:
    contract = manifest.contract
    sizes = {"documents": "num_docs", "tokens": "num_tokens", "dim": "dim"}
    return {
        "folder": root,
        "kind": manifest.kind,
        "manifest_digest": manifest_digest(manifest),
        "checkpoint": contract.checkpoint,
        "fingerprint": contract.fingerprint,
        "scorer": contract.scorer,
        **({"windows": {"length": contract.document_length, **contract.windows.model_dump()}} if contract.windows else {}),
        **{name: getattr(manifest, field) for name, field in sizes.items() if hasattr(manifest, field)},
    }


def _sizes(part: BaseModel) -> dict[str, int]:
    entries = list(files_of(part))
    return {"files": len(entries), "bytes": sum(entry.size for entry in entries)}


def _provenance(folder: str) -> dict[str, Any]:
    """Seconds and counts of each phase, if provenance.json exists. A damaged provenance.json is not an error."""
    url = storage.join(folder, PROVENANCE)
    try:
        found = parse_json(storage.read_bytes(url))
    except (FileNotFoundError, ValueError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {"made": found.get("stages") or [found]}


def _checked(root: str, manifest: BaseModel, job: InspectJob) -> dict[str, Any]:
    """Compares every listed file, prints the damaged ones, and raises the error of the first."""
    damaged = list(_damaged(root, manifest, job.verify))
    if damaged:
        print(*(f"damaged  {error}" for error in damaged), sep="\n", flush=True)
        first = damaged[0]
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise FormatError(first.path, first.expected, first.found + more, first.fix)
    return {**_sizes(manifest), "verified": "sha256" if job.verify else "sizes"}


def _damaged(root: str, manifest: BaseModel, verify: bool) -> Iterator[FormatError]:
    for entry in files_of(manifest):
        try:
            check_file(root, entry, content=verify)
        except FormatError as error:
            yield error


if __name__ == "__main__":
    main(InspectJob, run, positional="folder")
