"""Replies: documents, hits and cut texts as messages."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_lir.api.search import Document, DocumentField, Hit, TextTruncation
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines.plan import TopK


def hits(
    answer: TopK, documents: dict[int, dict[str, Any]], include: Sequence[DocumentField], extra: Mapping[int, dict[str, Any]] | None = None
) -> list[Hit]:
    """The documents of an answer, best first, with the fields that were asked for.

    Args:
        extra: other fields of the hits, by document.
    """
    return [
        Hit(
            score=score,
            number=number,
            doc_id=documents[number]["doc_id"],
            **(extra[number] if extra else {}),
            **{name: documents[number][name] for name in include},
        )
        for score, number in zip(answer.scores.tolist(), answer.documents.tolist(), strict=True)
    ]


def document(number: int, fields: dict[str, Any], index_version: int) -> Document:
    return Document(number=number, index_version=index_version, **fields)


def truncated(truncations: Sequence[Truncation]) -> list[TextTruncation]:
    """The texts that were cut."""
    return [
        TextTruncation(position=position, kept_tokens=each.kept, total_tokens=each.total, exact=each.exact)
        for position, each in enumerate(truncations)
        if each.is_cut
    ]
