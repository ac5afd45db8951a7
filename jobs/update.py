"""Adds documents to an index and deletes documents from it, as its next version."""

import time
from contextlib import suppress
from typing import Any

from pydantic import Field

from ray_lir import storage
from ray_lir.base.config import DOCS_PER_PART, Config, EncoderConfig, digest, parse_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.ids import BadId, id_text
from ray_lir.base.parallel import Map
from ray_lir.building.publishing import is_same
from ray_lir.building.update import Added, Update, advice, change_of, drift_of, log_dead_letters, update_index
from ray_lir.building.workspace import WORKSPACES, remove_workspaces
from ray_lir.corpus.datasets import find_corpus
from ray_lir.corpus.records import ID_FIELDS, corpus_files, read_documents
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.corpus.text_lines import read_lines
from ray_lir.distributed.workers import Workers
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version
from ray_lir.planning.preview import preview_update
from ray_lir.storage.manifest import MANIFEST, manifest_digest

from .cli import main
from .evaluate import QueryEncoderConfig
from .where import JobSize, Where, check_where, encoding, runs_on_ray, session


class UpdateJob(Config):
    """Adds, replaces and deletes documents. If it is killed, run it again, and it continues.

    docs/operations.md explains versions, drift and compaction.
    """

    index: str
    """Folder or URL of the index."""
    add: str | None = None
    """Documents to add: a corpus as for jobs.encode, or embeddings that it wrote. A document with an existing id replaces the old one. If
    an id is repeated, its last row counts. Invalid rows are counted and stored in the index's folder dead_letters."""
    delete: str | None = None
    """File with ids of documents to delete: one a line, or JSON lines with _id. Unknown ids are counted."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()
    workers: Workers = Workers()
    """With gpus_per_worker, the tasks that compress the new documents compute on GPUs, too."""
    docs_per_part: int = Field(DOCS_PER_PART, ge=1)
    """Rows of the corpus in one Parquet file of embeddings."""
    where: Where = "auto"
    """ray: run as Ray tasks. here: run on threads of this process. auto: in this process, unless a --workers flag is set, RAY_ADDRESS names
    a cluster, or more than 10 million tokens (40 MB of text) are added. The bytes are the same."""
    dry_run: bool = False
    """Only predict what would be added, replaced and deleted; write nothing."""


def run(job: UpdateJob) -> dict[str, Any]:
    """Update the index and return counts and sizes.

    Raises:
        ConfigError: A setting, path or id file is wrong. After this and the following errors nothing has changed.
        Conflict: Another job changed the index at the same time.
        FormatError: The index or the documents are damaged.
        IncompatibleError: The encoder is not the one that the index was built with.
    """
    start = time.perf_counter()
    check_where(job.where)
    manifest = read_version(storage.absolute(job.index))
    ids = read_ids(job.delete) if job.delete else []
    size = JobSize(0, f"{len(ids):,} deletions")
    if job.add is not None and is_embeddings(job.add):
        size = JobSize.of_tokens(Added.read(job.add).source.num_tokens)
    elif job.add is not None:
        corpus = find_corpus(job.add)
        job = job.model_copy(update={"add": corpus})
        size = JobSize.of_corpus(corpus_files(corpus))  # reports a wrong path before a cluster starts
    if job.dry_run:
        return {"index": job.index, "dry_run": True, **_preview(job, ids)}
    on_ray = runs_on_ray(job.where, "update", size, job.workers)
    with session(on_ray, job.workers) as map:
        update = _update(job, manifest, ids, on_ray, map)
    return _result(job, update) | {"seconds": round(time.perf_counter() - start, 3)}


def _update(job: UpdateJob, manifest: IndexManifest, ids: list[str], on_ray: bool, map: Map) -> Update:
    if job.add is None or is_embeddings(job.add):
        return update_index(job.index, job.add, ids, map=map)
    from ray_lir.encoder.corpus_encoder import encode_corpus, identify

    encoder = EncoderConfig(**job.encoder.model_dump() | {"checkpoint": job.encoder.checkpoint or manifest.contract.checkpoint})
    identity, _ = identify(job.add, encoder, manifest.contract, docs_per_part=job.docs_per_part, kept="last", map=map)
    if manifest.change and is_same(manifest, change_of(digest(identity), ids)):
        log_dead_letters(job.index, manifest.change)
        return Update(manifest, latest_version(job.index), manifest.change)
    folder = storage.join(storage.absolute(job.index), WORKSPACES, f"embeddings-{digest(identity)[:16]}")
    spread = encoding(on_ray, job.workers, encoder)
    encode_corpus(
        job.add, folder, encoder, contract=manifest.contract, docs_per_part=job.docs_per_part, kept="last", map=map, spread=spread
    )
    update = update_index(job.index, folder, ids, map=map)
    remove_workspaces(storage.absolute(job.index), lambda name: name == storage.base_name(folder))
    return update


def _preview(job: UpdateJob, ids: list[str]) -> dict[str, Any]:
    if job.add is None:
        return preview_update(job.index, [], ids)
    if is_embeddings(job.add):
        added = Added.read(job.add)
        return preview_update(job.index, added.doc_ids(), ids, added.source.num_tokens)
    refused = RefusedRows()
    new_ids = [document.doc_id for document in read_documents(job.add, refused)]
    return preview_update(job.index, new_ids, ids) | {"num_dead": refused.num_rows, "num_repeated": refused.num_repeated}


def is_embeddings(url: str) -> bool:
    """Return whether a folder holds embeddings rather than a corpus."""
    return MANIFEST in storage.list_names(url)


def read_ids(url: str) -> list[str]:
    """Read document ids from a file.

    A line is an id, or a JSON object with _id, doc_id or id (a string or a whole number). Blank lines are skipped. Ids are not
    trimmed; only the line end is removed.

    Raises:
        ConfigError: The file cannot be read, a line is not UTF-8, or a JSON object has no id.
    """
    return [_read_id(url, number, line) for number, line in read_lines(url)]


def _read_id(url: str, number: int, raw: bytes) -> str:
    try:
        line = raw.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{url} is not text in UTF-8 (line {number}, byte {error.start}); write one id a line") from None
    if not line.lstrip(" \t").startswith("{"):
        return line
    try:
        fields = parse_json(line)
    except ValueError:
        fields = {}
    for name in ID_FIELDS:
        with suppress(BadId):
            if found := id_text(fields.get(name)):
                return found
    raise ConfigError(
        f"line {number} of {url} has no id; write one id a line, or a JSON object with {ID_FIELDS[0]}, a string or a whole number"
    )


def _result(job: UpdateJob, update: Update) -> dict[str, Any]:
    manifest, change = update.manifest, update.change
    drift, hint = drift_of(manifest), advice(manifest)
    return {
        "index": job.index,
        "version": update.version,
        "num_added": change.num_added,
        "num_replaced": change.num_replaced,
        "num_deleted": change.num_deleted,
        "num_unknown": change.num_unknown,
        "num_dead": change.num_dead,
        "num_repeated": change.num_repeated,
        "dead_letters": change.dead_letters and storage.join(job.index, change.dead_letters),
        "added_tokens": change.added_tokens,
        **change.truncation.report,
        "num_docs": manifest.num_documents,
        "num_tokens": manifest.num_tokens,
        "num_shards": len(manifest.shards),
        "num_deltas": sum(shard.is_delta for shard in manifest.shards),
        **({"num_zero_rows": change.num_zero_rows} if change.num_zero_rows else {}),
        "mean_residual_norm": manifest.mean_residual_norm,
        "held_out_residual_norm": manifest.held_out_residual_norm,
        "added_residual_norm": change.mean_residual_norm,
        "drift": drift and round(drift, 4),
        "advice": hint,
        "manifest_digest": manifest_digest(manifest),
    }


if __name__ == "__main__":
    main(UpdateJob, run)
