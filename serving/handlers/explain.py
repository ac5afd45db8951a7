"""`POST /explain` and the explanations of hits: token matches, and why a document was found or not."""

import asyncio
from collections.abc import Iterator, Mapping
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
from ray_lir.search.grouping import best_of_documents, first_depth, next_depth

from ..request_context import RequestContext
from ..scatter import Found, Scatter
from ..workers.query_encoder import Matched, Planned
from . import replies
from .documents import find, get_document


@dataclass(frozen=True)
class Explained:
    """The tokens of each query, and their matches in each of its documents, by document number.

    `found` has the matched tokens by their numbers, and `matches` their positions in the document's fields.
    """

    tokens: list[list[QueryToken]]
    matches: list[dict[int, list[Match]]]
    found: list[dict[int, TokenMatches]]

    def hit_fields(self, request: SearchRequest, documents: Mapping[int, dict[str, Any]]) -> list[dict[int, dict[str, Any]]]:
        """Return for each query the fields matches, highlights, snippet and passage of its hits, by document number."""
        fields = []
        for query, tokens, matched, found in zip(request.texts, self.tokens, self.matches, self.found, strict=True):
            fields.append(
                {number: _fields(request, query, tokens, each, found[number], documents[number]) for number, each in matched.items()}
            )
        return fields


async def explain_hits(scatter: Scatter, queries: list[str], plans: list[QueryPlan], found: Found) -> Explained:
    """Return the matches of some queries in their documents.

    Args:
        scatter: Calls the shard groups.
        queries: Texts of the queries.
        plans: Plans of the queries.
        found: Documents that the search found.

    Raises:
        ShardUnavailable: The encoder or a group does not answer in time.
    """
    return await _explained(scatter, queries, plans, found.kept[-1], found.documents)


async def explain_document(context: RequestContext, request: ExplainRequest, kernels: Kernels) -> Explanation:
    """Run the search and report the score and rank of one document in every stage.

    Args:
        context: The request's version, deadline and transport.
        request: The query, the document's id and the settings of the search.
        kernels: Merge the results of the groups.

    Raises:
        NotFound: There is no such document.
        ShardUnavailable: The encoder or a group does not answer in time.
    """
    [(owner, number)] = (await find(context, [request.doc_id])).values()
    document = await get_document(context, owner, number)
    engine = engine_params(request.engine, request.params)
    has_passages = context.snapshot.manifest.contract.has_passages
    depth: int | None = first_depth(request.k) if has_passages else request.k
    while True:
        planned: Planned = await context.call_encoder("plan", [request.query], depth, engine, request.quality)
        [plan] = planned.plans
        scatter = Scatter(context, kernels, filters=request.filters)
        found = await scatter.find([plan], ())
        answers = [best for [best] in found.kept]
        if not has_passages:
            break
        grouped = best_of_documents(answers[-1], [found.documents[each]["doc_id"] for each in answers[-1].documents.tolist()], request.k)
        depth = next_depth(answers[-1:], [grouped], request.k, depth or 0)
        if depth is None:
            answers[-1] = grouped
            number = await _best_passage(context, owner, number, request.query, grouped)
            break
    scores, kept_out = await context.call(owner, "stage_scores", plan, number, request.filters)
    truncation = None
    if not context.snapshot.manifest.contract.windows:
        [truncation] = await context.call_encoder("truncations", [document_text(document.title, document.text)], "document")
    traced = trace(plan, answers, scores, number, kept_out, truncation)
    only = TopK(np.zeros(1, np.float32), np.array([number]))
    fields: dict[str, Any] = {"title": document.title, "text": document.text, "metadata": document.metadata}
    if has_passages:
        [fields] = await context.call(owner, "documents", np.array([number]), ("title", "text", "metadata"))
    explained = await _explained(scatter, [request.query], [plan], [only], {number: fields})
    shift = fields["passage"]["start"] if has_passages else 0
    return Explanation(
        document=document,
        rank=traced.rank,
        score=traced.score,
        dropped_at=traced.dropped_at,
        reason=traced.reason,
        truncation=next(iter(replies.truncated([truncation])), None) if truncation else None,
        truncated_queries=replies.truncated(planned.truncations),
        stages=[StageReport(**vars(stage)) for stage in traced.stages],
        query_tokens=explained.tokens[0],
        matches=[_shifted(match, shift) for match in explained.matches[0][number]],
        params=plan.params,
        warnings=scatter.warnings,
        index_version=context.served.answering,
    )


def _shifted(match: Match, shift: int) -> Match:
    """Return a match in a passage with its place in the document's text."""
    if match.field != "text" or match.start is None or match.end is None:
        return match
    return match.model_copy(update={"start": match.start + shift, "end": match.end + shift})


async def _best_passage(context: RequestContext, owner: str, number: int, query: str, answer: TopK) -> int:
    """Return the number of the best passage of a document: the one in the answer, or else the one with the best exact score."""
    [passages] = await context.call(owner, "passages_of", [number])
    found = answer.documents[np.isin(answer.documents, passages)]
    if not len(found):
        planned: Planned = await context.call_encoder("plan", [query], len(passages), "exact", "exact")
        found = (await context.call(owner, "rescore", planned.plans[0], passages)).documents
    return int(found[0]) if len(found) else number


async def _explained(
    scatter: Scatter, queries: list[str], plans: list[QueryPlan], best: list[TopK], documents: Mapping[int, dict[str, Any]]
) -> Explained:
    windows = scatter.context.snapshot.manifest.contract.windows is not None
    texts = [] if windows else [document_text(fields["title"], fields["text"]) for fields in documents.values()]
    (of_queries, of_documents), found = await asyncio.gather(
        scatter.context.call_encoder("spans", queries, texts), scatter.matches(plans, best)
    )
    if windows:  # only the windows that hold matches are tokenized, so the matches must be known
        located = [_located(each, documents[number]["title"], documents[number]["text"]) for each, number in _numbered(found)]
        spans = iter(await scatter.context.call_encoder("matched_spans", located))
    else:
        whole = dict(zip(documents, (spans for _, spans in of_documents), strict=True))
        spans = (highlights.spans_of(each.tokens, whole[number]) for each, number in _numbered(found))
    return Explained(
        tokens=[highlights.query_tokens(plan, *each) for plan, each in zip(plans, of_queries, strict=True)],
        matches=[
            {
                number: highlights.token_matches(
                    matches, documents[number]["title"], documents[number]["text"], next(spans), documents[number]["metadata"]
                )
                for number, matches in each.items()
            }
            for each in found
        ],
        found=found,
    )


def _located(found: TokenMatches, title: str, text: str) -> Matched:
    return found.tokens, highlights.row_windows(found, title, text), title, text


def _numbered(found: list[dict[int, TokenMatches]]) -> Iterator[tuple[TokenMatches, int]]:
    return ((matches, number) for each in found for number, matches in each.items())


def _fields(
    request: SearchRequest,
    query: str,
    tokens: list[QueryToken],
    matches: list[Match],
    found: TokenMatches,
    document: Mapping[str, Any],
) -> dict[str, Any]:
    fields: dict[str, Any] = {"matches": matches} if request.explain else {}
    if request.highlight:
        title, text = document["title"], document["text"]
        fields["passage"] = passage = highlights.best_window(found, query, tokens, title, text)
        within = None if found.is_passage else passage
        fields["highlights"], fields["snippet"] = highlights.highlighted(query, tokens, matches, title, text, within)
    return fields
