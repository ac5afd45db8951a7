"""Explaining: what the query's tokens matched in documents, and why a document was found or was not."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.api.search import ExplainRequest, Explanation, Match, QueryToken, SearchRequest, StageReport
from ray_lir.corpus.records import document_text
from ray_lir.engines.choice import engine_params
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.kernels import Kernels
from ray_lir.search import highlights
from ray_lir.search.explain import TokenMatches, trace

from ..request_context import RequestContext
from ..scatter import Found, Scatter
from ..workers.query_encoder import Planned
from . import replies
from .documents import find, get_document


@dataclass(frozen=True)
class Explained:
    """The tokens of each query, and for each of its documents, by number, what they matched."""

    tokens: list[list[QueryToken]]
    matches: list[dict[int, list[Match]]]

    def hit_fields(self, request: SearchRequest, documents: Mapping[int, dict[str, Any]]) -> list[dict[int, dict[str, Any]]]:
        """For each query the fields of its hits that say what matched: matches, highlights and snippet."""
        fields = []
        for query, tokens, matched in zip(request.texts, self.tokens, self.matches, strict=True):
            fields.append({number: _fields(request, query, tokens, each, documents[number]) for number, each in matched.items()})
        return fields


async def explain_hits(scatter: Scatter, queries: list[str], plans: list[QueryPlan], found: Found) -> Explained:
    """Raises ShardUnavailable if the encoder or a group does not answer in time."""
    return await _explained(scatter, queries, plans, found.kept[-1], found.documents)


async def explain_document(context: RequestContext, request: ExplainRequest, kernels: Kernels) -> Explanation:
    """Runs the search again and follows one document through it.

    Raises:
        NotFound: if there is no such document.
        ShardUnavailable: if the encoder or a group does not answer in time.
    """
    [(owner, number)] = (await find(context, [request.doc_id])).values()
    document = await get_document(context, owner, number)
    engine = engine_params(request.engine, request.params)
    planned: Planned = await context.call_encoder("plan", [request.query], request.k, engine, request.quality)
    [plan] = planned.plans
    scatter = Scatter(context, kernels, filters=request.filters)
    found = await scatter.find([plan], ())
    scores, kept_out = await context.call(owner, "stage_scores", plan, number, request.filters)
    [truncation] = await context.call_encoder("truncations", [document_text(document.title, document.text)], "document")
    told = trace(plan, [best for [best] in found.kept], scores, number, kept_out, truncation)
    only = TopK(np.zeros(1, np.float32), np.array([number]))
    explained = await _explained(scatter, [request.query], [plan], [only], {number: {"title": document.title, "text": document.text}})
    return Explanation(
        document=document,
        rank=told.rank,
        score=told.score,
        dropped_at=told.dropped_at,
        reason=told.reason,
        truncation=next(iter(replies.truncated([truncation])), None),
        truncated_queries=replies.truncated(planned.truncations),
        stages=[StageReport(**vars(stage)) for stage in told.stages],
        query_tokens=explained.tokens[0],
        matches=explained.matches[0][number],
        params=plan.params,
        warnings=scatter.warnings,
        index_version=context.served.answering,
    )


async def _explained(
    scatter: Scatter, queries: list[str], plans: list[QueryPlan], best: list[TopK], documents: Mapping[int, dict[str, Any]]
) -> Explained:
    texts = [document_text(fields["title"], fields["text"]) for fields in documents.values()]
    (of_queries, of_documents), found = await asyncio.gather(
        scatter.context.call_encoder("spans", queries, texts), scatter.matches(plans, best)
    )
    spans = dict(zip(documents, of_documents, strict=True))

    def of_document(number: int, matches: TokenMatches) -> list[Match]:
        return highlights.token_matches(matches, documents[number]["title"], documents[number]["text"], spans[number][1])

    return Explained(
        tokens=[highlights.query_tokens(plan, *each) for plan, each in zip(plans, of_queries, strict=True)],
        matches=[{number: of_document(number, matches) for number, matches in each.items()} for each in found],
    )


def _fields(
    request: SearchRequest, query: str, tokens: list[QueryToken], matches: list[Match], document: Mapping[str, Any]
) -> dict[str, Any]:
    fields: dict[str, Any] = {"matches": matches} if request.explain else {}
    if request.highlight:
        fields["highlights"], fields["snippet"] = highlights.highlighted(query, tokens, matches, document["title"], document["text"])
    return fields
