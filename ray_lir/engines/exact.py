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
    """MaxSim of every document, for as many queries at a time as the kernels like.

    On a CPU that is one: decoding a token is a tenth of scoring it, and several queries' tables of centroid scores push
    each other out of the processor's caches (eight together took twice the time each).
    """
    numbers = np.arange(shard.num_docs)
    answers = []
    for start in range(0, len(plans), kernels.queries_together):
        batch = plans[start : start + kernels.queries_together]
        scores = _maxsim(batch, shard, codec, kernels, None)
        answers += [kernels.top_k(row, numbers, plan.keeps[0]) for row, plan in zip(scores, batch, strict=True)]
    return answers


def rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """MaxSim of the given documents: the last stage of every engine that first finds candidates."""
    return [(_maxsim([plan], shard, codec, kernels, numbers)[0], numbers) for plan, numbers in zip(plans, documents, strict=True)]


def _maxsim(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None
) -> np.ndarray:
    """[plans, N] float32."""
    tables = (plan.centroid_scores(codec, kernels) for plan in plans)  # made only if the kernels look at them
    return kernels.residual_maxsim(
        [plan.query.vectors for plan in plans], [plan.query.weights for plan in plans], tables, shard, codec, documents
    )


ENGINE = Engine(ExactParams, plan, (score_all,))
