"""Runs: the ranked documents of each query, read and written as TREC run files (query Q0 document rank score tag)."""

from collections.abc import Iterable, Sequence

import numpy as np

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.text_lines import ascii_columns, read_text_lines

Ranking = Sequence[tuple[str, float]]
"""(document id, score), best first."""
Run = dict[str, Ranking]
"""query id -> its ranking."""


def format_run(run: Run, tag: str) -> bytes:
    """Return the content of a run file.

    trec_eval sorts by score alone (as float32, ties by document id), so a score that does not fall below the one before
    it is written one float32 step lower: any evaluator then sees the order given.

    Raises:
        ConfigError: An id holds white space, which the format cannot carry.
    """
    lines = []
    for query_id, ranking in run.items():
        check_ids([query_id], "query")
        check_ids([doc_id for doc_id, _ in ranking], "document")
        scores = _strictly_decreasing([score for _, score in ranking])
        for rank, ((doc_id, _), score) in enumerate(zip(ranking, scores, strict=True), 1):
            lines.append(f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}\n")
    return "".join(lines).encode()


def check_ids(ids: Iterable[str], kind: str) -> None:
    """Raise ConfigError if a run file cannot carry one of these ids.

    Args:
        kind: "query" or "document", for the message.
    """
    for each in ids:
        if ascii_columns(each) != [each]:
            raise ConfigError(f"a run file cannot carry the {kind} id {each!r}, which is empty or holds white space; leave out --run")


def read_tag(url: str) -> str | None:
    """Return the tag of a run file's first line; None if the file holds no run."""
    with storage.open_input(url) as file:
        columns = file.readline(10_000).decode(errors="replace").split()
    return columns[5] if len(columns) == 6 else None


def write_run(url: str, run: Run, tag: str) -> None:
    """Write a run file in one atomic step.

    Raises:
        ConfigError: An id holds white space; nothing is written.
    """
    storage.write_bytes(url, format_run(run, tag))


def read_run(url: str) -> Run:
    """Reads a run file; documents are ordered by score, equal scores as in the file.

    Raises:
        ConfigError: if the file cannot be read.
        FormatError: if a line does not have the six columns, or a document comes twice for one query.
    """
    scored: dict[str, dict[str, float]] = {}
    for number, line in read_text_lines(url):
        try:
            query_id, _, doc_id, _, score, _ = ascii_columns(line)
            value = float(score)
        except ValueError:
            raise FormatError(f"{url} line {number}", "query Q0 document rank score tag", f"{line:.80}") from None
        documents = scored.setdefault(query_id, {})
        if doc_id in documents:
            raise FormatError(f"{url} line {number}", "each document once for a query", f"{doc_id} a second time for query {query_id}")
        documents[doc_id] = value
    return {query_id: sorted(documents.items(), key=lambda item: -item[1]) for query_id, documents in scored.items()}


def _strictly_decreasing(scores: Sequence[float]) -> list[np.float32]:
    falling: list[np.float32] = []
    for score in np.asarray(scores, np.float32):
        falling.append(min(score, np.nextafter(falling[-1], np.float32(-np.inf))) if falling else score)
    return falling
