"""Runs: the ranked documents of each query. They are read and written as TREC run files (query Q0 document rank score tag).

Parquet files with the columns query_id, doc_id and score, as bulk search writes them, are read too.
"""

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.ids import BadId, check_lookup_id
from ray_lir.corpus.text_lines import ascii_columns, read_text_lines

Ranking = Sequence[tuple[str, float]]
"""(document id, score), best first."""
Run = dict[str, Ranking]
"""Query id -> ranking."""
RUN_COLUMNS = ("query_id", "doc_id", "score")


def format_run(run: Run, tag: str) -> bytes:
    """Return the content of a run file.

    trec_eval sorts by score alone, as float32, and breaks ties by document id. So a score that does not fall below the previous one is
    written one float32 step lower; every evaluator then keeps the ranking's order.

    Args:
        run: Query id -> ranking.
        tag: The last column of every line.

    Raises:
        ConfigError: An id is empty or contains white space, which the format cannot store.
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
    """Raise ConfigError if a run file cannot store one of these ids.

    Args:
        ids: Query or document ids.
        kind: "query" or "document", for the message.
    """
    for each in ids:
        if ascii_columns(each) != [each]:
            raise ConfigError(f"a run file cannot store the {kind} id {each!r}, which is empty or contains white space; leave out --run")


def read_tag(url: str) -> str | None:
    """Return the tag of a run file's first line; None if that line is not a line of a run."""
    with storage.open_input(url) as file:
        columns = file.readline(10_000).decode(errors="replace").split()
    return columns[5] if len(columns) == 6 else None


def write_run(url: str, run: Run, tag: str) -> None:
    """Write a run file in one atomic step.

    Args:
        url: Path or URL of the file.
        run: Query id -> ranking.
        tag: The last column of every line.

    Raises:
        ConfigError: An id is empty or contains white space. No file is written.
    """
    storage.write_bytes(url, format_run(run, tag))


def read_run(url: str) -> Run:
    """Read a run file in TREC format (or .gz), or a Parquet file. Documents are sorted by score, descending.

    Equal scores keep the order of the file.

    Raises:
        ConfigError: The file cannot be read.
        FormatError: A line does not have six columns, or a Parquet file lacks a column. A score is not a number, a query has a
            document twice, or there are no results.
    """
    scored: dict[str, dict[str, float]] = {}
    for where, query_id, doc_id, score in _parquet_rows(url) if url.endswith(".parquet") else _trec_rows(url):
        if math.isnan(score):
            raise FormatError(where, "a number as score", "nan")
        documents = scored.setdefault(query_id, {})
        if doc_id in documents:
            raise FormatError(where, "each document once per query", f"{doc_id} twice for query {query_id}")
        documents[doc_id] = score
    if not scored:
        raise FormatError(url, "a run with results", "none", "give a run file that lists documents")
    return {query_id: sorted(documents.items(), key=lambda item: -item[1]) for query_id, documents in scored.items()}


def _trec_rows(url: str) -> Iterator[tuple[str, str, str, float]]:
    """Yield place, query id, document id and score of each line."""
    for number, line in read_text_lines(url):
        where = f"{url} line {number}"
        try:
            query_id, _, doc_id, _, score, _ = ascii_columns(line)
            yield where, query_id, doc_id, float(score)
        except ValueError:
            raise FormatError(where, "query Q0 document rank score tag", f"{line:.80}") from None


def _parquet_rows(url: str) -> Iterator[tuple[str, str, str, float]]:
    """Yield place, query id, document id and score of each row."""
    with storage.wrap_errors("read", url), storage.open_input(url) as file:
        try:
            parquet = pq.ParquetFile(file)
            missing = [name for name in RUN_COLUMNS if name not in parquet.schema_arrow.names]
            if missing:
                raise FormatError(url, f"the columns {', '.join(RUN_COLUMNS)}", f"no column {missing[0]}", "rename the columns")
            row = 0
            for batch in parquet.iter_batches(columns=list(RUN_COLUMNS)):
                for values in zip(*(batch.column(name).to_pylist() for name in RUN_COLUMNS), strict=True):
                    row += 1
                    try:
                        query_id, doc_id = map(check_lookup_id, values[:2])
                    except BadId as error:
                        raise FormatError(f"{url} row {row}", "ids of a query and a document", f"an id that {error}") from None
                    if not isinstance(values[2], int | float) or isinstance(values[2], bool):
                        raise FormatError(f"{url} row {row}", "a number as score", f"{values[2]!r:.40}")
                    yield f"{url} row {row}", query_id, doc_id, float(values[2])
        except pa.ArrowException as error:
            raise FormatError(url, "a Parquet file", f"{' '.join(str(error).split()):.160}", "the file is damaged: get it again") from error


def _strictly_decreasing(scores: Sequence[float]) -> list[np.float32]:
    falling: list[np.float32] = []
    for score in np.asarray(scores, np.float32):
        falling.append(min(score, np.nextafter(falling[-1], np.float32(-np.inf))) if falling else score)
    return falling
