"""Searching: from a search request to its reply."""

import time
from collections.abc import Sequence

from ray_lir.api.search import DocumentField, SearchRequest, SearchResponse, Timings
from ray_lir.kernels import Kernels
from ray_lir.search.searcher import finish

from ..request_context import Turn
from ..scatter import Scatter
from ..workers.query_encoder import Planned
from . import replies
from .explain import explain_hits


async def search(turn: Turn, request: SearchRequest, kernels: Kernels) -> SearchResponse:
    """Plans once, sends every stage to all shard groups, merges what they answer.

    Raises:
        ShardUnavailable: if the encoder, or too many groups, did not answer in time.
    """
    start = time.perf_counter()
    planned: Planned = await turn.encoder("plan", request.texts, request.k, request.chosen_engine(), request.quality)
    scatter = Scatter(turn, kernels, request.min_coverage, request.filters)
    found = await scatter.find(planned.plans, _fields(request))
    best = finish(planned.plans, found.kept[-1])
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
            encode=_ms(planned.encode),
            plan=_ms(planned.plan),
            stages=[_ms(seconds) for seconds in found.stage_seconds],
            documents=_ms(found.document_seconds),
            explain=_ms(end - searched) if explained else None,
            total=_ms(end - start),
        ),
        index_version=turn.served.answering,
        coverage=found.coverage,
        missing=found.missing,
        warnings=scatter.warnings,
    )


def _fields(request: SearchRequest) -> Sequence[DocumentField]:
    """Those asked for, and those that explaining needs."""
    return sorted({*request.include, "title", "text"}) if request.explain or request.highlight else request.include


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)
