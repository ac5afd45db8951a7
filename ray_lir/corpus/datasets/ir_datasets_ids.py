"""Collections of the package ir_datasets, by identifiers such as `ir_datasets:msmarco-passage/dev/small`."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ray_lir import storage
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.corpus.datasets.dataset import Dataset, judged_texts

PREFIX = "ir_datasets:"


def is_identifier(place: str) -> bool:
    """Return whether a text is an identifier of ir_datasets."""
    return place.startswith(PREFIX)


def load(place: str) -> list[Dataset]:
    """Return the judged queries of an identifier, in a list. The identifier names the split.

    Raises:
        ConfigError: ir_datasets is missing or does not know the identifier, or the collection has no queries or judgements.
        FormatError: A judged query has no text.
    """
    found = _open(place)
    for part in ("queries", "qrels"):
        if not getattr(found, f"has_{part}")():
            raise ConfigError(f"{place} has no {part}; give an identifier with queries and judgements, such as {PREFIX}beir/scifact/test")
    qrels: dict[str, dict[str, int]] = {}
    for judgement in _rows(place, found.qrels_iter):
        qrels.setdefault(judgement.query_id, {})[judgement.doc_id] = int(judgement.relevance)
    if not qrels:
        raise ConfigError(f"{place} has no judgements; give an identifier with judgements")
    texts = dict(queries(place))
    name = place.removeprefix(PREFIX)
    return [Dataset(name.replace("/", "."), storage.base_name(name), judged_texts(qrels, texts, place, place), qrels, place)]


def queries(place: str) -> Iterator[tuple[str, str]]:
    """Yield id and text of every query.

    Raises:
        ConfigError: ir_datasets is missing, does not know the identifier, or cannot download it.
    """
    for query in _rows(place, _open(place).queries_iter):
        yield query.query_id, _text(query)


def document_ids(place: str) -> Iterator[str]:
    """Yield the id of every document.

    Raises:
        ConfigError: ir_datasets is missing, does not know the identifier, or cannot download it.
    """
    return (document.doc_id for document in _rows(place, _open(place).docs_iter))


def export_corpus(place: str, cache: Path) -> str:
    """Return a file with the documents as JSON lines; it is written on the first call.

    Args:
        place: Identifier.
        cache: Folder for the file.

    Raises:
        ConfigError: ir_datasets is missing or does not know the identifier, or the collection has no documents.
    """
    target = cache / place.removeprefix(PREFIX).replace("/", ".") / "corpus.jsonl"
    if target.exists():
        return str(target)
    found = _open(place)
    if not found.has_docs():
        raise ConfigError(f"{place} has no documents; give an identifier with documents")
    with storage.attempt_folder(str(target.parent)) as attempt:
        with (attempt / target.name).open("w", encoding="utf-8") as file:
            for document in _rows(place, found.docs_iter):
                fields = {"_id": document.doc_id, "title": getattr(document, "title", "") or "", "text": _text(document)}
                file.write(json.dumps(fields, ensure_ascii=False) + "\n")
        storage.publish(attempt / target.name, str(target))
    return str(target)


def _text(row: Any) -> str:
    """The text of a query or a document. `text` alone if there is one, since `default_text` also has the title."""
    text = getattr(row, "text", None)
    return text if isinstance(text, str) else str(row.default_text())


def _open(place: str) -> Any:
    require("ir_datasets", f"reading {place}")
    import ir_datasets

    try:
        return ir_datasets.load(place.removeprefix(PREFIX))
    except KeyError:
        raise ConfigError(f"ir_datasets has no collection {place.removeprefix(PREFIX)!r}; see https://ir-datasets.com") from None


def _rows(place: str, rows: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yield rows; a failing download is one line. It can fail in the call already."""
    try:
        yield from rows()
    except (OSError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(f"ir_datasets cannot read {place} ({why}); without network, give a folder") from error
