"""Runs: the ranked documents of each query, read and written as TREC run files (query Q0 document rank score tag)."""

from collections.abc import Sequence

import numpy as np

from ray_lir.errors import ConfigError, FormatError
from ray_lir.formats import storage

Ranking = Sequence[tuple[str, float]]
"""(document id, score), best first."""
Run = dict[str, Ranking]
"""query id -> its ranking."""


def write_run(url: str, run: Run, tag: str) -> None:
    """Writes a run file in one atomic step.

    trec_eval sorts by score alone (as float32, ties by document id), so a score that does not fall below the one before
    it is written one float32 step lower: any evaluator then sees the order given.

    Raises:
        ConfigError: if an id holds white space, which the format cannot carry; nothing is written.
    """
    lines = []
    for query_id, ranking in run.items():
        scores = _strictly_decreasing([score for _, score in ranking])
        for rank, ((doc_id, _), score) in enumerate(zip(ranking, scores, strict=True), 1):
            if len(query_id.split()) != 1 or len(doc_id.split()) != 1:
                raise ConfigError(
                    f"cannot write the run {url}: an id is empty or holds white space (query {query_id!r}, document {doc_id!r})"
                )
            lines.append(f"{query_id} Q0 {doc_id} {rank} {score:.9g} {tag}\n")
    storage.write_bytes(url, "".join(lines).encode())


def read_run(url: str) -> Run:
    """Reads a run file; documents are ordered by score, equal scores as in the file.

    Raises:
        FormatError: if a line does not have the six columns, or a document comes twice for one query.
    """
    scored: dict[str, dict[str, float]] = {}
    for number, line in enumerate(storage.read_bytes(url).decode().splitlines(), 1):
        try:
            query_id, _, doc_id, _, score, _ = line.split()
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
