"""Examples for training from JSONL (also .gz) or Parquet: triples, and n-way tuples with or without a teacher's scores.

A row is one of
    {"query": text, "positive": text, "negative": text or [texts]}
    {"query": text, "documents": [texts], "scores": [numbers]}
    {"query_id": id, "document_ids": [ids], "scores": [numbers]}     ids of queries.jsonl and corpus.jsonl of a BEIR folder
The columns of sentence-transformers are understood too: `anchor` or `question` for query, `answer` for positive, and
`negative_1`, `negative_2`, ... (or `negatives`) for several negatives. The first document is the positive. A score is any
finite number. `scores` may be left out, in every row of the file. Rows of one query belong together.
"""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.records import document_text, read_documents, read_rows
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.training.data import TrainingData, collect

LARGEST_SCORE = float(np.finfo(np.float32).max)
QUERY_NAMES = ("query", "anchor", "question")
POSITIVE_NAMES = ("positive", "answer")
NEGATIVE_NAME = re.compile(r"negatives?|negative_?([0-9]+)")
FORMS = (
    "a query (or anchor, question) with positive (or answer) and negative (or negative_1, negative_2, ...), "
    "query with documents, or query_id with document_ids"
)
Row = tuple[str, list[str], list[float] | None]


def read_examples(url: str, dataset: str | None = None, refused: RefusedRows | None = None) -> TrainingData:
    """The examples of a file; `dataset` is the BEIR folder whose ids they name, if they do, and `refused` counts rows of its corpus.

    Raises:
        ConfigError: if ids are named and there is no dataset, or it lacks one of them.
        FormatError: if a row is none of the forms, has no document, or a score that is missing or no finite number.
    """
    by_query: dict[str, list[tuple[list[str], list[float] | None]]] = {}
    first: tuple[bool, bool] | None = None
    for where, fields in _rows(url):
        by_id = "query_id" in fields
        query, documents, scores = _parse(fields, where)
        kind = (by_id, scores is not None)
        first = kind if first is None else first
        if kind != first:
            what = "scores" if kind[0] == first[0] else "ids"
            raise FormatError(where, f"rows that all have {what}, or none", "a row unlike the first", "write them to files of their own")
        by_query.setdefault(query, []).append((documents, scores))
    if first is None:
        raise FormatError(url, "examples", "none", f"a row is {FORMS}")
    named = {document: None for lists in by_query.values() for documents, _ in lists for document in documents}
    if first[0]:
        if dataset is None:
            raise ConfigError(f"{url} names queries and documents by id; give the collection they are in as --dataset")
        queries = _query_texts(dataset, by_query)
        numbers, texts = collect(named, ((each.doc_id, document_text(each.title, each.text)) for each in read_documents(dataset, refused)))
    else:
        queries, texts = list(by_query), list(named)
        numbers = {text: number for number, text in enumerate(texts)}
    lists = [tuple(tuple(numbers[document] for document in documents) for documents, _ in rows) for rows in by_query.values()]
    teacher = [tuple(tuple(scores or ()) for _, scores in rows) for rows in by_query.values()] if first[1] else None
    return TrainingData(queries, texts, lists, teacher)


def _rows(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for line, row in read_rows(url):
        where = f"{url}:{line}"
        try:
            fields = parse_json(row)
        except ValueError as error:
            raise FormatError(where, "a JSON object", f"{error}", f"a row is {FORMS}") from None
        if not isinstance(fields, dict):
            raise FormatError(where, "a JSON object", type(fields).__name__, f"a row is {FORMS}")
        yield where, fields


def _parse(fields: dict[str, Any], where: str) -> Row:
    if "query_id" in fields:
        query, documents = _ids([fields["query_id"]], where)[0], _ids(fields.get("document_ids"), where)
    else:
        query_name, positive_name = (_one_name(fields, names, where) for names in (QUERY_NAMES, POSITIVE_NAMES))
        if query_name is None or (positive_name is None and "documents" not in fields):
            raise FormatError(where, FORMS, f"the columns {', '.join(fields) or 'none'}", "rename the columns")
        query = _texts([fields[query_name]], where)[0]
        documents = _texts([fields[positive_name], *_negatives(fields, where)] if positive_name else fields["documents"], where)
    scores = fields.get("scores")
    return query, documents, None if scores is None else _scores(scores, len(documents), where)


def _one_name(fields: dict[str, Any], names: tuple[str, ...], where: str) -> str | None:
    """The one of these columns that the row has."""
    found = [name for name in names if fields.get(name) is not None]
    if len(found) > 1:
        raise FormatError(where, f"one of the columns {', '.join(names)}", " and ".join(found), "leave one of them out")
    return found[0] if found else None


def _negatives(fields: dict[str, Any], where: str) -> list[Any]:
    """The negatives of a row, in the order of their columns' numbers."""
    matches = [match for match in map(NEGATIVE_NAME.fullmatch, fields) if match and fields[match[0]] is not None]
    negatives: list[Any] = []
    for match in sorted(matches, key=lambda match: int(match[1] or 0)):
        value = fields[match[0]]
        if not isinstance(value, str | list):
            raise FormatError(where, f"{match[0]} as text or a list of texts", f"{value!r:.60}", "every text must be a string")
        negatives += [value] if isinstance(value, str) else value
    return negatives


def _texts(values: Any, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FormatError(where, FORMS, f"{values!r:.60}", "every text must be a string")
    return _not_empty(values, where)


def _ids(values: Any, where: str) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str | int) for value in values):
        raise FormatError(where, FORMS, f"{values!r:.60}", "every id must be a string or a whole number")
    return _not_empty([str(value) for value in values], where)


def _not_empty(values: list[str], where: str) -> list[str]:
    if not values or not values[0]:
        raise FormatError(where, "a query and its positive first", "none", "leave out queries without a positive")
    return values


def _scores(values: Any, num_documents: int, where: str) -> list[float]:
    if not isinstance(values, list) or len(values) != num_documents:
        raise FormatError(where, f"{num_documents} scores, one for each document", f"{values!r:.60}", "score every document")
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST_SCORE <= value <= LARGEST_SCORE:
            raise FormatError(where, "teacher's scores that are finite float32 numbers", f"{value!r:.60}", "leave out rows without a score")
    return [float(value) for value in values]


def _query_texts(dataset: str, wanted: dict[str, Any]) -> list[str]:
    names = ("queries.jsonl", "queries.jsonl.gz")
    url = next((storage.join(dataset, name) for name in names if storage.exists(storage.join(dataset, name))), None)
    if url is None:
        raise FormatError(dataset, "queries.jsonl or queries.jsonl.gz", "neither", "give a folder in the BEIR layout")
    texts: dict[str, Any] = {str(fields.get("_id")): fields.get("text") for _, fields in _rows(url)}
    missing = [query for query in wanted if not isinstance(texts.get(query), str)]
    if missing:
        raise ConfigError(f"{len(missing)} of {len(wanted)} queries of the examples are not in {url}, {missing[0]!r} for one; give theirs")
    return [texts[query] for query in wanted]
