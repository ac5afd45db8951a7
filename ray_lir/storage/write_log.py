"""The write log of an index: accepted writes, kept until a version of the index holds them.

| file below the index | holds |
|---|---|
| `writes/<position>.json` | one batch of writes; positions count from 1 without gaps |
| `writes/keys/<position>.json` | idempotency keys of removed batches, up to this position |

A batch is one file. It is created with its whole content in one atomic step and, on a disk, synced together with its folder. So a killed
process or a lost machine never leaves half of a batch, and several processes may append: only one of them can create a position, and the
others read that batch and take the next one.

A batch is removed some time after its writes were published. Until then its position is taken, even for an appender that last looked a
minute ago. The manifest of each version says up to which position it holds the writes (`IndexManifest.log_position`).
"""

import hashlib
import logging
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import Field, ValidationError

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json, parse_json
from ray_lir.base.errors import Conflict, FormatError
from ray_lir.storage.concurrent_writes import create_bytes

logger = logging.getLogger(__name__)

FOLDER = "writes"
KEYS = "keys"
FRESH_S = 30.0
"""An appender that has not looked at the log for this long lists it before it appends."""
KEPT_S = 120.0
"""Seconds that a batch stays after its writes were published. Longer than FRESH_S, so that no appender can use a removed position again."""
KEY_S = 3600.0
"""Seconds that an idempotency key is remembered, at least."""
SKIP = b"skip"
"""Content of a file that replaces a lost batch by hand: a batch without writes."""


class LoggedWrite(Config):
    """One write request, as the log keeps it. Its deletions come before its documents."""

    key: str | None = None
    """Idempotency key of the client; None: the request has none."""
    body_digest: str
    """sha256 (hex) of what the client sent, to compare requests with the same key."""
    answer: dict[str, Any]
    """The answer to the client, without the position."""
    delete: tuple[str, ...] = ()
    """Ids of documents to delete."""
    documents: tuple[dict[str, Any], ...] = ()
    """Documents to add: `_id`, `title`, `text` and `metadata`."""

    @property
    def num_operations(self) -> int:
        """Documents to add, and ids to delete."""
        return len(self.documents) + len(self.delete)


class LoggedBatch(Config):
    """The writes of one file of the log."""

    id: str
    """Random, so that no two batches have equal content."""
    time: float
    """Unix time of the append, in seconds."""
    writes: tuple[LoggedWrite, ...] = ()


class RememberedKey(Config):
    """An idempotency key with the answer to its first request."""

    position: int
    body_digest: str
    answer: dict[str, Any]
    time: float
    """Unix time of the first request, in seconds."""


class RememberedKeys(Config):
    """The idempotency keys of removed batches."""

    keys: dict[str, RememberedKey] = Field(default_factory=dict)
    time: float
    """Unix time of the newest batch, in seconds."""


@dataclass(frozen=True)
class Appended:
    """A write that is durable.

    Attributes:
        position: Position of its batch.
        answer: The answer to the client; for a repeated request, that to the first one.
        is_new: False if an earlier request has the same idempotency key, so that nothing was appended.
    """

    position: int
    answer: dict[str, Any]
    is_new: bool


@dataclass(frozen=True)
class _Size:
    operations: int
    num_bytes: int


class WriteLog:
    """Appends to the write log of one index. Safe in threads, and beside other processes that append to the same log.

    Args:
        index: Folder or URL of the index.
        published: Returns the log position of the latest version of the index.
        clock: Returns the time in seconds; it must not stand still while the process is stopped.
    """

    def __init__(self, index: str, published: Callable[[], int], clock: Callable[[], float] = time.monotonic):
        self.root = storage.join(index, FOLDER)
        self.last = 0
        self._published = published
        self._clock = clock
        self._lock = threading.Lock()
        self._looked_at: float | None = None
        self._keys: dict[str, RememberedKey] = {}
        self._key_files: dict[int, float] = {}
        self._sizes: dict[int, _Size] = {}
        self._unpublished = _Size(0, 0)
        self._seen_published: deque[tuple[float, int]] = deque()

    def append(self, writes: Sequence[LoggedWrite]) -> list[Appended | Conflict]:
        """Append writes as one batch, and return when it is durable.

        Args:
            writes: Write requests of any number of clients, in order.
        Returns:
            One result a write: `Appended`, or a Conflict if an earlier request has the same key and another body.
        Raises:
            ConfigError: The disk or the store failed. It is unknown whether the batch is in the log.
            FormatError: A batch of the log is missing or damaged.
        """
        with self._lock, storage.wrap_errors("write to", self.root):
            while True:
                start = self._clock()
                if self._looked_at is None or start - self._looked_at > FRESH_S:
                    self._look()
                batch = LoggedBatch(id=uuid.uuid4().hex, time=time.time(), writes=tuple(self._new(writes)))
                if not batch.writes:
                    return self._results(writes, batch)
                data = encode_batch(batch)
                try:
                    create_bytes(batch_url(self.root, self.last + 1), data)
                except FileExistsError:
                    self._read_on()
                    continue
                if storage.is_local(self.root):
                    _sync_folder(self.root)
                if self._clock() - start > KEPT_S - FRESH_S:
                    self._looked_at = None
                    raise OSError("the disk or store took too long, and it is unknown whether the write was kept")
                self._looked_at = start
                self._remember(self.last + 1, batch, len(data))
                return self._results(writes, batch)

    def unpublished(self) -> tuple[int, int]:
        """Return the number of operations that no version holds yet, as far as this process knows, and the bytes of their batches."""
        return self._unpublished.operations, self._unpublished.num_bytes

    def look(self) -> None:
        """Read what other processes have appended.

        Raises:
            ConfigError: The disk or the store failed.
            FormatError: A batch of the log is missing or damaged.
        """
        with self._lock, storage.wrap_errors("read", self.root):
            if self._looked_at is None:
                self._look()
            else:
                self._read_on()

    def note_published(self, position: int) -> None:
        """Record that the latest version holds the writes up to this position."""
        with self._lock:
            self._forget_sizes(position)
            if not self._seen_published or position > self._seen_published[-1][1]:
                self._seen_published.append((self._clock(), position))

    def remove_published(self) -> int:
        """Remove batches that were published more than KEPT_S ago, and return how many. Their idempotency keys are kept in one file.

        Raises:
            ConfigError: The disk or the store failed.
        """
        with self._lock, storage.wrap_errors("write to", self.root):
            end = 0
            while self._seen_published and self._seen_published[0][0] <= self._clock() - KEPT_S:
                end = self._seen_published.popleft()[1]
            positions = [position for position in _positions(self.root) if position <= end]
            if not positions:
                return 0
            self._read_on()
            keys = {key: found for key, found in self._keys.items() if positions[0] <= found.position <= end}
            kept = RememberedKeys(keys=keys, time=time.time())
            storage.write_bytes(batch_url(storage.join(self.root, KEYS), end), canonical_json(kept.model_dump(mode="json")))
            self._key_files[end] = kept.time
            for position in positions:
                storage.remove(batch_url(self.root, position))
            self._expire_keys(end)
            return len(positions)

    def _look(self) -> None:
        """Read the new entries of the log. Afterwards `last` is its last position."""
        start = self._clock()
        published, known = self._published(), self.last if self._looked_at is not None else 0
        positions = _positions(self.root)
        for position in positions:
            with suppress(FileNotFoundError):  # another process has just removed it; its keys are in a file that is read below
                if position > known:
                    self._remember(position, *_read_batch(self.root, position))
        for position in _positions(storage.join(self.root, KEYS)):
            if position not in self._key_files:
                self._read_keys(position)
        removed = max(self._key_files, default=0)
        self.last = max(self.last, published, removed)
        missing = set(range(max(published, removed) + 1, self.last + 1)).difference(positions)
        if missing:
            raise _missing(self.root, min(missing))
        self._forget_sizes(published)
        self._looked_at = start

    def _read_on(self) -> None:
        """Read the batches after `last`."""
        start = self._clock()
        while True:
            try:
                found = _read_batch(self.root, self.last + 1)
            except FileNotFoundError:
                break
            self._remember(self.last + 1, *found)
        self._looked_at = start

    def _read_keys(self, position: int) -> None:
        url = batch_url(storage.join(self.root, KEYS), position)
        try:
            kept = RememberedKeys.model_validate(parse_json(storage.read_bytes(url)))
        except FileNotFoundError:  # another process removed it
            return
        except ValueError:
            fix = "remove the file: a request that is repeated with one of its keys is then applied again"
            raise FormatError(url, "idempotency keys", "damaged content", fix) from None
        self._keys = {**kept.keys, **self._keys}
        self._key_files[position] = kept.time

    def _remember(self, position: int, batch: LoggedBatch, num_bytes: int) -> None:
        for write in batch.writes:
            if write.key is not None:
                known = RememberedKey(position=position, body_digest=write.body_digest, answer=write.answer, time=batch.time)
                self._keys.setdefault(write.key, known)
        size = _Size(sum(write.num_operations for write in batch.writes), num_bytes)
        self._sizes[position] = size
        self._unpublished = _Size(self._unpublished.operations + size.operations, self._unpublished.num_bytes + num_bytes)
        self.last = max(self.last, position)

    def _new(self, writes: Sequence[LoggedWrite]) -> Iterator[LoggedWrite]:
        """Yield the writes without a key, and the first write of each unknown key."""
        seen: set[str] = set()
        for write in writes:
            if write.key is None:
                yield write
            elif write.key not in self._keys and write.key not in seen:
                seen.add(write.key)
                yield write

    def _results(self, writes: Sequence[LoggedWrite], batch: LoggedBatch) -> list[Appended | Conflict]:
        results: list[Appended | Conflict] = []
        new = {id(write) for write in batch.writes}
        for write in writes:
            if id(write) in new or write.key is None:
                results.append(Appended(self.last, write.answer, True))
                continue
            known = self._keys[write.key]
            if known.body_digest == write.body_digest:
                results.append(Appended(known.position, known.answer, False))
            else:
                results.append(Conflict(f"the idempotency key {write.key!r:.80} was used with another request; send a new key"))
        return results

    def _forget_sizes(self, published: int) -> None:
        self._sizes = {position: size for position, size in self._sizes.items() if position > published}
        sizes = self._sizes.values()
        self._unpublished = _Size(sum(size.operations for size in sizes), sum(size.num_bytes for size in sizes))

    def _expire_keys(self, newest: int) -> None:
        """Forget keys that are older than KEY_S. The newest file stays, because its name says which positions are taken."""
        oldest = time.time() - KEY_S
        for position in [position for position, at in self._key_files.items() if at < oldest and position < newest]:
            storage.remove(batch_url(storage.join(self.root, KEYS), position))
            del self._key_files[position]
        self._keys = {key: found for key, found in self._keys.items() if found.time >= oldest}


def read_batches(index: str, after: int, max_operations: int) -> tuple[int, list[LoggedBatch]]:
    """Read the batches that follow a position.

    Args:
        index: Folder or URL of the index.
        after: Position; 0 for the beginning of the log.
        max_operations: Reading ends after the batch that reaches this number of operations.
    Returns:
        The position of the last batch (`after` if there is none), and the batches.
    Raises:
        ConfigError: The disk or the store failed.
        FormatError: A batch is missing or damaged.
    """
    root = storage.join(index, FOLDER)
    batches: list[LoggedBatch] = []
    operations, position = 0, after
    with storage.wrap_errors("read", root):
        while operations < max_operations:
            try:
                batch, _ = _read_batch(root, position + 1)
            except FileNotFoundError:
                if batches or not (later := [each for each in _positions(root) if each > position + 1]):
                    break
                position = max(position, *_positions(storage.join(root, KEYS)), 0)
                if later[0] > position + 1:
                    raise _missing(root, position + 1) from None
                logger.warning("%s: writes %d to %d were published in a version that is no longer there", root, after + 1, position)
                continue
            batches.append(batch)
            operations += sum(write.num_operations for write in batch.writes)
            position += 1
    return position, batches


def batch_url(root: str, position: int) -> str:
    """Return the URL of the file with this position below `root`."""
    return storage.join(root, f"{position:020d}.json")


def encode_batch(batch: LoggedBatch) -> bytes:
    """Return the content of a batch's file: a line with the sha256 of the rest, and the batch as JSON."""
    body = canonical_json(batch.model_dump(mode="json"))
    return hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def _read_batch(root: str, position: int) -> tuple[LoggedBatch, int]:
    """Return a batch and its size in bytes. Raises FileNotFoundError if there is none, and FormatError if it is damaged."""
    url = batch_url(root, position)
    data = storage.read_bytes(url)
    if data.strip() == SKIP:
        return LoggedBatch(id="", time=0.0), len(data)
    sha256, _, body = data.partition(b"\n")
    try:
        if hashlib.sha256(body).hexdigest().encode() != sha256:
            raise ValueError("the digest differs")
        return LoggedBatch.model_validate(parse_json(body)), len(data)
    except (ValueError, ValidationError) as error:
        found = f"{len(data)} damaged bytes" if isinstance(error, ValidationError) else f"{len(data)} bytes with another digest"
        fix = "restore the file; or write the word skip into it, and its writes are lost"
        raise FormatError(url, "a batch of writes", found, fix) from None


def _positions(root: str) -> list[int]:
    """Return the positions of the files in a folder of the log, ascending."""
    stems = (name.removesuffix(".json") for name in storage.list_names(root) if name.endswith(".json"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit())


def _missing(root: str, position: int) -> FormatError:
    fix = "restore the file; or make it with the word skip as its content, and its writes are lost"
    return FormatError(batch_url(root, position), "a batch of writes", "no such file", fix)


def _sync_folder(root: str) -> None:
    """Make the names in a local folder durable."""
    handle = os.open(storage.local_path(root), os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
