"""What the clients do to write: they divide documents into requests, repeat unanswered ones, and wait until writes are visible."""

import json
import os
import time
import uuid
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any

from ray_lir.api.admin import IndexFacts
from ray_lir.api.writes import ID_NAMES, MAX_WRITES, RefusedDocument, WriteRequest, WriteResponse
from ray_lir.base.errors import ConfigError, Overloaded, RayLirError, ServiceUnavailable, ShardUnavailable, WritesUnavailable

Documents = str | os.PathLike[str] | Iterable[str | Mapping[str, Any]]
"""The path of a corpus; or texts; or dicts with `text` and optionally `_id`, `title`, `metadata` and other fields."""
Step = tuple[WriteRequest, str] | None | float
"""What a client does next: send a request with an idempotency key; get the facts of the index (None); or sleep for some seconds."""
Steps = Generator[Step, WriteResponse | IndexFacts | RayLirError | None, WriteResponse]

MAX_REQUEST_BYTES = 3 << 20
RETRY_S = 0.5
"""Seconds between attempts."""
POLL_S = 0.1
"""Seconds between looks at the log position that is served."""


def additions(documents: Documents) -> Iterator[WriteRequest]:
    """Yield the requests that add documents. Documents in memory without an id get a random one.

    Raises:
        ConfigError: A document is neither text nor dict, or JSON cannot represent it.
    """
    batch: list[Any] = []
    size = 0
    partial = isinstance(documents, str | os.PathLike)
    for document in _rows(documents):
        num_bytes = len(json.dumps(document, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        if batch and (len(batch) == MAX_WRITES or size + num_bytes > MAX_REQUEST_BYTES):
            yield WriteRequest(documents=batch, partial=partial)
            batch, size = [], 0
        batch.append(document)
        size += num_bytes
    if batch:
        yield WriteRequest(documents=batch, partial=partial)


def deletions(doc_ids: list[str]) -> Iterator[WriteRequest]:
    """Yield the requests that delete documents."""
    for start in range(0, len(doc_ids), MAX_WRITES):
        yield WriteRequest(delete=doc_ids[start : start + MAX_WRITES])


def steps(requests: Iterable[WriteRequest], key: str | None, wait_s: float, patience_s: float) -> Steps:
    """Yield what a client does to write, and return the sum of the answers.

    Args:
        requests: The requests, in order.
        key: Idempotency key of the whole call; None for a random one. Each request has a key of its own, made from it.
        wait_s: Seconds to wait until searches see the writes; 0: do not wait.
        patience_s: Seconds for which a request that is not answered is repeated.
    Raises:
        WritesUnavailable: The writes were accepted, but are not visible after `wait_s` seconds.
    """
    total = WriteResponse(accepted=0, deleted=0, position=0)
    key, sent = key or uuid.uuid4().hex, 0
    for number, request in enumerate(requests):
        answer = yield from _attempts(request, f"{key}-{number}", patience_s)
        refused = [each.model_copy(update={"position": each.position + sent}) for each in answer.refused]
        sent += len(request.documents)
        total = _sum(total, answer, refused)
    if wait_s > 0 and total.position:
        yield from _until_visible(total.position, wait_s)
    return total


def _attempts(request: WriteRequest, key: str, patience_s: float) -> Generator[Step, Any, WriteResponse]:
    end = time.monotonic() + patience_s
    while True:
        result: WriteResponse | RayLirError = yield request, key
        if isinstance(result, WriteResponse):
            return result
        temporary = isinstance(result, Overloaded | ServiceUnavailable | ShardUnavailable | WritesUnavailable)
        pause = float(result.retry_after_s) if isinstance(result, Overloaded) else RETRY_S
        if not temporary or time.monotonic() + pause > end:
            raise result
        yield pause


def _until_visible(position: int, wait_s: float) -> Generator[Step, Any, None]:
    end = time.monotonic() + wait_s
    while True:
        facts: IndexFacts | RayLirError = yield None
        if isinstance(facts, IndexFacts) and facts.writes and (facts.writes.log_position >= position or not facts.writes.following):
            return
        if time.monotonic() > end:
            state = f"the writes were accepted at position {position}, but searches do not see them after {wait_s:g} s"
            raise WritesUnavailable(f"{state}; they will be published later")
        yield POLL_S


def _sum(total: WriteResponse, answer: WriteResponse, refused: list[RefusedDocument]) -> WriteResponse:
    return WriteResponse(
        accepted=total.accepted + answer.accepted,
        deleted=total.deleted + answer.deleted,
        refused=[*total.refused, *refused],
        position=max(total.position, answer.position),
    )


def _rows(documents: Documents) -> Iterator[Any]:
    if isinstance(documents, str | os.PathLike):
        yield from _corpus_rows(documents)
        return
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise ConfigError(f"documents must be texts, dicts or the path of a corpus, not {type(documents).__name__}; put one into a list")
    for position, document in enumerate(documents):
        if isinstance(document, str):
            document = {"text": document}
        if not isinstance(document, Mapping):
            raise ConfigError(f"document {position} is {type(document).__name__}, not a text or a dict with `text`")
        fields = dict(document)
        if not any(name in fields for name in ID_NAMES):
            fields = {"_id": uuid.uuid4().hex, **fields}
        try:
            json.dumps(fields)
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"document {position} holds a value that JSON cannot represent ({error}); use texts, numbers, lists and dicts"
            ) from None
        yield fields


def _corpus_rows(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield the rows of a corpus; a row that is not JSON as its text, so that the service refuses it with a reason."""
    from ray_lir.corpus.records import corpus_files, read_rows  # needs pyarrow, which other documents do not

    for file in corpus_files(path):
        for _, row in read_rows(file):
            try:
                yield json.loads(row)
            except ValueError:
                yield row.decode(errors="replace")
