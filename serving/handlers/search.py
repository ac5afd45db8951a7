"""`POST /search`: plans the queries, runs the stages on all shard groups, and returns the best documents."""

import time
from collections.abc import Sequence
from dataclasses import replace

from ray_lir.api.search import DocumentField, SearchRequest, SearchResponse, Timings
from ray_lir.engines.choice import engine_params
from ray_lir.engines.plan import TopK
from ray_lir.kernels import Kernels
from ray_lir.search.grouping import best_of_documents, first_depth, next_depth
from ray_lir.search.searcher import finish

from ..request_context import RequestContext
from ..scatter import Found, Scatter
from ..workers.query_encoder import Planned
from . import replies
from .explain import explain_hits


async def search(context: RequestContext, request: SearchRequest, kernels: Kernels) -> SearchResponse:
    """Search for one or several queries.

    Args:
        context: The request's version, deadline and transport.
        request: Queries, engine, filters and options.
        kernels: Merge the results of the groups.

    Raises:
        ConfigError: There is no such engine, or it has no such parameters.
        ShardUnavailable: The query encoder did not answer in time, or the groups that did cover less than `min_coverage`.
    """
    start = time.perf_counter()
    engine = engine_params(request.engine, request.params)
    has_passages = context.snapshot.manifest.contract.has_passages
    depth: int | None = first_depth(request.k) if has_passages else request.k
    while True:
        planned: Planned = await context.call_encoder("plan", request.texts, depth, engine, request.quality)
        scatter = Scatter(context, kernels, request.min_coverage, request.filters)
        found = await scatter.find(planned.plans, _document_fields(request))
        best = finish(planned.plans, found.kept[-1])
        if not has_passages:
            break
        grouped = [best_of_documents(each, _owners(each, found), request.k) for each in best]
        depth = next_depth(best, grouped, request.k, depth or 0)
        if depth is None:
            best, found = grouped, replace(found, kept=[*found.kept[:-1], grouped])
            break
    searched = time.perf_counter()
    explained = await explain_hits(scatter, request.texts, planned.plans, found) if request.explain or request.highlight else None
    end = time.perf_counter()
    extra = explained.hit_fields(request, found.documents) if explained else [None] * len(best)
    return SearchResponse(
        results=[replies.hits(each, found.documents, request.include, fields) for each, fields in zip(best, extra, strict=True)],
        query_tokens=explained.tokens if explained and request.explain else None,
        truncated_queries=replies.truncated(planned.truncations),
        engine=planned.plans[0].params.engine,
        params=[answer.params for answer in best],
        timings=Timings(
            encode=_milliseconds(planned.encode),
            plan=_milliseconds(planned.plan),
            stages=[_milliseconds(seconds) for seconds in found.stage_seconds],
            documents=_milliseconds(found.document_seconds),
            explain=_milliseconds(end - searched) if explained else None,
            total=_milliseconds(end - start),
        ),
        index_version=context.served.answering,
        coverage=found.coverage,
        missing=found.missing,
        warnings=scatter.warnings,
    )


def _owners(top: TopK, found: Found) -> list[str]:
    """Return the id of each passage's document."""
    return [found.documents[number]["doc_id"] for number in top.documents.tolist()]


def _document_fields(request: SearchRequest) -> Sequence[DocumentField]:
    """The fields to fetch: the included ones, and all if matches are located in them (metadata may have the grid of a page)."""
    return ("metadata", "text", "title") if request.explain or request.highlight else request.include


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 2)
