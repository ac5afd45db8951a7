"""Examples for training from JSONL, TSV (both also .gz) or Parquet: triples, and n-way tuples with or without a teacher's scores.

A row has one of these forms:
    {"query": text, "positive": text, "negative": text or [texts]}
    {"query": text, "documents": [texts], "scores": [numbers]}
    {"query_id": id, "document_ids": [ids], "scores": [numbers]}     ids of queries.jsonl and corpus.jsonl of a BEIR folder
Files that the papers' authors publish are read as they are (`published_examples.py`): triples.train.*.tsv, ColBERTv2's
examples.64.json, and tables of queries, documents and scores. The column names of sentence-transformers are accepted too: `anchor` or
`question` for query, `answer` for positive, and `negative_1`, `negative_2`, ... (or `negatives`) for several negatives. The first document
is is the positive. A score is any finite number. `scores` may be left out, in every row of the file. Rows of one query belong
together, wherever they are in the file.

Files are read as a stream. What stays in memory does not grow with the length of the texts (`data_files.py`).
"""

import os
import re
import tempfile
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets import all_queries, find_corpus
from ray_lir.corpus.records import TSV_SUFFIXES, document_text, read_documents, read_rows
from ray_lir.corpus.refused_rows import RefusedRows
from ray_lir.storage.manifest import MANIFEST, check_file, read_manifest
from ray_lir.training.data import ROWS_AT_ONCE, Texts, TrainingData, missing_documents
from ray_lir.training.data_files import (
    DOCUMENTS,
    LISTS,
    QUERIES,
    ListFile,
    Numbering,
    TextFile,
    as_lists,
    blocks,
    first_use,
    open_data,
    open_lists,
    open_texts,
    renumber_lists,
    reorder_texts,
    write_groups,
)
from ray_lir.training.manifest import TuplesManifest
from ray_lir.training.published_examples import from_list, grouped, score_tables, triples

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
    """Return the examples of a file, in a temporary file that no other process sees.

    Args:
        url: JSONL, JSONL.gz or Parquet file, or a folder that jobs.mine wrote.
        dataset: BEIR folder with the ids that the examples name; None if they hold texts.
        refused: Counts refused rows of the dataset's corpus; None if the caller does not need them.

    Raises:
        ConfigError: The examples name ids and there is no dataset, or it lacks one of the ids.
        FormatError: A row has none of the forms, no document, or a score that is missing or not a finite number.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_examples(url, Path(folder), dataset, refused)
        return open_data(Path(folder))


def write_examples(url: str, folder: Path, dataset: str | None = None, refused: RefusedRows | None = None) -> None:
    """Write the examples of a file as Arrow files (`data_files.py`).

    Args:
        url: JSONL, TSV or Parquet file, a folder that jobs.mine wrote, or a folder with tables of queries, documents and scores.
        folder: Existing local folder for the Arrow files.
        dataset: BEIR folder with the ids that the examples name; None if they hold texts.
        refused: Counts refused rows of the dataset's corpus; None if the caller does not need them.

    Raises:
        ConfigError: The examples name ids and there is no dataset, or it lacks one of the ids.
        FormatError: A row has none of the forms, no document, or a score that is missing or not a finite number.
        OSError: The disk is full.
    """
    tables = score_tables(url)
    rows = _examples(url if tables is None else tables.scores)
    first = next(rows, None)
    if first is None:
        raise FormatError(url, "examples", "none", f"a row is {FORMS}")
    by_id, has_scores = "query_id" in first[0], first[1][2] is not None
    if by_id and dataset is None and tables is None:
        raise ConfigError(f"{url} names queries and documents by id; give the collection they are in as --dataset")
    with tempfile.TemporaryDirectory(dir=folder) as name:
        scratch = Path(name)
        query_of_list = _write_rows(_uniform(rows, first, by_id, has_scores), scratch, has_scores)
        queries, documents = open_texts(scratch / QUERIES), open_texts(scratch / DOCUMENTS)
        order = write_groups(folder, query_of_list, len(queries))
        lists, scores = open_lists(scratch / LISTS)
        if by_id:
            source = url if dataset is None else dataset
            texts = tables if dataset is None and tables is not None else None
            _write_query_texts(source, texts.queries() if texts else all_queries(source), queries, folder / QUERIES)
            corpus = texts.documents() if texts else _corpus(source, refused)
            numbers = _write_document_texts(source, corpus, documents, folder / DOCUMENTS)
            renumber_lists(lists, scores, folder / LISTS, numbers)
            return
        os.replace(scratch / QUERIES, folder / QUERIES)
        if (order == np.arange(len(order))).all():  # documents are numbered in the order of the lists, grouped by query
            os.replace(scratch / DOCUMENTS, folder / DOCUMENTS)
            os.replace(scratch / LISTS, folder / LISTS)
        else:
            used = first_use(lists, order, len(documents))
            reorder_texts(documents, folder / DOCUMENTS, used)
            renumber_lists(lists, scores, folder / LISTS, np.argsort(used))


def _write_rows(rows: Iterator[Row], scratch: Path, has_scores: bool) -> np.ndarray:
    """Write rows as numbered lists, with the distinct queries and documents (texts or ids) by number; return the query of each list."""
    query_numbers, document_numbers = Numbering(), Numbering()
    parts = []
    with TextFile(scratch / QUERIES) as queries, TextFile(scratch / DOCUMENTS) as documents, ListFile(scratch / LISTS, has_scores) as lists:
        while block := list(islice(rows, ROWS_AT_ONCE)):
            numbers, new = query_numbers.number([query for query, _, _ in block])
            parts.append(numbers.astype(np.int32))
            queries.extend(new)
            numbers, new = document_numbers.number([document for _, each, _ in block for document in each])
            documents.extend(new)
            column = as_lists(numbers, np.array([len(each) for _, each, _ in block]))
            lists.write(column, *([[scores for _, _, scores in block]] if has_scores else []))
    return np.concatenate(parts)


def _examples(url: str) -> Iterator[tuple[dict[str, Any], Row, str]]:
    for where, fields in _rows(url):
        yield fields, _parse(fields, where), where


def _uniform(
    rows: Iterable[tuple[dict[str, Any], Row, str]], first: tuple[dict[str, Any], Row, str], by_id: bool, has_scores: bool
) -> Iterator[Row]:
    """Yield the rows from the first on, and check that either all or none have ids, and that either all or none have scores."""
    yield first[1]
    for fields, row, where in rows:
        kind = ("query_id" in fields, row[2] is not None)
        if kind != (by_id, has_scores):
            part = "scores" if kind[0] == by_id else "ids"
            raise FormatError(where, f"rows that all have {part}, or none", "a row unlike the first", "write them to files of their own")
        yield row


def _corpus(dataset: str, refused: RefusedRows | None) -> Iterator[tuple[str, str]]:
    """Yield id and text of each document of a dataset."""
    return ((each.doc_id, document_text(each.title, each.text)) for each in read_documents(find_corpus(dataset), refused))


def _write_query_texts(source: str, texts: Iterator[tuple[str, str]], query_ids: Texts, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        scratch = Path(folder) / QUERIES
        place = _write_texts(source, "query", texts, query_ids, scratch)
        missing = np.flatnonzero(place < 0)
        if len(missing):
            raise ConfigError(
                f"{len(missing)} of {len(place)} queries of the examples are not in {source}, for example {query_ids[int(missing[0])]!r}; "
                "give the dataset that the examples were made from"
            )
        reorder_texts(open_texts(scratch), path, place)


def _write_document_texts(source: str, texts: Iterator[tuple[str, str]], doc_ids: Texts, path: Path) -> np.ndarray:
    """Write the texts of documents in the order of the corpus; return the place of each, [D]."""
    place = _write_texts(source, "document", texts, doc_ids, path)
    missing = np.flatnonzero(place < 0)
    if len(missing):
        raise missing_documents(len(missing), len(place), min(doc_ids[number] for number in missing.tolist()))
    return place


def _write_texts(source: str, kind: str, texts: Iterator[tuple[str, str]], ids: Texts, path: Path) -> np.ndarray:
    """Write the texts with these ids in the order in which they come; return the place of each, [N], -1 for an id without a text."""
    numbers = _numbering(ids)
    place, hashes = np.full(len(ids), -1, np.int64), np.zeros(len(ids), np.int64)
    with TextFile(path) as file:
        for block in blocks(texts):
            found = numbers.find([text_id for text_id, _ in block])
            for number, (text_id, text) in zip(found.tolist(), block, strict=True):
                if number >= 0 and place[number] < 0:
                    place[number], hashes[number] = len(file), hash(text)
                    file.add(text)
                elif number >= 0 and hashes[number] != hash(text):
                    raise ConfigError(f"{source} has two texts for {kind} {text_id!r}; give a dataset with one text for each {kind}")
    return place


def _numbering(texts: Texts) -> Numbering:
    numbering = Numbering()
    for block in texts.blocks():
        numbering.number(block)
    return numbering


def _rows(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in _files(url):
        yield from grouped(_file_rows(file))


def _file_rows(file: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if file.endswith(TSV_SUFFIXES):
        yield from triples(file)
    else:
        for line, row in read_rows(file):
            where = f"{file}:{line}"
            try:
                fields = parse_json(row)
            except ValueError as error:
                raise FormatError(where, "a JSON object", f"{error}", f"a row is {FORMS}") from None
            if isinstance(fields, list):
                fields = from_list(fields, where)
            if not isinstance(fields, dict):
                raise FormatError(where, "a JSON object", type(fields).__name__, f"a row is {FORMS}")
            yield where, fields


def _files(url: str) -> list[str]:
    """The files of examples: the parts of a folder that jobs.mine wrote, or the file itself."""
    if not storage.is_folder(url):
        return [url]
    manifest = read_manifest(storage.join(url, MANIFEST), TuplesManifest, "jobs.mine")
    for part in manifest.parts:
        check_file(url, part)
    return [storage.join(url, part.name) for part in manifest.parts]


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
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        raise FormatError(where, "Unicode text", "half of a surrogate pair", "repair or leave out the row") from None
    return values


def _scores(values: Any, num_documents: int, where: str) -> list[float]:
    if not isinstance(values, list) or len(values) != num_documents:
        raise FormatError(where, f"{num_documents} scores, one for each document", f"{values!r:.60}", "score every document")
    for value in values:
        if not isinstance(value, int | float) or isinstance(value, bool) or not -LARGEST_SCORE <= value <= LARGEST_SCORE:
            raise FormatError(where, "teacher's scores that are finite float32 numbers", f"{value!r:.60}", "leave out rows without a score")
    return [float(value) for value in values]
