"""Writer: encodes the writes of the log in batches, and publishes each batch as the next version of the index.

Any number of services may run a writer over one index. Only one of them can create the next version, and each version records the log
position that it holds. So a writer that was too late, or was killed, starts again from that position, and no write is applied twice.
"""

import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ray_lir import storage
from ray_lir.base.config import EncoderConfig, canonical_json
from ray_lir.building.publishing import finish_publishing, remove_versions
from ray_lir.building.replace_shards import replace_shards, shards_to_replace
from ray_lir.building.update import update_index
from ray_lir.building.workspace import WORKSPACES
from ray_lir.corpus.refused_rows import DEAD_LETTERS
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version
from ray_lir.storage.concurrent_writes import sole_writer
from ray_lir.storage.manifest import write_with_digest_name
from ray_lir.storage.write_log import FOLDER, LoggedBatch, read_batches

from .query_encoder import Load, load_encoder

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder  # only this deployment and the query encoder load torch

logger = logging.getLogger("ray.serve")

MAX_OPERATIONS = 1000
"""Documents and deletions of one version, except that a batch of the log is never divided."""
CLEAN_S = 60.0
"""Seconds between removals of old versions."""
SCRATCH = "writes"
"""Folder below the workspaces of a local index with the embeddings of the documents that are being added."""


@dataclass(frozen=True)
class Published:
    """The latest version of the index after a call of `Writer.publish`.

    Attributes:
        version: Its number.
        position: Position of the write log up to which it holds all writes.
        num_refused: Documents that this call could not encode. They are in the index's folder dead_letters, with the reason.
    """

    version: int
    position: int
    num_refused: int = 0


@dataclass(frozen=True)
class MaintenanceOptions:
    """When a writer compacts the index, and how many versions it keeps.

    Attributes:
        max_deltas: Delta shards above which some shards are merged.
        compact_fraction: Fraction of deleted documents, or of delta shards, above which all shards are merged.
        keep_versions: Number of newest versions to keep, and for a minute those before.
    """

    max_deltas: int = 8
    compact_fraction: float = 0.2
    keep_versions: int = 10


class Writer:
    """Publishes the writes of one index.

    Args:
        root: Folder or URL of the index.
        checkpoint: Folder of the encoder's checkpoint. None: the folder in the index's contract.
        options: When to compact, and how many versions to keep.
        load: Loads an encoder; None: this writer loads one of its own.

    Raises:
        IncompatibleError: The index was built with another encoder than the checkpoint.
    """

    def __init__(self, root: str, checkpoint: str | None, options: MaintenanceOptions = MaintenanceOptions(), load: Load | None = None):
        self.root = root
        self.checkpoint = checkpoint
        self.options = options
        self._maintaining = asyncio.Lock()
        self._cleaned: tuple[float, int] | None = None
        self._load = load or load_encoder
        self._encoders: dict[str, Encoder] = {}
        self._publishing = asyncio.Lock()
        self._encoder(read_version(root))

    async def publish(self) -> Published:
        """Publish the next writes of the log, and return the latest version. Without new writes, nothing is published.

        Raises:
            Conflict: Another process published a change meanwhile, or is publishing one; call again.
            ConfigError: The disk or the store failed.
            FormatError: The log or the index is damaged.
        """
        async with self._publishing:
            return await asyncio.to_thread(self._publish)

    async def maintain(self, needed: Collection[int]) -> None:
        """Compact the index if it has many delta shards or deleted documents, and remove old versions. Writes are published meanwhile.

        Args:
            needed: Versions to keep beside the newest ones.

        Raises:
            Conflict: Another process compacted the same shards.
            ConfigError: The disk or the store failed.
            FormatError: The index is damaged.
        """
        async with self._maintaining:
            await asyncio.to_thread(self._maintain, needed)

    async def ready(self) -> None:
        """Return as soon as the encoder is loaded."""

    def _maintain(self, needed: Collection[int]) -> None:
        number = latest_version(self.root)
        manifest = read_version(self.root, number)
        if old := shards_to_replace(manifest, self.options.max_deltas, self.options.compact_fraction):
            start = time.monotonic()
            number = replace_shards(self.root, old)
            logger.info("version %d replaces %d shards, %.2f s", number, len(old), time.monotonic() - start)
        if self._cleaned is None:
            self._cleaned = (time.monotonic(), number)
        cleaned_at, newest = self._cleaned
        if time.monotonic() - cleaned_at > CLEAN_S:  # a version stays for that long at least, for readers that are opening it
            self._cleaned = (time.monotonic(), number)
            remove_versions(self.root, self.options.keep_versions + number - newest, needed)

    def _publish(self) -> Published:
        with sole_writer(storage.join(self.root, FOLDER)):
            number = finish_publishing(self.root)
            manifest = read_version(self.root, number)
            position, batches = read_batches(self.root, manifest.log_position, MAX_OPERATIONS)
            if position == manifest.log_position:
                return Published(number, position)
            rows = last_operations(batches)
            deleted = [doc_id for doc_id, row in rows.items() if row is None]
            with self._embeddings(manifest, [row for row in rows.values() if row is not None]) as (folder, refused):
                update = update_index(self.root, folder, deleted, allow_empty_texts=True, log_position=position)
            if refused:
                letters = b"".join(canonical_json(each) + b"\n" for each in refused)
                kept = write_with_digest_name(self.root, f"{DEAD_LETTERS}/writes-{position:020d}", ".jsonl", letters)
                logger.error("%d documents of the write log cannot be encoded; they are in %s", len(refused), kept.name)
            return Published(update.version, position, len(refused))

    @contextmanager
    def _embeddings(self, manifest: IndexManifest, rows: list[bytes]) -> Iterator[tuple[str | None, list[dict[str, str]]]]:
        """Yield the folder with the embeddings of documents, and the documents that cannot be encoded, with the reason of each."""
        if not rows:
            yield None, []
            return
        from ray_lir.encoder.corpus_encoder import encode_rows

        encoder = self._encoder(manifest)
        refused: list[dict[str, str]] = []
        with _scratch_folder(self.root) as folder:
            try:
                encode_rows(rows, folder, encoder)
            except Exception:
                refused = _refused(rows, encoder)
                if not refused:
                    raise
                bad = {each["row"] for each in refused}
                rows = [row for row in rows if row.decode() not in bad]
                if rows:
                    encode_rows(rows, folder, encoder)
            yield folder if rows else None, refused

    def _encoder(self, manifest: IndexManifest) -> "Encoder":
        contract = manifest.contract
        if contract.fingerprint not in self._encoders:
            config = EncoderConfig(checkpoint=self.checkpoint or contract.checkpoint)
            self._encoders = {contract.fingerprint: self._load(contract, config)}
        return self._encoders[contract.fingerprint]


def last_operations(batches: Sequence[LoggedBatch]) -> dict[str, bytes | None]:
    """Return the last operation on each document id, in the order of the log: the document as JSON, or None for a deletion."""
    rows: dict[str, bytes | None] = {}
    for write in (write for batch in batches for write in batch.writes):
        for doc_id in write.delete:
            rows.pop(doc_id, None)
            rows[doc_id] = None
        for document in write.documents:
            rows.pop(document["_id"], None)
            rows[document["_id"]] = json.dumps(document, ensure_ascii=False).encode()
    return rows


def _refused(rows: Sequence[bytes], encoder: "Encoder") -> list[dict[str, str]]:
    """Return the rows that the encoder cannot encode alone, with the reason. Raises the error if it cannot encode anything."""
    from ray_lir.encoder.corpus_encoder import encode_rows

    encoder.encode_documents(["Is the encoder working?"])
    refused = []
    with tempfile.TemporaryDirectory(prefix="ray_lir-") as folder:
        for row in rows:
            try:
                encode_rows([row], folder, encoder)
            except OSError:
                raise
            except Exception as error:
                refused.append({"reason": f"{type(error).__name__}: {' '.join(str(error).split()):.300}", "row": row.decode()})
    return refused


@contextmanager
def _scratch_folder(index: str) -> Iterator[str]:
    """Yield an empty folder on a disk. Files of a killed writer in a local index's folder are removed."""
    if not storage.is_local(index):
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as folder:
            yield folder
        return
    folder = storage.join(index, WORKSPACES, SCRATCH)
    storage.remove_tree(folder)
    try:
        yield folder
    finally:
        storage.remove_tree(folder)
