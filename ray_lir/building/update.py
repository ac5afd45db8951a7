"""Updating an index: added documents become delta shards with the existing codec, and deleted documents get tombstones.

An added document replaces the document with the same id. The result is the next version of the index; the version before does not change.
Statistics leave deleted documents out, so plans, cuts and scores equal those of an index built from the same documents with the same
codec.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.arguments import id_set
from ray_lir.base.config import digest
from ray_lir.base.errors import ConfigError, Conflict, IncompatibleError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.building.assemble import assemble
from ray_lir.building.build import CLUSTER_SIZES, TOKENS_PER_SHARD, check_unused, codec_of, settings_of
from ray_lir.building.compress import Compressed, compress
from ray_lir.building.lexical import count_terms
from ray_lir.building.publishing import UpdateIdentity, config_of, is_same, overtaken_by, publish, read_parent, workspace_of
from ray_lir.building.workspace import WORKSPACES, Build, Workspace, remove_workspaces
from ray_lir.corpus.refused_rows import DEAD_LETTERS
from ray_lir.embeddings.contract import EncoderContract, check_same_encoder
from ray_lir.embeddings.folder import content_digest, documents_table, write_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import read_doc_ids, read_texts
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.index import documents
from ray_lir.index.arrays import array_bytes
from ray_lir.index.lexical import add_up, read_statistics, write_statistics
from ray_lir.index.manifest import DELTA, Change, IndexManifest, LexicalIndex, ShardEntry, change_in
from ray_lir.index.tombstones import Deletion, delete_from_shard
from ray_lir.index.versions import latest_version, read_cluster_sizes, read_version
from ray_lir.storage.manifest import MANIFEST, check_file, manifest_digest, read_manifest, write_with_digest_name

logger = logging.getLogger(__name__)

DRIFT = 1.25
"""Drift above which a new build is advised: such residuals lose about a third of a bit (measurements: docs/operations.md#drift)."""
FEWEST_ADDED_TOKENS = 500
"""Smallest number of added tokens from which the drift is estimated."""


@dataclass(frozen=True)
class Update:
    """The result of an update.

    Attributes:
        manifest: The manifest of the latest version.
        version: Number of that version.
        change: What the update did.
    """

    manifest: IndexManifest
    version: int
    change: Change


def update_index(
    index: storage.PathOrUrl,
    add: storage.PathOrUrl | TokenEmbeddings | None = None,
    delete: Iterable[str] | None = (),
    *,
    contract: EncoderContract | None = None,
    texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    allow_empty_texts: bool = False,
    log_position: int | None = None,
    map: Map = ray_lir.base.parallel.threads,
) -> Update:
    """Add and delete documents, and publish the result as the next version.

    After a kill, the same call continues. Repeated after its end, the call does nothing while its version is the latest.

    Args:
        index: Folder of the index, on a disk or an object store.
        add: Folder that jobs.encode or save_embeddings wrote, or token embeddings in memory, of the index's encoder. None adds nothing.
        delete: Ids of documents in any order. Ids that the index does not hold are counted.
        contract: For embeddings in memory: the contract of their encoder (`encoder.contract`). None only if the index was built from
            embeddings without a contract.
        texts: For embeddings in memory: one text a document.
        titles: For embeddings in memory: one title a document.
        metadata: For embeddings in memory: a dict of JSON values for each document.
        allow_empty_texts: Allow documents without texts in an index with texts.
        log_position: Position in the write log after the update. The new version records it, even if no document changes.
            None: the position of the version before stays.
        map: Where the steps run: threads of this process, plain `map`, or distributed.ray_map. The bytes are the same.
    Returns:
        The latest version and the counts of the update.
    Raises:
        ConfigError: There is nothing to do, or the added documents do not fit the index, or lack texts or a contract. Nothing has changed.
        Conflict: Another change of the index was published meanwhile. This one has changed nothing.
        IncompatibleError: The added embeddings come from another encoder.
        FormatError: A file of the index or of the embeddings is missing or damaged.
    """
    index = storage.absolute(index)
    ids = id_set("delete", () if delete is None else delete)
    if isinstance(add, TokenEmbeddings):
        contract = contract or _contract_of(index)
        table = documents_table(add.doc_ids, titles, texts, metadata)
        folder = storage.join(index, WORKSPACES, f"embeddings-{content_digest(add, table, contract)}")
        with_texts = texts is not None or titles is not None
        version = latest_version(index)

        def update() -> Update:
            write_embeddings(folder, add, table, contract)
            return update_index(index, folder, ids, allow_empty_texts=allow_empty_texts or with_texts, log_position=log_position, map=map)

        try:
            return update()
        except Conflict:
            raise
        except Exception as error:
            if latest_version(index) == version:
                raise
            # Another process that runs the same update may have finished first and removed the folder that both use.
            write_embeddings(folder, add, table, contract)
            if not is_same(read_version(index), change_of(Added.read(folder).identity, ids, log_position)):
                raise Conflict(f"another change of {index} was published meanwhile, and this one was not; run it again") from error
            return update()
        finally:
            remove_workspaces(index, lambda name: name == storage.base_name(folder))
    check_unused("update_index", contract=contract, texts=texts, titles=titles, metadata=metadata)
    if add is None and not ids and log_position is None:
        raise ConfigError("there is nothing to add and nothing to delete; give documents to add, or ids to delete")
    added = Added.read(add) if add is not None else None
    change = change_of(added.identity if added else None, ids, log_position)
    number, parent = read_parent(index, change)
    if is_same(parent, change):
        logger.info("this update made version %d of %s already; nothing to do", number, index)
        log_dead_letters(index, change_in(parent))
        return Update(parent, number, change_in(parent))
    if added:
        added.check(parent)
        if not allow_empty_texts and not added.has_texts() and _has_texts(index, parent):
            raise ConfigError(
                f"the added documents have neither texts nor titles, and documents of {index} have texts; "
                "give texts=, or allow_empty_texts=True to add vectors alone"
            )
    storage.check_writable(index)
    workspace = workspace_of(index, number, parent, change)
    try:
        with storage.wrap_errors("write to", index):
            return _update(index, number, parent, added, ids, change, workspace, map)
    except Exception:
        done = overtaken_by(index, number, change)
        if done is None:
            raise
        return Update(done, change_in(done).parent + 1, change_in(done))


@dataclass(frozen=True)
class Added:
    """A folder of token embeddings to add.

    Attributes:
        folder: Folder or URL.
        source: Its manifest.
    """

    folder: str
    source: EmbeddingsManifest

    @classmethod
    def read(cls, folder: storage.PathOrUrl) -> "Added":
        """Read the manifest of a folder of embeddings.

        Raises:
            FormatError: There is none, or it is damaged.
        """
        folder = storage.absolute(folder)
        return cls(folder, read_manifest(storage.join(folder, MANIFEST), EmbeddingsManifest, "jobs.encode"))

    @property
    def identity(self) -> str:
        """Digest of the corpus and the encoder; it is known before the corpus is encoded."""
        return digest(self.source.config) if self.source.config else manifest_digest(self.source)

    def check(self, parent: IndexManifest) -> None:
        """Check that all files are there and come from the index's encoder.

        Raises:
            IncompatibleError: They come from another encoder.
            FormatError: A file is missing or cut.
        """
        if self.source.dim != parent.dim:
            raise IncompatibleError(
                f"the added embeddings have {self.source.dim} dimensions and the index {parent.dim}; use the encoder of the index"
            )
        check_same_encoder(self.source.contract, parent.contract, "the encoder of the added embeddings", "the index")
        for part in self.source.parts:
            check_file(self.folder, part)

    def has_texts(self) -> bool:
        """Return whether the embeddings come from a corpus, or a document has a text or a title."""
        if self.source.config:
            return True
        tables = (read_texts(storage.join(self.folder, part.name)) for part in self.source.parts)
        return any(any(table.column(name).to_pylist()) for table in tables for name in ("text", "title"))

    def doc_ids(self) -> list[str]:
        """Return the ids of all documents.

        Raises:
            ConfigError: An id occurs twice.
        """
        found = [doc_id for part in self.source.parts for doc_id in read_doc_ids(storage.join(self.folder, part.name))]
        if len(set(found)) < len(found):
            twice = next(doc_id for doc_id, count in Counter(found).items() if count > 1)
            raise ConfigError(f"the document {twice!r} is added twice; leave one of them out")
        return found

    def build(self, index: str, parent: IndexManifest, workspace: Workspace) -> Build:
        """Return the inputs and settings of the build of delta shards.

        Args:
            index: Folder or URL of the index.
            parent: Manifest of the version to update.
            workspace: Scratch folder of the update.
        """
        source = self.source
        return Build(
            embeddings=self.folder,
            contract=source.contract,
            parts=tuple(part for part in source.parts if part.num_docs),
            output=index,
            config=settings_of(parent),
            dim=parent.dim,
            num_docs=source.num_docs,
            num_tokens=source.num_tokens,
            num_shards=min(source.num_docs, max(1, -(-source.num_tokens // TOKENS_PER_SHARD))),
            num_centroids=parent.num_centroids,
            workspace=workspace,
        )


def _contract_of(index: str) -> EncoderContract:
    """Return the contract for embeddings without one. Raises ConfigError if the index holds embeddings of a known encoder."""
    contract = read_version(index).contract
    if contract.weights_digest:
        raise ConfigError(
            f"{index} holds embeddings of the encoder {contract.checkpoint}, and the embeddings to add have no contract; "
            "give contract=encoder.contract"
        )
    return contract


def _has_texts(index: str, manifest: IndexManifest) -> bool:
    """Return whether any document of the index has a text. Reading stops at the first batch that holds one."""
    urls = (storage.join(index, shard.name, documents.FILE) for shard in manifest.shards)
    return any(any(batch.column("text").to_pylist()) for url in urls for batch in documents.read_batches(url, ["text"]))


def change_of(added: str | None, ids: Sequence[str], log_position: int | None = None) -> UpdateIdentity:
    """Return the identity of an update.

    Args:
        added: Identity of the added embeddings; None if nothing is added.
        ids: Ids to delete.
        log_position: Position of the write log that the update reaches; None if it applies no writes of the log.
    """
    return UpdateIdentity(add=added, delete=digest(sorted(ids)) if ids else None, log_position=log_position)


def log_dead_letters(index: str, change: Change) -> None:
    """Log where the refused rows of an update are, if there are any."""
    if change.dead_letters:
        repeated = f" ({change.num_repeated} of them replaced by a later row with the same id)" if change.num_repeated else ""
        logger.warning("update: %d refused rows%s are kept in %s", change.num_dead, repeated, storage.join(index, change.dead_letters))


def drift_of(manifest: IndexManifest) -> float | None:
    """Return the mean residual norm of all added tokens divided by that of held-out documents; None if there are too few tokens."""
    expected, added = manifest.held_out_residual_norm, manifest.added_residual_norm
    return added / expected if expected and added is not None and manifest.added_tokens >= FEWEST_ADDED_TOKENS else None


def advice(manifest: IndexManifest) -> str | None:
    """Return what to do about the drift; None if there is nothing to do."""
    drift = drift_of(manifest)
    if drift is None or drift <= DRIFT:
        return None
    return f"the added documents fit the codec badly (residuals {drift:.2f} times as long): build the index anew from embeddings"


def _update(
    index: str,
    number: int,
    parent: IndexManifest,
    added: Added | None,
    ids: list[str],
    change: UpdateIdentity,
    workspace: Workspace,
    map: Map,
) -> Update:
    records: list[dict[str, Any]] = []
    new_ids = added.doc_ids() if added else []
    deletions = _delete(index, parent, sorted({*ids, *new_ids}), map, records)
    gone = {doc_id for deletion in deletions for doc_id in deletion.doc_ids}
    counts = Change(
        parent=number,
        kind="update",
        num_added=len(new_ids),
        num_replaced=len(gone.intersection(new_ids)),
        num_deleted=len(gone.difference(new_ids)),
        num_unknown=len(set(ids) - gone),
    )
    if not gone and not added and change.log_position is None:
        return Update(parent, number, counts)
    sizes = read_cluster_sizes(index, parent).copy()
    for deletion in deletions:
        sizes[deletion.centroids] -= deletion.sizes
    shards = tuple(deletion.entry for deletion in deletions)
    deltas: tuple[ShardEntry, ...] = ()
    compressed = None
    if added:
        compressed, deltas = _add(index, number, parent, added, workspace, map, records)
        sizes += compressed.sizes
        shards += deltas
        counts = counts.model_copy(
            update={
                "added_tokens": compressed.counts.tokens,
                "mean_residual_norm": compressed.mean_residual_norm if compressed.counts.tokens else None,
                "num_zero_rows": compressed.counts.zero_rows,
                "num_dead": added.source.num_dead,
                "num_repeated": added.source.num_repeated,
                "dead_letters": _keep_dead_letters(index, number + 1, added),
                **added.source.truncation.fields,
            }
        )
    manifest = parent.model_copy(
        update={
            "num_docs": sum(shard.num_live for shard in shards),
            "num_tokens": sum(shard.live_tokens for shard in shards),
            **({} if parent.num_whole_docs is None else {"num_whole_docs": parent.num_whole_docs + len(new_ids) - len(gone)}),
            "cluster_sizes": write_with_digest_name(index, f"{CLUSTER_SIZES}-{number + 1:05d}", ".npy", array_bytes(sizes)),
            "shards": shards,
            "lexical": _lexical(index, number, parent, deletions, deltas, map, records),
            "config": config_of(parent, change),
            "change": counts,
            **(TruncationCounts.sum((parent.truncation, counts.truncation)).fields if added else {}),
            "num_zero_rows": parent.num_zero_rows + counts.num_zero_rows,
            "unit_norms": parent.unit_norms and (compressed is None or compressed.counts.unit),
            **_norms(parent, counts),
            **({} if change.log_position is None else {"log_position": change.log_position}),
        }
    )
    publish(index, manifest, records)
    log_dead_letters(index, counts)
    return Update(manifest, number + 1, counts)


def _delete(index: str, parent: IndexManifest, ids: list[str], map: Map, records: list[dict[str, Any]]) -> list[Deletion]:
    with phase("delete", records) as record:
        deletions = list(watched(map, "delete")(partial(delete_from_shard, index, ids), parent.shards))
        record.update(asked=len(ids), documents=sum(len(deletion.doc_ids) for deletion in deletions))
    return deletions


def _add(
    index: str, number: int, parent: IndexManifest, added: Added, workspace: Workspace, map: Map, records: list[dict[str, Any]]
) -> tuple[Compressed, tuple[ShardEntry, ...]]:
    """Return the statistics of the compressed documents, and the delta shards."""
    build = added.build(index, parent, workspace)
    codec, assigner = codec_of(index, parent)
    compressed = compress(build, codec, assigner, map, records)
    shards = assemble(build, compressed.part_tokens, map, records, f"{DELTA}{number + 1:05d}-")
    numbered = (shard.model_copy(update={"first_document": parent.num_numbers + shard.first_document}) for shard in shards)
    return compressed, tuple(numbered)


def _lexical(
    index: str,
    number: int,
    parent: IndexManifest,
    deletions: Sequence[Deletion],
    deltas: Sequence[ShardEntry],
    map: Map,
    records: list[dict[str, Any]],
) -> LexicalIndex | None:
    """Return the lexical statistics of the new version; None if the index has no lexical postings."""
    statistics = read_statistics(index, parent)
    if statistics is None:
        return None
    added = [count_terms(index, deltas, map, records)] if deltas else []
    removed = [deletion.terms for deletion in deletions if deletion.terms is not None]
    return write_statistics(index, statistics.stemmer, add_up([statistics.counts, *added], removed), f"-{number + 1:05d}")


def _keep_dead_letters(index: str, version: int, added: Added) -> str | None:
    """Copy the refused rows of the corpus into one file of the index, and return its name; None if there are none."""
    for letter in added.source.dead_letters:
        check_file(added.folder, letter)
    rows = b"".join(storage.read_bytes(storage.join(added.folder, letter.name)) for letter in added.source.dead_letters)
    return write_with_digest_name(index, f"{DEAD_LETTERS}/version-{version:05d}", ".jsonl", rows).name if rows else None


def _norms(parent: IndexManifest, counts: Change) -> dict[str, Any]:
    """Return the number of tokens added so far, and their mean residual norm, as fields of the manifest."""
    tokens = parent.added_tokens + counts.added_tokens
    if counts.mean_residual_norm is None:
        return {}
    total = parent.added_tokens * (parent.added_residual_norm or 0.0) + counts.added_tokens * counts.mean_residual_norm
    return {"added_tokens": tokens, "added_residual_norm": total / tokens}
