"""Training data in the forms in which the authors of the papers publish it.

| file | row |
|---|---|
| triples.train.*.tsv | query, positive, negative: texts, or ids of a dataset |
| ColBERTv2's examples.64.json | `[query id, [document id, score], ...]`; or `[query id, positive id, negative id, ...]` |
| scores in Parquet | query_id, document_ids and scores; or one document a row: query (or query_id), document (or document_id), score |
| folder of tables | such scores in train*.parquet or train/, and texts in queries*.parquet and documents*.parquet (or folders) |
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import FormatError
from ray_lir.corpus.datasets.query_texts import stream_queries
from ray_lir.corpus.records import document_text, read_rows
from ray_lir.corpus.text_lines import read_text_lines

Fields = tuple[str, dict[str, Any]]
"""Place in a file, and the columns of a row."""
DOCUMENT_ID_NAMES = ("document_id", "doc_id", "_id", "pid", "id")
DOCUMENT_NAMES = ("document", "passage")
TUPLE = "[query id, [document id, score], ...] or [query id, document id, ...]"


@dataclass(frozen=True)
class ScoreTables:
    """A folder with tables of scores, queries and documents.

    Attributes:
        scores: File of the scores.
        query_files: Files of the queries.
        document_files: Files of the documents.
    """

    scores: str
    query_files: tuple[str, ...]
    document_files: tuple[str, ...]

    def queries(self) -> Iterator[tuple[str, str]]:
        """Yield id and text of each query.

        Raises:
            FormatError: A row is malformed.
        """
        return ((query_id, text) for file in self.query_files for _, query_id, text in stream_queries(file))

    def documents(self) -> Iterator[tuple[str, str]]:
        """Yield id and text of each document.

        Raises:
            FormatError: A row has no id or no text.
        """
        for file in self.document_files:
            for number, row in read_rows(file):
                fields = json.loads(row)
                doc_id = next((fields[name] for name in DOCUMENT_ID_NAMES if fields.get(name) is not None), None)
                text = next((fields[name] for name in ("text", *DOCUMENT_NAMES) if fields.get(name) is not None), None)
                title = fields.get("title") or ""
                if not isinstance(doc_id, str | int) or not isinstance(text, str) or not isinstance(title, str):
                    raise FormatError(f"{file} row {number}", "a document_id and a text", f"{row.decode(errors='replace'):.80}")
                yield str(doc_id), document_text(title, text)


def score_tables(url: str) -> ScoreTables | None:
    """Return the tables of a folder; None if it is no folder with such tables.

    Raises:
        FormatError: A table is missing, or there are several tables of scores.
    """
    if not storage.is_folder(url):
        return None
    tables = {name: _table(url, name) for name in ("train", "queries", "documents")}
    if not any(tables.values()):
        return None
    for name in ("queries", "documents"):
        if not tables[name]:
            fix = "give a folder with all tables, or the file of scores and --dataset"
            raise FormatError(url, f"a table of {name}, {name}*.parquet", "none", fix)
    if len(tables["train"]) != 1:
        found = "none" if not tables["train"] else f"{len(tables['train'])} files"
        raise FormatError(url, "one file of scores, train*.parquet", found, "give a folder with one file of scores")
    return ScoreTables(tables["train"][0], tuple(tables["queries"]), tuple(tables["documents"]))


def triples(url: str) -> Iterator[Fields]:
    """Yield the rows of a file of triples: query, positive, and one or more negatives. If the first row has numbers only, they are ids.

    Raises:
        FormatError: A line has fewer than three columns.
    """
    by_id = None
    for number, line in read_text_lines(url):
        where, columns = f"{url}:{number}", line.split("\t")
        if len(columns) < 3:
            raise FormatError(where, "query <tab> positive <tab> negative", f"{line:.80}", "separate the columns by tabs")
        if by_id is None:
            by_id = all(column.strip().isascii() and column.strip().isdigit() for column in columns)
        query, *documents = columns
        if by_id:
            yield where, {"query_id": query.strip(), "document_ids": [document.strip() for document in documents]}
        else:
            yield where, {"query": query, "documents": documents}


def from_list(values: list[Any], where: str) -> dict[str, Any]:
    """Return the columns of a tuple that is written as a list, as ColBERTv2's are.

    Args:
        values: A query id, then document ids, or pairs of document id and score.
        where: Place of the row, for messages.

    Raises:
        FormatError: The list has another form.
    """
    query, *documents = values or [None]
    if documents and all(isinstance(each, list) and len(each) == 2 for each in documents):
        ids, scores = zip(*documents, strict=True)
        return {"query_id": query, "document_ids": list(ids), "scores": list(scores)}
    if query is None or not documents or any(isinstance(each, list) for each in documents):
        raise FormatError(where, TUPLE, f"{values!r:.60}", "write every tuple in one of these forms")
    return {"query_id": query, "document_ids": documents}


def grouped(rows: Iterator[Fields]) -> Iterator[Fields]:
    """Yield rows, with consecutive rows of one query and one document each joined to a tuple, best score first.

    Lists that are stored as text, such as "[1, 2]", are parsed.

    Raises:
        FormatError: A row with one document has no score, the rows of a query are not consecutive, or a text is no list.
    """
    seen: set[int] = set()
    for query, group in groupby(rows, key=_query_of_pair):
        if query is None:
            yield from ((where, _with_lists(fields, where)) for where, fields in group)
            continue
        where, joined = _joined(list(group))
        if hash(query) in seen:
            raise FormatError(where, "consecutive rows of each query", f"query {query[1]!r:.60} again", "sort the rows by query")
        seen.add(hash(query))
        yield where, joined


def _query_of_pair(row: Fields) -> tuple[str, str] | None:
    """The query of a row with one document; None for another row."""
    _, fields = row
    if not any(fields.get(name) is not None for name in ("document_id", "doc_id", *DOCUMENT_NAMES)):
        return None
    return next(((name, str(fields[name])) for name in ("query_id", "query") if fields.get(name) is not None), None)


def _joined(group: list[Fields]) -> Fields:
    where, first = group[0]
    by_id = "query_id" in first and first["query_id"] is not None
    names = ("document_id", "doc_id") if by_id else DOCUMENT_NAMES
    pairs = []
    for place, fields in group:
        document = next((fields[name] for name in names if fields.get(name) is not None), None)
        score = fields.get("score")
        if document is None or not isinstance(score, int | float) or isinstance(score, bool):
            raise FormatError(place, f"a {names[0]} and a score that is a number", f"{fields!r:.80}", "score every document")
        pairs.append((document, score))
    pairs.sort(key=lambda pair: -pair[1])
    documents, scores = zip(*pairs, strict=True)
    if by_id:
        return where, {"query_id": first["query_id"], "document_ids": list(documents), "scores": list(scores)}
    return where, {"query": first["query"], "documents": list(documents), "scores": list(scores)}


def _with_lists(fields: dict[str, Any], where: str) -> dict[str, Any]:
    for name in ("document_ids", "scores"):
        if isinstance(fields.get(name), str):
            try:
                fields = {**fields, name: parse_json(fields[name])}
            except ValueError:
                raise FormatError(where, f"{name} as a list", f"{fields[name]!r:.60}") from None
    return fields


def _table(folder: str, name: str) -> list[str]:
    """The Parquet files of a table: NAME*.parquet, or those in the folder NAME."""
    names = storage.list_names(folder)
    inside = storage.list_names(storage.join(folder, name)) if name in names else []
    found = [storage.join(folder, each) for each in names if each.startswith(name) and each.endswith(".parquet")]
    return found or [storage.join(folder, name, each) for each in inside if each.endswith(".parquet")]
