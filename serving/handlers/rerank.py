"""`POST /rerank`: orders texts, or documents of the index, by their exact score."""

import asyncio
from collections.abc import Sequence

import numpy as np

from ray_lir.api.search import Reranked, RerankRequest, RerankResponse
from ray_lir.engines.plan import merge
from ray_lir.kernels import Kernels

from ..request_context import RequestContext
from ..workers.query_encoder import Planned
from . import replies
from .documents import find


async def rerank(context: RequestContext, request: RerankRequest, kernels: Kernels) -> RerankResponse:
    """Score texts, or documents of the index, and order them, best first.

    Args:
        context: The request's version, deadline and transport.
        request: The query, and the texts or document ids.
        kernels: Merge the results of the groups.

    Raises:
        NotFound: The index has no such document.
        ShardUnavailable: The query encoder or a group does not answer in time.
    """
    if request.texts is not None:
        scores = await context.call_encoder("score", request.query, list(request.texts))
    else:
        scores = await _document_scores(context, request.query, request.doc_ids or [], kernels)
    query_truncations = await context.call_encoder("truncations", [request.query], "query")
    text_truncations = await context.call_encoder("truncations", list(request.texts), "document") if request.texts else []
    order = [position for position in np.argsort(-scores, kind="stable").tolist() if scores[position] > -np.inf]
    ids = request.doc_ids
    results = [
        Reranked(position=position, doc_id=ids[position] if ids else None, score=float(scores[position])) for position in order[: request.k]
    ]
    return RerankResponse(
        results=results,
        truncated_queries=replies.truncated(query_truncations),
        truncated_texts=replies.truncated(text_truncations),
        index_version=context.served.answering,
    )


async def _document_scores(context: RequestContext, query: str, doc_ids: Sequence[str], kernels: Kernels) -> np.ndarray:
    """[doc_ids] float64, the exact score of each document; -inf for a document without tokens."""
    found = await find(context, doc_ids)
    by_group: dict[str, list[int]] = {}
    for group, number in found.values():
        by_group.setdefault(group, []).append(number)
    owners: dict[int, int] = {number: number for _, number in found.values()}
    if context.snapshot.manifest.contract.has_passages:  # the best passage of each document counts
        passages = await asyncio.gather(*(context.call(group, "passages_of", numbers) for group, numbers in by_group.items()))
        for (group, numbers), rows in zip(list(by_group.items()), passages, strict=True):
            owners |= {int(row): number for number, each in zip(numbers, rows, strict=True) for row in each}
            by_group[group] = [int(row) for each in rows for row in each]
    planned: Planned = await context.call_encoder("plan", [query], len(owners), "exact", "exact")
    calls = (context.call(group, "rescore", planned.plans[0], np.array(numbers)) for group, numbers in by_group.items())
    best = merge(await asyncio.gather(*calls), len(owners), kernels)
    scores: dict[int, float] = {}
    for number, score in zip(best.documents.tolist(), best.scores.tolist(), strict=True):
        scores.setdefault(owners[number], score)
    return np.array([scores.get(found[doc_id][1], -np.inf) for doc_id in doc_ids])
