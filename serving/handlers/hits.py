"""Answers: what was found, put into the replies' words."""

from collections.abc import Sequence
from typing import Any

from ray_lir.api.search import Document, DocumentField, Hit, Match, QueryToken, TextTruncation
from ray_lir.embeddings.truncation import Truncation
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.search.explain import TokenMatches, in_fields

from ..workers.query_encoder import Spans


def hits(
    answer: TopK, documents: dict[int, dict[str, Any]], include: Sequence[DocumentField], matches: dict[int, list[Match]] | None = None
) -> list[Hit]:
    """The documents of an answer, best first, with the fields that were asked for."""
    return [
        Hit(
            score=score,
            number=number,
            doc_id=documents[number]["doc_id"],
            matches=matches[number] if matches else None,
            **{name: documents[number][name] for name in include},
        )
        for score, number in zip(answer.scores.tolist(), answer.documents.tolist(), strict=True)
    ]


def document(number: int, fields: dict[str, Any], index_version: int) -> Document:
    return Document(number=number, index_version=index_version, **fields)


def query_tokens(plan: QueryPlan, spans: Spans) -> list[QueryToken]:
    """The tokens of a query with their weights."""
    pieces, places = spans
    return [
        QueryToken(piece=piece, start=None if first < 0 else first, end=None if first < 0 else end, weight=weight)
        for piece, (first, end), weight in zip(pieces, places.tolist(), plan.query.importance.tolist(), strict=True)
    ]


def token_matches(found: TokenMatches, fields: dict[str, Any], spans: Spans) -> list[Match]:
    """What each query token matched in a document, and where that lies in its title or text."""
    places = in_fields(spans[1], fields["title"], fields["text"])
    matches = []
    for token, similarity, contribution in zip(
        found.tokens.tolist(), found.similarities.tolist(), found.contributions.tolist(), strict=True
    ):
        # an index that was made of other texts than it shows has more or fewer tokens than these have
        field, start, end = (places[token] if token < len(places) else None) or (None, None, None)
        matches.append(Match(similarity=similarity, contribution=contribution, field=field, start=start, end=end))
    return matches


def truncated(truncations: Sequence[Truncation]) -> list[TextTruncation]:
    """The texts that were cut."""
    return [
        TextTruncation(position=position, kept_tokens=each.kept, total_tokens=each.total, exact=each.exact)
        for position, each in enumerate(truncations)
        if each.is_cut
    ]
