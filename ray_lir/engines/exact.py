"""exact: every token of every document, from its code and residual. Nothing is lost but what compression lost."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_lir.config import Config
from ray_lir.engines.plan import Engine, IndexStatistics, Query, QueryPlan, Scored
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels
from ray_lir.kernels.reference import document_blocks


class ExactParams(Config):
    """Exact scoring has no parameters."""

    engine: Literal["exact"] = "exact"


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ExactParams, k: int) -> QueryPlan:
    return QueryPlan(query, params, (k,))


def score_all(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """MaxSim of every document; a block of tokens is decompressed once for all queries."""
    queries = [plan.query.vectors for plan in plans]
    weights = [plan.query.weights for plan in plans]
    scores = np.empty((len(plans), shard.num_docs), np.float32)
    for start, stop, first, last in document_blocks(shard.doc_offsets):
        tokens = kernels.decompress(shard.codes[first:last], shard.residuals[first:last], codec.centroids_f32, codec.weights)
        scores[:, start:stop] = kernels.maxsim(queries, weights, tokens, shard.doc_offsets[start : stop + 1] - first)
    numbers = np.arange(shard.num_docs)
    return [kernels.top_k(scores[i], numbers, plan.keeps[0]) for i, plan in enumerate(plans)]


def rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """MaxSim of the given documents: the last stage of every engine that first finds candidates."""
    return [_rescore(plan.query, shard, codec, kernels, numbers) for plan, numbers in zip(plans, documents, strict=True)]


def _rescore(query: Query, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, numbers: np.ndarray) -> Scored:
    tokens, offsets = shard.tokens(numbers)
    scores = np.empty(len(numbers), np.float32)
    for start, stop, first, last in document_blocks(offsets):
        block = tokens[first:last]
        vectors = kernels.decompress(shard.codes[block], shard.residuals[block], codec.centroids_f32, codec.weights)
        scores[start:stop] = kernels.maxsim([query.vectors], [query.weights], vectors, offsets[start : stop + 1] - first)[0]
    return scores, numbers


ENGINE = Engine(ExactParams, plan, (score_all,))
