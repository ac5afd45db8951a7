"""Encode a corpus into a folder of token embeddings: scan, plan, encode chunk by chunk, and write the manifest last.

`encode_corpus` works in this process; `distributed.encode` distributes the same chunks over Ray. Finished files have names with a digest of
their content, and an entry in the folder `_progress`. So a killed run continues where it stopped. Two runs at once only do some work twice.
"""

import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import DOCS_PER_PART, EncoderConfig, canonical_json, digest
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.base.progress import track
from ray_lir.corpus.finished_chunks import PROGRESS, Destination, check_resumable
from ray_lir.corpus.records import Kept, corpus_files
from ray_lir.corpus.refused_rows import DEAD_LETTERS, log_refused, read_first_reasons
from ray_lir.corpus.scan import CHUNK_BYTES, Chunk, Corpus, CorpusFile, read_chunks, sample_texts, scan
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.folder import FOLDER, write_relation
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.encoder.chunk_encoder import STEM, ChunkEntry, encode_chunk, finished_chunks
from ray_lir.encoder.encoder import Encoder, resolve_checkpoint_name
from ray_lir.encoder.projection import fit_projection, parse_projection
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.storage.manifest import LATEST, MANIFEST, PROVENANCE, create_manifest, files_of, read_manifest, write_manifest

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
PACKAGES = ("torch", "transformers", "tokenizers", "pyarrow")
PROJECTION_SAMPLE = 512
"""Number of documents that a projection is fitted on."""
ON_CPU = {"device": "cpu", "precision": "float32"}
"""How the encoder is loaded if only its contract and tokenizer are needed."""
LARGEST_PART = 2**31 - 1
"""Bytes of embeddings that a Parquet column of one part can hold."""


@dataclass(frozen=True)
class Plan:
    """The work of an encoding run, sent to every worker.

    Attributes:
        corpus: The result of the scan.
        encoder: Checkpoint, device and precision.
        contract: The conventions that every worker's encoder must have.
        tokenizer: The tokenizer of the encoder.
        destination: Where chunks are written.
        done: Numbers of the chunks that an earlier run finished.
        relation: The relation encoder, written beside the embeddings; None if the scorer has none.
    """

    corpus: Corpus
    encoder: EncoderConfig
    contract: EncoderContract
    tokenizer: TextTokenizer
    destination: Destination
    done: frozenset[int]
    relation: Relation | None

    @property
    def files(self) -> list[CorpusFile]:
        """The files with unfinished chunks."""
        return [file for file in self.corpus.files if not self.done.issuperset(file.chunks)]


Spread = Callable[[Plan], Iterable[ChunkEntry]]


@dataclass(frozen=True)
class EncodeResult:
    """A finished folder of embeddings.

    Attributes:
        manifest: The manifest of the folder.
        num_chunks: Number of chunks of the corpus.
        num_skipped: Number of chunks that an earlier run had finished.
        docs_per_second: Encoding speed of this run; 0 if no chunk was left to encode.
    """

    manifest: EmbeddingsManifest
    num_chunks: int
    num_skipped: int
    docs_per_second: float


def encode_in_process(plan: Plan) -> Iterator[ChunkEntry]:
    """Encode the chunks one after another in this process."""
    encoder = Encoder.for_contract(plan.contract, plan.encoder)
    for file in plan.files:
        for chunk in read_chunks(file, plan.corpus.docs_per_chunk, plan.done):
            yield encode_chunk(chunk, encoder, plan.destination)


def encode_corpus(
    corpus: str,
    output: str,
    encoder: EncoderConfig = EncoderConfig(),
    *,
    contract: EncoderContract | None = None,
    docs_per_part: int = DOCS_PER_PART,
    kept: Kept = "first",
    map: Map = ray_lir.base.parallel.threads,
    spread: Spread = encode_in_process,
) -> EncodeResult:
    """Encode all documents of a corpus into a folder of token embeddings.

    Rows that are not documents go to dead letters with the reason, and the log counts them.

    Args:
        corpus: BEIR folder, JSONL, JSONL.gz or Parquet file, or a folder of such files; on a disk or an object store.
        output: Folder for the embeddings, on a disk or an object store.
        encoder: Checkpoint, changes to its conventions, device and precision.
        contract: Conventions to use instead of those of the checkpoint and of `encoder`, such as those of an index; None: no such
            conventions.
        docs_per_part: Rows of the corpus per chunk, the unit of work, and per Parquet file.
        kept: Which row with a repeated id becomes the document; the others are refused.
        map: Runs the scan of each file; a parallel map is possible.
        spread: Runs the chunks: `encode_in_process` or `distributed.encode.on_ray`. The manifest is the same.

    Returns:
        The finished folder. If the output already holds this corpus in this configuration, it stays unchanged.

    Raises:
        ConfigError: The corpus holds no document, or the output holds something else. No embeddings are written.
        Conflict: Another job with another corpus or configuration published its output first. That output stays unchanged.
        FormatError: A file of the corpus is truncated or damaged.
        IncompatibleError: The checkpoint's weights differ from those of `contract`.
    """
    corpus, output = storage.absolute(corpus), storage.absolute(output)
    _check_apart(corpus, output)
    if MANIFEST not in storage.list_names(output):
        storage.check_writable(output)
    records: list[dict[str, Any]] = []
    found = _scan(corpus, docs_per_part, map, records, kept)
    result = _encode_scanned(corpus, output, encoder, contract, docs_per_part, found, spread, records)
    log_refused(corpus, result.manifest.num_dead, read_first_reasons(output, result.manifest.dead_letters))
    return result


def _encode_scanned(
    corpus: str,
    output: str,
    encoder: EncoderConfig,
    contract: EncoderContract | None,
    docs_per_part: int,
    found: Corpus,
    spread: Spread,
    records: list[dict[str, Any]],
) -> EncodeResult:
    source = _load(encoder, contract)
    _check_encoder(encoder, source.contract, output, docs_per_part)
    identity = _identity(found, encoder, source.contract)
    destination = Destination(output, storage.join(output, PROGRESS, digest({**identity, "chunk_bytes": CHUNK_BYTES})[:16]))
    with storage.wrap_errors("write to", output):
        existing = _existing(destination, identity)
        if existing:
            logger.info("%s already holds this corpus in this configuration; nothing to do", output)
            warn_about_truncation(existing)
            return EncodeResult(existing, found.num_chunks, found.num_chunks, 0.0)
        try:
            if encoder.projection:
                source = _with_projection(encoder, found, destination, records)
            entries = {entry.number: entry for entry in finished_chunks(destination)}
            plan = _plan(found, encoder, source, destination, frozenset(entries))
            record = _encode(plan, spread, entries, records)
            manifest = _publish(plan, entries, identity, {"corpus": corpus, "stages": records})
        except Conflict:
            raise
        except Exception:
            existing = _existing(destination, identity)  # another run of the same job may have finished first and cleaned up
            if not existing:
                raise
            logger.info("%s was finished by another run of this job", output)
            return EncodeResult(existing, found.num_chunks, 0, 0.0)
        warn_about_truncation(manifest)
        return EncodeResult(manifest, found.num_chunks, len(plan.done), record["docs_per_second"])


def encode_rows(rows: Sequence[bytes], output: str, encoder: Encoder) -> EmbeddingsManifest:
    """Encode rows of a corpus with a loaded encoder into a new folder of token embeddings.

    Args:
        rows: JSON objects, as in a JSONL corpus, with distinct ids. They are one chunk, so they and their vectors must fit into memory.
        output: Folder or URL; a folder that exists is overwritten.
        encoder: The encoder.
    """
    chunk = Chunk(0, "rows", list(range(1, len(rows) + 1)), list(rows), frozenset())
    entry = encode_chunk(chunk, encoder, Destination(output, storage.join(output, PROGRESS)))
    manifest = _manifest(output, encoder.contract, [entry], encoder.relation)
    write_manifest(storage.join(output, MANIFEST), manifest)
    return manifest


def warn_about_truncation(manifest: EmbeddingsManifest) -> None:
    """Log a warning if documents were truncated."""
    if summary := manifest.truncation.describe(manifest.num_docs, manifest.contract.document_length):
        logger.warning("encode: %s", summary)


def identify(
    corpus: str,
    encoder: EncoderConfig,
    contract: EncoderContract,
    *,
    docs_per_part: int = DOCS_PER_PART,
    kept: Kept = "first",
    map: Map = ray_lir.base.parallel.threads,
) -> tuple[dict[str, Any], int]:
    """Return the configuration that the manifest of these embeddings would have, and the number of documents. No document is encoded.

    Args:
        corpus: The corpus, as for `encode_corpus`.
        encoder: Checkpoint and changes to its conventions.
        contract: The conventions.
        docs_per_part: Rows of the corpus per chunk.
        kept: Which row with a repeated id becomes the document.
        map: Runs the scan of each file.

    Raises:
        ConfigError: The corpus holds no document.
        FormatError: A file of the corpus is truncated or damaged.
    """
    found = _scan(storage.absolute(corpus), docs_per_part, map, [], kept)
    return _identity(found, encoder, contract), found.num_docs


def _load(encoder: EncoderConfig, contract: EncoderContract | None) -> Encoder:
    """Return an encoder for its contract and tokenizer only.

    Raises:
        IncompatibleError: The checkpoint's weights differ from those of the contract.
    """
    config = encoder.model_copy(update=ON_CPU)
    if contract is None:
        return Encoder.load(config)
    here = contract.model_copy(update={"checkpoint": resolve_checkpoint_name(encoder.checkpoint)})  # workers load the weights from there
    return Encoder.for_contract(here, config)


def _check_apart(corpus: str, output: str) -> None:
    """Raise ConfigError if the output is the corpus or lies in it: a second run would read it as part of the corpus."""
    outer, inner = (os.path.realpath(url) if storage.is_local(url) else url for url in (corpus, output))
    if f"{inner}/".startswith(f"{outer.rstrip('/')}/"):
        raise ConfigError(f"the output {output} lies inside the corpus {corpus}; choose a folder outside it")


def _scan(corpus: str, docs_per_part: int, map: Map, records: list[dict[str, Any]], kept: Kept) -> Corpus:
    with phase("scan", records) as record:
        found = scan(corpus_files(corpus), docs_per_part, watched(map, "scan"), kept)
        record.update(files=len(found.files), rows=found.num_rows, documents=found.num_docs)
    if not found.num_docs:
        why = f"no row is a document; the first problem: {found.first_bad}" if found.num_rows else "it is empty"
        raise ConfigError(f"{corpus} holds no documents ({why}); a row is a JSON object with the strings _id and text")
    return found


def _check_encoder(encoder: EncoderConfig, contract: EncoderContract, output: str, docs_per_part: int) -> None:
    """Raise ConfigError for settings that would fail only later."""
    dim = contract.dim
    if encoder.projection:
        dim = parse_projection(encoder.projection, contract.dim)
        if not storage.is_local(output):
            raise ConfigError(f"encoder.projection saves a checkpoint, which {output} cannot store; use a local output first")
    largest = LARGEST_PART // (2 * dim * contract.document_length)
    if docs_per_part > largest and not contract.windows:  # windows are written in small blocks
        raise ConfigError(
            f"{docs_per_part} documents of {contract.document_length} tokens in {dim} dimensions can exceed a part's limit of 2 GiB; "
            f"set docs_per_part to {largest} or less"
        )


def _identity(corpus: Corpus, encoder: EncoderConfig, contract: EncoderContract) -> dict[str, Any]:
    """Return everything that decides the embeddings. The checkpoint is identified by its content, not by its location."""
    settings = {**encoder.model_dump(mode="json", exclude={"checkpoint"}), "fingerprint": contract.fingerprint}
    rows = {"kept": corpus.kept} if corpus.num_repeated and corpus.kept != "first" else {}
    return {"corpus": corpus.fingerprint, "docs_per_part": corpus.docs_per_chunk, "encoder": settings, **rows}


def _existing(destination: Destination, identity: dict[str, Any]) -> EmbeddingsManifest | None:
    """Return the manifest if the output is finished, else None. Raise ConfigError if the output holds something else."""
    output = destination.output
    if MANIFEST in storage.list_names(output):
        manifest = read_manifest(storage.join(output, MANIFEST), EmbeddingsManifest, "jobs.encode")
        if manifest.config == identity:
            return manifest
        differs = _difference(manifest.config, identity)
        raise ConfigError(
            f"{output} holds embeddings of another corpus or configuration{differs}; choose another output, or remove it first"
        )
    check_resumable(destination, "embeddings", STEM, (FOLDER, DEAD_LETTERS, CHECKPOINT))
    return None


def _difference(existing: dict[str, Any], requested: dict[str, Any]) -> str:
    """Return which setting differs, for the message."""
    for name in requested:
        have, want = existing.get(name), requested[name]
        if have != want and isinstance(have, dict) and isinstance(want, dict):
            return _difference(have, want)
        if have != want:
            return f" ({name} is {str(have)[:24]} there and {str(want)[:24]} here)"
    return ""


def _with_projection(encoder: EncoderConfig, corpus: Corpus, destination: Destination, records: list[dict[str, Any]]) -> Encoder:
    """Return the encoder with a projection fitted on a sample of the corpus. It is saved in the output's checkpoint folder and reused
    from there."""
    assert encoder.projection is not None
    folder = storage.join(destination.output, CHECKPOINT)
    if not storage.exists(folder):
        with phase("projection", records) as record, storage.attempt_folder(destination.progress) as scratch:
            texts = sample_texts(corpus, PROJECTION_SAMPLE)
            assert encoder.projection is not None
            whole = Encoder.load(encoder.model_copy(update={"precision": "float32", "windows": None, "passages": False}))
            fitted = fit_projection(whole, texts, encoder.projection)
            fitted.save(scratch / CHECKPOINT)
            storage.publish(scratch / CHECKPOINT, folder)
            record.update(documents=len(texts), dim=fitted.contract.dim)
    return Encoder.load(encoder.model_copy(update={"checkpoint": folder, **ON_CPU}))


def _plan(corpus: Corpus, encoder: EncoderConfig, source: Encoder, destination: Destination, done: frozenset[int]) -> Plan:
    config = encoder.model_copy(update={"checkpoint": source.contract.checkpoint, "projection": None})
    return Plan(corpus, config, source.contract, source.tokenizer, destination, done, source.relation)


def _encode(plan: Plan, spread: Spread, entries: dict[int, ChunkEntry], records: list[dict[str, Any]]) -> dict[str, Any]:
    """Encode all chunks without an entry, and add their entries."""
    before = sum(_num_docs(entry) for entry in entries.values())
    if entries:
        logger.info("encode: continues after %d of %d chunks, %d documents", len(entries), plan.corpus.num_chunks, before)
    with phase("encode", records) as record:
        for entry in track(spread(plan), "encode", plan.corpus.num_docs, _num_docs, initial=before):
            entries[entry.number] = entry
        parts = [entry.part for entry in entries.values() if entry.part]
        record.update(documents=sum(part.num_docs for part in parts) - before, bytes=sum(part.size for part in parts))
    record["docs_per_second"] = round(record["documents"] / max(record["seconds"], 1e-3), 1)
    return record


def _num_docs(entry: ChunkEntry) -> int:
    return entry.part.num_docs if entry.part else 0


def _publish(plan: Plan, entries: dict[int, ChunkEntry], identity: dict[str, Any], provenance: dict[str, Any]) -> EmbeddingsManifest:
    """Write provenance and then the manifest, which publishes the embeddings; remove the progress folder."""
    output = plan.destination.output
    ordered = [entries[number] for number in range(plan.corpus.num_chunks)]
    manifest = _manifest(output, plan.contract, ordered, plan.relation, num_repeated=plan.corpus.num_repeated, config=identity)
    versions = {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
    if LATEST in storage.list_names(output):
        raise Conflict(f"another job built an index in {output} while this one ran; choose another output")
    try:
        create_manifest(storage.join(output, MANIFEST), manifest)
    except FileExistsError:
        manifest = _published_first(plan.destination, manifest)
    storage.write_bytes(storage.join(output, PROVENANCE), canonical_json({**provenance, "versions": versions}))
    with suppress(*storage.store_errors()):  # another run of the same job may be working in it
        storage.remove_tree(storage.join(output, PROGRESS))
    return manifest


def _manifest(
    output: str, contract: EncoderContract, entries: Sequence[ChunkEntry], relation: Relation | None, **fields: Any
) -> EmbeddingsManifest:
    """Return the manifest of finished chunks, with the further fields, and write the relation encoder beside them."""
    parts = tuple(entry.part for entry in entries if entry.part)
    dead = tuple(entry.dead for entry in entries if entry.dead)
    return EmbeddingsManifest(
        contract=contract,
        dim=contract.dim,
        num_docs=sum(part.num_docs for part in parts),
        num_tokens=sum(part.num_tokens for part in parts),
        num_dead=sum(letter.num_rows for letter in dead),
        num_windows=sum(entry.num_windows for entry in entries),
        parts=parts,
        dead_letters=dead,
        **TruncationCounts.sum(entry.truncation for entry in entries if entry.truncation).fields,
        relation=write_relation(output, relation),
        **fields,
    )


def _published_first(destination: Destination, manifest: EmbeddingsManifest) -> EmbeddingsManifest:
    """Return the manifest that another run of this job published first.

    Raises:
        Conflict: Another job published it. The files of this job are removed.
    """
    output = destination.output
    first = read_manifest(storage.join(output, MANIFEST), EmbeddingsManifest, "jobs.encode")
    if first.config == manifest.config:
        return first
    for name in {entry.name for entry in files_of(manifest)} - {entry.name for entry in files_of(first)}:
        storage.remove(storage.join(output, name))
    storage.remove_tree(destination.progress)
    raise Conflict(
        f"another job finished in {output} while this one ran: it holds embeddings of another corpus or configuration"
        f"{_difference(first.config, manifest.config)}, and this job's were not published; choose another output"
    )
