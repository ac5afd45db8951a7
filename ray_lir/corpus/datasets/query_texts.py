"""Files of queries: JSON lines or Parquet with an id and a text, or lines `id <tab> text`."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from ray_lir.base.config import parse_json
from ray_lir.base.errors import FormatError
from ray_lir.base.ids import BadId, check_id
from ray_lir.corpus.records import TSV_SUFFIXES, read_rows
from ray_lir.corpus.text_lines import read_text_lines

JSONL_SUFFIXES = (".jsonl", ".jsonl.gz")
QUERY_SUFFIXES = (*JSONL_SUFFIXES, *TSV_SUFFIXES, ".parquet")
ID_NAMES = ("_id", "query_id", "query-id", "qid", "id")
TEXT_NAMES = ("text", "query")


def read_queries(urls: Iterable[str]) -> dict[str, str]:
    """Return the queries of files: query id -> text.

    Args:
        urls: Files that end in one of `QUERY_SUFFIXES`.

    Raises:
        FormatError: A row is malformed, or an id occurs twice.
    """
    queries: dict[str, str] = {}
    for url in urls:
        for where, query_id, text in stream_queries(url):
            if query_id in queries:
                raise FormatError(where, "each _id once", f"{query_id!r} twice")
            queries[query_id] = text
    return queries


def stream_queries(url: str) -> Iterator[tuple[str, str, str]]:
    """Yield place, id and text of each query of a file.

    Raises:
        FormatError: A row is malformed.
    """
    if url.endswith(TSV_SUFFIXES):
        yield from _tsv(url)
    elif url.endswith(".parquet"):
        for row, line in read_rows(url):
            yield _query(json.loads(line), f"{url} row {row}", line.decode(errors="replace"))
    else:
        for number, text in read_text_lines(url):
            where = f"{url} line {number}"
            try:
                fields = parse_json(text)
            except ValueError as error:
                raise FormatError(where, "a JSON object with _id and text", f"{error}") from None
            yield _query(fields, where, text)


def _tsv(url: str) -> Iterator[tuple[str, str, str]]:
    for number, line in read_text_lines(url):
        where = f"{url} line {number}"
        query_id, tab, text = line.partition("\t")
        if not tab:
            raise FormatError(where, "query id <tab> text", f"{line:.80}")
        yield where, _id(query_id.strip(" "), where, "query id <tab> text", line), text


def _query(fields: Any, where: str, line: str) -> tuple[str, str, str]:
    if not isinstance(fields, dict):
        raise FormatError(where, "a JSON object with an _id", f"{line:.80}")
    query_id = _id(
        next((fields[name] for name in ID_NAMES if fields.get(name) is not None), None), where, "a JSON object with an _id", line
    )
    text = next((fields[name] for name in TEXT_NAMES if fields.get(name) is not None), None)
    if not isinstance(text, str):
        raise FormatError(where, "a JSON object whose text is a string", f"{line:.80}")
    return where, query_id, text


def _id(value: Any, where: str, expected: str, line: str) -> str:
    try:
        return check_id(value)
    except BadId as error:
        raise FormatError(where, expected, f"{line:.80} (its _id {error})") from None
