"""`PUT /documents`, `POST /documents`, `DELETE /documents`: accepts writes into the log, and has them published and served."""

import asyncio
import json
import logging
import math
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray_lir.api.writes import MAX_DOCUMENT_BYTES, RefusedDocument, WriteFacts, WriteRequest, WriteResponse
from ray_lir.base.config import digest
from ray_lir.base.errors import ConfigError, Conflict, InvalidDocument, Overloaded, WritesUnavailable
from ray_lir.corpus.records import ID_FIELDS, BadRow, Document, parse_document, repeat_reason
from ray_lir.index.versions import latest_version, read_version
from ray_lir.storage.write_log import Appended, LoggedWrite, WriteLog

from ..metrics import Metrics
from ..transport.protocol import WRITER, Transport
from ..workers.batching import Batcher

if TYPE_CHECKING:
    from ..workers.writer import Published

logger = logging.getLogger("ray.serve")

MAX_UNPUBLISHED_BYTES = 256 << 20
MAX_APPEND_BYTES = 4 << 20
"""Bytes of concurrent requests that are appended as one batch."""
PUBLISH_TIMEOUT_S = 1800.0
CLEAN_S = 60.0
"""Seconds between removals of published batches."""
USUAL_CONFLICTS = 10
"""Conflicts with other changes, one after another, that are not reported as failures."""
RECENT_S = 60.0
"""Seconds of history from which the rate of publishing is computed."""
LONGEST_WAIT_S = 30
"""Longest Retry-After and longest pause after failures, in seconds."""
NAMED = 3
"""Refused documents that a message names."""


@dataclass(frozen=True)
class WriteOptions:
    """Settings of the writes of a service.

    Attributes:
        visible_s: Seconds from the answer of a write until searches see it that the service aims at.
        max_unpublished: Documents and deletions that may wait for publication before further writes are refused.
        pinned: Whether the service starts with an older version, so that it does not follow new ones.
    """

    visible_s: float = 5.0
    max_unpublished: int = 10_000
    pinned: bool = False


class Writes:
    """Accepts the writes of one index, and follows the versions that its writer publishes.

    Args:
        root: Folder or URL of the index.
        transport: Calls the writer.
        options: Settings.
        metrics: Counts and times the writes.
        serve: Serves a version, if the service follows new versions, and returns the log position of the served version.
        needed: Returns the versions that the service may serve again.
    """

    def __init__(
        self,
        root: str,
        transport: Transport,
        options: WriteOptions,
        metrics: Metrics,
        serve: Callable[[int], Awaitable[int]],
        needed: Callable[[], list[int]],
    ):
        self.transport = transport
        self.options = options
        self.metrics = metrics
        self._root = root
        self._serve = serve
        self._needed = needed
        self._maintaining: asyncio.Task[None] | None = None
        self._log = WriteLog(root, lambda: read_version(root).log_position)
        self._append = Batcher[LoggedWrite, Appended](self._log.append, _num_bytes, MAX_APPEND_BYTES)
        self._waiting_operations = 0
        self._to_publish = asyncio.Event()
        self._invisible: deque[tuple[int, float]] = deque()
        self._published: deque[tuple[float, int]] = deque()
        self._cleaned_at = time.monotonic()
        self._latest = (0, 0)

    async def accept(self, request: WriteRequest, key: str | None) -> WriteResponse:
        """Append a request to the log, and return when it is durable.

        Args:
            request: Documents to add and ids to delete.
            key: Idempotency key; None: the request is a new one.
        Raises:
            InvalidDocument: No document is usable, or one is not and the request is not partial. Nothing is accepted.
            Conflict: The key was used with another request.
            Overloaded: Too many writes wait for publication.
            WritesUnavailable: The disk or store of the log failed.
        """
        documents, refused = check_documents(request.documents)
        if refused and (not request.partial or not (documents or request.delete)):
            raise InvalidDocument(f"{_summary(refused)}; correct them or leave them out")
        answer = WriteResponse(accepted=len(documents), deleted=len(request.delete), refused=refused, position=0)
        write = LoggedWrite(
            key=key,
            body_digest=digest(request.model_dump(mode="json")),
            answer=answer.model_dump(mode="json", exclude={"position"}),
            delete=tuple(request.delete),
            documents=tuple(documents),
        )
        self._check_room()
        self._waiting_operations += write.num_operations
        try:
            appended = await self._append(write)
        except ConfigError as error:
            raise WritesUnavailable(f"{error}; until then no write is accepted") from error
        finally:
            self._waiting_operations -= write.num_operations
        if appended.is_new:
            self.metrics.written(answer.accepted, answer.deleted)
            self._invisible.append((appended.position, time.monotonic()))
            self._to_publish.set()
        return WriteResponse.model_validate({**appended.answer, "position": appended.position})

    async def follow(self) -> None:
        """Have writes published, and serve the new versions, until the task is cancelled."""
        failures = 0
        while True:
            started = time.monotonic()
            try:
                await self._publish()
                failures = 0
            except Exception as error:
                failures += 1
                await self._after_failure(error, failures)
                continue
            await self._pause(started)

    @property
    def unpublished(self) -> int:
        """Accepted documents and deletions that no version holds yet."""
        return self._log.unpublished()[0]

    def facts(self, log_position: int, following: bool) -> WriteFacts:
        """Return the state of the writes.

        Args:
            log_position: Position of the write log that the served version has reached.
            following: Whether new versions are served.
        """
        return WriteFacts(log_position=log_position, unpublished=self.unpublished, visible_s=self.options.visible_s, following=following)

    async def _publish(self) -> None:
        """Have the writer publish if there are writes, and serve the latest version."""
        self._to_publish.clear()
        await asyncio.to_thread(self._log.look)
        before, _ = self._log.unpublished()
        if before:
            deadline = asyncio.get_running_loop().time() + PUBLISH_TIMEOUT_S
            published: Published = await self.transport.call(WRITER, deadline, "publish")
            version, position = published.version, published.position
            self.metrics.unencodable(published.num_refused)
        else:
            version, position = await asyncio.to_thread(_latest, self._root, *self._latest)
        self._latest = (version, position)
        await asyncio.to_thread(self._log.note_published, position)
        after, _ = self._log.unpublished()
        self._published.append((time.monotonic(), before - after))
        self.metrics.unpublished(after)
        if after:
            self._to_publish.set()
        self._note_visible(await self._serve(version))
        if before and (self._maintaining is None or self._maintaining.done()):
            self._maintaining = asyncio.create_task(self._maintain())
        if time.monotonic() - self._cleaned_at > CLEAN_S:
            self._cleaned_at = time.monotonic()
            await asyncio.to_thread(self._log.remove_published)

    async def _after_failure(self, error: Exception, failures: int) -> None:
        """Wait before the next attempt. A few conflicts with other changes are normal; other errors, and many conflicts, are reported."""
        if isinstance(error, Conflict) and failures <= USUAL_CONFLICTS:
            logger.info("writes: %s", error)
            await asyncio.sleep(random.uniform(0.05, 0.3))
            return
        self.metrics.publish_failed()
        logger.warning("writes were not published or served, attempt %d: %s: %s", failures, type(error).__name__, error)
        await asyncio.sleep(min(LONGEST_WAIT_S, 0.25 * 2 ** min(failures, 10)))

    async def _maintain(self) -> None:
        """Have the writer compact the index and remove old versions, if there is a need."""
        try:
            deadline = asyncio.get_running_loop().time() + PUBLISH_TIMEOUT_S
            await self.transport.call(WRITER, deadline, "maintain", self._needed())
        except Exception as error:
            logger.warning("the index was not compacted: %s: %s", type(error).__name__, error)

    async def _pause(self, started: float) -> None:
        """Wait for writes, but at most until other services could have published some; leave time for a batch to gather."""
        try:
            async with asyncio.timeout(self.options.visible_s / 4):
                await self._to_publish.wait()
        except TimeoutError:
            return
        await asyncio.sleep(max(0.0, started + self.options.visible_s / 10 - time.monotonic()))

    def _note_visible(self, position: int) -> None:
        now = time.monotonic()
        while self._invisible and self._invisible[0][0] <= position:
            self.metrics.visible(now - self._invisible.popleft()[1])

    def _check_room(self) -> None:
        """Raise Overloaded if too many writes wait for publication."""
        operations, num_bytes = self._log.unpublished()
        operations += self._waiting_operations
        if operations >= self.options.max_unpublished or num_bytes >= MAX_UNPUBLISHED_BYTES:
            self.metrics.refused()
            raise Overloaded(
                f"{operations:,} accepted writes wait for publication, the most that this service accepts; try again later",
                self._retry_after(operations),
            )

    def _retry_after(self, operations: int) -> int:
        """Seconds until a tenth of the waiting writes should be published, at the rate of the last minute."""
        now = time.monotonic()
        while self._published and self._published[0][0] < now - RECENT_S:
            self._published.popleft()
        done = sum(number for _, number in self._published)
        if not done:
            return math.ceil(min(LONGEST_WAIT_S, max(1.0, self.options.visible_s)))
        return math.ceil(min(LONGEST_WAIT_S, max(1.0, operations / 10 * (now - self._published[0][0]) / done)))


def check_documents(documents: Sequence[Any]) -> tuple[list[dict[str, Any]], list[RefusedDocument]]:
    """Return the usable documents as the log keeps them, and the others with the reason of each.

    The rules are those of a corpus. Besides, metadata must be an object, and a document may have MAX_DOCUMENT_BYTES.
    """
    usable: dict[str, tuple[int, Document]] = {}
    refused: list[RefusedDocument] = []
    for position, document in enumerate(documents):
        try:
            parsed = _parse(document)
        except BadRow as error:
            refused.append(RefusedDocument(position=position, doc_id=_id_of(document), reason=str(error)))
            continue
        if parsed.doc_id in usable:
            earlier, _ = usable.pop(parsed.doc_id)
            refused.append(RefusedDocument(position=earlier, doc_id=parsed.doc_id, reason=repeat_reason(parsed.doc_id, "last")))
        usable[parsed.doc_id] = (position, parsed)
    kept = [{"_id": each.doc_id, "title": each.title, "text": each.text, "metadata": each.metadata} for _, each in usable.values()]
    return kept, sorted(refused, key=lambda each: each.position)


def _parse(document: Any) -> Document:
    try:
        num_bytes = len(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    except RecursionError:
        raise BadRow("nested too deeply") from None
    if num_bytes > MAX_DOCUMENT_BYTES:
        raise BadRow(f"too large: {num_bytes:,} bytes, more than {MAX_DOCUMENT_BYTES:,}; divide it into several documents")
    parsed = parse_document(json.dumps(document).encode())
    metadata = document.get("metadata")
    if metadata is not None and not isinstance(metadata, dict):
        raise BadRow(f"metadata is {json.dumps(metadata):.40}, not an object")
    return parsed


def _id_of(document: Any) -> str | None:
    """Return the id of a refused document for the answer; None if it has none that JSON can represent."""
    found = next((document[name] for name in ID_FIELDS if name in document), None) if isinstance(document, dict) else None
    return str(found)[:80].encode("utf-8", "replace").decode() if isinstance(found, str | int) else None


def _summary(refused: Sequence[RefusedDocument]) -> str:
    reasons = "; ".join(f"document {each.position}: {each.reason}" for each in refused[:NAMED])
    return f"{len(refused)} {'document is' if len(refused) == 1 else 'documents are'} not usable ({reasons})"


def _num_bytes(write: LoggedWrite) -> int:
    return 200 + sum(len(doc_id) for doc_id in write.delete) + sum(len(each["text"]) + 200 for each in write.documents)


def _latest(root: str, version: int, position: int) -> tuple[int, int]:
    """Return the latest version of an index and its log position; of the given version, the position is known."""
    latest = latest_version(root)
    return latest, position if latest == version else read_version(root, latest).log_position
