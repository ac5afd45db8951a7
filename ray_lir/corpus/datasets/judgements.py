"""Files of judgements: three columns (query, document, grade), TREC's four columns, or Parquet."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.base.ids import BadId, check_lookup_id
from ray_lir.corpus.text_lines import ascii_columns, read_text_lines

HEADER_NAMES = (
    ("query-id", "qid", "topic-id", "topic", "query"),
    ("corpus-id", "doc-id", "docid", "document-id", "docno", "pid", "passage-id", "document"),
    ("score", "relevance", "rel", "grade", "label", "judgement", "judgment"),
)
"""Column names that a header may have, in lower case; `_` counts as `-`. Of several columns in a Parquet file, the first name counts."""
LARGEST_GRADE = 1_000_000
"""trec_eval allocates an array as long as the largest grade; with grades of 2**31 or more, every measure is 0."""
GRADE = re.compile(r"[+-]?[0-9]+(\.0*)?")
Judgement = tuple[str, str, str, int]
"""Place in a file, query id, document id, grade."""


def read_judgements(urls: Iterable[str]) -> dict[str, dict[str, int]]:
    """Return the judgements of files: query id -> document id -> grade.

    A text file has three columns, with or without a header, or the four columns of TREC (query, an unused number, document, grade). A
    Parquet file has a column for the query, the document and the grade. A grade is an integer.

    Args:
        urls: Files; names that end in .gz are decompressed, and .parquet is Parquet.

    Raises:
        FormatError: A line is malformed, a grade is out of range, two grades of one document differ, or there are no judgements.
    """
    urls = list(urls)
    qrels: dict[str, dict[str, int]] = {}
    for url in urls:
        for where, query_id, doc_id, grade in _parquet(url) if url.endswith(".parquet") else _text(url):
            before = qrels.setdefault(query_id, {}).setdefault(doc_id, grade)
            if before != grade:
                raise FormatError(
                    where, f"one grade of document {doc_id!r} for query {query_id!r}", f"{grade} after {before}", "keep one of the lines"
                )
    if not qrels:
        raise FormatError(urls[0], "judgements", "none", "give a split that has judgements")
    return qrels


def _text(url: str) -> Iterator[Judgement]:
    for position, (number, line) in enumerate(read_text_lines(url)):
        fields = [field.strip(" ") for field in (line.split("\t") if "\t" in line else ascii_columns(line))]
        if len(fields) == 4:
            fields = [fields[0], *fields[2:]]
        if position == 0 and _is_header(fields):
            continue
        where = f"{url} line {number}"
        if len(fields) != 3 or not fields[0] or not fields[1] or not GRADE.fullmatch(fields[2]):
            raise FormatError(where, "query-id <tab> corpus-id <tab> whole number", f"{line:.80}")
        yield where, fields[0], fields[1], _grade(fields[2], where)


def _parquet(url: str) -> Iterator[Judgement]:
    with storage.wrap_errors("read", url), storage.open_input(url) as file:
        try:
            parquet = pq.ParquetFile(file)
            columns = _columns(parquet.schema_arrow.names, url)
            row = 0
            for batch in parquet.iter_batches(columns=columns):
                for values in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                    row += 1
                    yield _parquet_row(values, f"{url} row {row}")
        except pa.ArrowException as error:
            raise FormatError(url, "a Parquet file", f"{' '.join(str(error).split()):.160}", "the file is damaged: get it again") from error


def _parquet_row(values: tuple[Any, Any, Any], where: str) -> Judgement:
    try:
        query_id, doc_id = check_lookup_id(values[0]), check_lookup_id(values[1])
    except BadId as error:
        raise FormatError(where, "ids of a query and a document", f"an id that {error}") from None
    if not GRADE.fullmatch(str(values[2])):
        raise FormatError(where, "a whole number as grade", f"{values[2]!r:.40}")
    return where, query_id, doc_id, _grade(str(values[2]), where)


def _columns(names: list[str], url: str) -> list[str]:
    """The columns of the query, the document and the grade."""
    plain = {_plain(name): name for name in reversed(names)}
    found = [next((plain[name] for name in known if name in plain), None) for known in HEADER_NAMES]
    columns = [name for name in found if name is not None]
    if len(columns) < len(found):
        raise FormatError(url, "the columns query-id, corpus-id and score", ", ".join(names) or "no columns", "rename the columns")
    return columns


def _is_header(fields: list[str]) -> bool:
    return len(fields) == 3 and all(_plain(field) in known for field, known in zip(fields, HEADER_NAMES, strict=True))


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def _grade(text: str, where: str) -> int:
    grade = int(text.partition(".")[0])
    if abs(grade) > LARGEST_GRADE:
        raise FormatError(where, f"a grade from -{LARGEST_GRADE} to {LARGEST_GRADE}", f"{text:.40}", "use smaller grades")
    return grade
