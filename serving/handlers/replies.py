"""Converts documents, hits and truncations into the models of the API."""

from collections.abc import Mapping, Sequence
from typing import Any

from ray_lir.api.search import Document, DocumentField, Hit, TextTruncation
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines.plan import TopK


def hits(
    best: TopK, documents: dict[int, dict[str, Any]], include: Sequence[DocumentField], extra: Mapping[int, dict[str, Any]] | None = None
) -> list[Hit]:
    """The hits of a query, best first.

    Args:
        best: Scores and document numbers.
        documents: The documents' fields, by document number.
        include: Names of the fields that a hit shows.
        extra: Further fields of the hits (matches, highlights, snippet), by document number. None: no further fields.
    """
    return [
        Hit(
            score=score,
            number=number,
            doc_id=documents[number]["doc_id"],
            sides=best.sides.of_hit(row) if best.sides else None,
            **{**_passage(documents[number]), **(extra[number] if extra else {})},
            **{name: documents[number][name] for name in include},
        )
        for row, (score, number) in enumerate(zip(best.scores.tolist(), best.documents.tolist(), strict=True))
    ]


def _passage(fields: dict[str, Any]) -> dict[str, Any]:
    return {"passage": fields["passage"]} if "passage" in fields else {}


def document(number: int, fields: dict[str, Any], index_version: int) -> Document:
    """A document as the API describes it.

    Args:
        number: Document number.
        fields: doc_id, title, text and metadata.
        index_version: Version of the index that holds it.
    """
    return Document(number=number, index_version=index_version, **fields)


def truncated(truncations: Sequence[Truncation]) -> list[TextTruncation]:
    """The texts that were truncated, with their positions in the request."""
    return [
        TextTruncation(position=position, kept_tokens=each.kept, total_tokens=each.total, exact=each.exact)
        for position, each in enumerate(truncations)
        if each.is_cut
    ]
