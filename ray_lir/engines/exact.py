"""exact: every token of every document, from its code and residual. Nothing is lost but what compression lost."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_lir.config import Config
from ray_lir.engines.plan import Engine, IndexStatistics, Query, QueryPlan, Scored
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class ExactParams(Config):
    """Exact scoring has no parameters."""

    engine: Literal["exact"] = "exact"


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ExactParams, k: int, kernels: Kernels) -> QueryPlan:
    return QueryPlan(query, params, (k,))


def score_all(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """MaxSim of every document.

    One query after another: decoding a token is a tenth of scoring it, and several queries' tables of centroid scores push
    each other out of the processor's caches (eight together took twice the time each).
    """
    numbers = np.arange(shard.num_docs)
    return [kernels.top_k(_maxsim(plan, shard, codec, kernels, None), numbers, plan.keeps[0]) for plan in plans]


def rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """MaxSim of the given documents: the last stage of every engine that first finds candidates."""
    return [(_maxsim(plan, shard, codec, kernels, numbers), numbers) for plan, numbers in zip(plans, documents, strict=True)]


def _maxsim(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None) -> np.ndarray:
    """[N] float32."""
    query, table = plan.query, plan.centroid_scores(codec, kernels)
    return kernels.residual_maxsim([query.vectors], [query.weights], [table], shard, codec, documents)[0]


ENGINE = Engine(ExactParams, plan, (score_all,))
