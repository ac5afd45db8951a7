"""Lookup: documents by their ids, and their exact scores."""

import asyncio
from collections.abc import Sequence

import numpy as np

from ray_lir.api.search import Document, Reranked, RerankRequest, RerankResponse
from ray_lir.base.errors import NotFound
from ray_lir.engines.plan import merge
from ray_lir.kernels import Kernels

from ..request_context import Turn
from ..workers.query_encoder import Planned
from . import replies


async def find(turn: Turn, doc_ids: Sequence[str]) -> dict[str, tuple[str, int]]:
    """The group and number of each document.

    Raises:
        NotFound: if there is no such document.
        ShardUnavailable: if a group does not answer in time.
    """
    asked = await turn.everywhere("find", doc_ids)
    found = {doc_id: (group, number) for group, numbers in asked.items() for doc_id, number in numbers.items()}
    for doc_id in doc_ids:
        if doc_id not in found:
            raise NotFound(f"there is no document {doc_id!r} in the index")
    return found


async def get_document(turn: Turn, group: str, number: int) -> Document:
    [fields] = await turn.ask(group, "documents", np.array([number]), ("title", "text", "metadata"))
    return replies.document(number, fields, turn.served.answering)


async def rerank(turn: Turn, request: RerankRequest, kernels: Kernels) -> RerankResponse:
    """Orders texts, or documents of the index, by their exact score.

    Raises:
        NotFound: if there is no such document.
        ShardUnavailable: if the encoder or a group does not answer in time.
    """
    if request.texts is not None:
        scores = await turn.encoder("score", request.query, list(request.texts))
    else:
        scores = await _scores(turn, request.query, request.doc_ids or [], kernels)
    of_query = await turn.encoder("truncations", [request.query], "query")
    of_texts = await turn.encoder("truncations", list(request.texts), "document") if request.texts else []
    order = [position for position in np.argsort(-scores, kind="stable").tolist() if scores[position] > -np.inf]
    ids = request.doc_ids
    results = [
        Reranked(position=position, doc_id=ids[position] if ids else None, score=float(scores[position])) for position in order[: request.k]
    ]
    return RerankResponse(
        results=results,
        truncated_queries=replies.truncated(of_query),
        truncated_texts=replies.truncated(of_texts),
        index_version=turn.served.answering,
    )


async def _scores(turn: Turn, query: str, doc_ids: Sequence[str], kernels: Kernels) -> np.ndarray:
    """[doc_ids] the exact score of each document; -inf for one without tokens."""
    found = await find(turn, doc_ids)
    planned: Planned = await turn.encoder("plan", [query], len(doc_ids), "exact", "exact")
    shares: dict[str, list[int]] = {}
    for group, number in found.values():
        shares.setdefault(group, []).append(number)
    parts = await asyncio.gather(*(turn.ask(name, "rescore", planned.plans[0], np.array(mine)) for name, mine in shares.items()))
    best = merge(parts, len(found), kernels)
    scores = dict(zip(best.documents.tolist(), best.scores.tolist(), strict=True))
    return np.array([scores.get(found[doc_id][1], -np.inf) for doc_id in doc_ids])
