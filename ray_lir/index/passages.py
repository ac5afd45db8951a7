"""Passages: an index in which each window of a document is a row of its own, and hits are grouped by document.

The passages of a document are consecutive rows of one shard, with the document's id, title and metadata. The first passage of a document
begins at the first character of its text.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from ray_lir.corpus.records import document_text


def split_texts(documents: pa.Table, spans: np.ndarray) -> pa.Table:
    """Return the passages of documents as a table with the same columns.

    Args:
        documents: Table of N documents with the columns doc_id, title, text and metadata.
        spans: [P, 2], first and end character of all passages in `document_text(title, text)`, in order.
    """
    columns: dict[str, list[str]] = {name: [] for name in documents.column_names}
    ends = [*np.flatnonzero(spans[:, 0] == 0)[1:].tolist(), len(spans)]
    start = 0
    for row, end in zip(documents.to_pylist(), ends, strict=True):
        joined = document_text(row["title"], row["text"])
        begin = max(0, len(joined) - len(row["text"].rstrip()))
        parts = [joined[max(first, begin) : last] for first, last in spans[start:end].tolist()]
        columns["text"] += [row["text"]] if len(parts) == 1 else parts
        for name in columns.keys() - {"text"}:
            columns[name] += [row[name]] * len(parts)
        start = end
    return pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})


def join_texts(rows: Sequence[Mapping[str, str]], spans: np.ndarray) -> dict[str, str]:
    """Return the document of some passages: the fields of the first one, with the whole text.

    Args:
        rows: The passages of one document, in order: dicts with doc_id, title, text and metadata.
        spans: [P, 2], first and end character of each in `document_text(title, text)`.
    """
    if len(rows) == 1:
        return dict(rows[0])
    text, end = rows[0]["text"], int(spans[0, 1])
    for row, (_, last) in zip(rows[1:], spans[1:].tolist(), strict=True):
        text += row["text"][max(0, len(row["text"]) - (last - end)) :]
        end = last
    return {**rows[0], "text": text}


def span_in_text(title: str, first: int, end: int) -> tuple[int, int]:
    """Return the first and end character of a passage in the text of its document.

    Args:
        title: Title of the document.
        first: First character of the passage in `document_text(title, text)`.
        end: Character after the passage there.
    """
    begin = len(title.lstrip()) + 1 if title.strip() else 0
    return max(first - begin, 0), max(end - begin, 0)
