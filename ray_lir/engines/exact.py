"""exact: every token of every document, from its code and residual, by the scorer of the index. Only compression loses anything.

Its stage `rescore` is the last stage of every engine that first finds candidates. It applies the weights of document tokens and the
scorer's own terms.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from ray_lir.base.config import Config
from ray_lir.engines.cost import Costs, QueryCost, maxsim_ns, plan_ns
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among
from ray_lir.engines.scoring.maxsim import best_scores, maxsim_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class ExactParams(Config):
    """Exact scoring has no parameters."""

    engine: Literal["exact"] = "exact"


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ExactParams, k: int, kernels: Kernels) -> QueryPlan:
    """Return the plan of a query; the arguments are those of `Engine.plan`."""
    return QueryPlan(query, params, (k,))


def score_all(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    """Score all allowed documents; the arguments are those of `Stage.run`.

    On a CPU one query is scored at a time. Decoding a token takes a tenth of the time of scoring it, and the score tables of several
    queries do not fit the caches together: eight queries took twice the time each.
    """
    if plans[0].scorer_terms is not None:
        return rescore(plans, shard, codec, kernels, [np.arange(shard.num_docs) if each is None else each for each in documents])
    if all(each is not None and 2 * len(each) < shard.num_docs for each in documents):
        return rescore(plans, shard, codec, kernels, documents)
    numbers = np.arange(shard.num_docs)
    answers = []
    for start in range(0, len(plans), kernels.queries_together):
        batch = plans[start : start + kernels.queries_together]
        scores = maxsim_scores(batch, shard, codec, kernels, None)
        allowed = documents[start : start + len(batch)]
        for row, plan, each in zip(scores, batch, allowed, strict=True):
            answers.append(kernels.top_k(*among(row, numbers, each), plan.stage_limits[0]))
    return answers


def rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    """Score candidates exactly; the arguments are those of `Stage.run`, with the candidates of every plan."""
    return [
        (best_scores(plan, shard, codec, kernels, numbers, plan.stage_limits[-1]), numbers)
        for plan, numbers in zip(plans, documents, strict=True)
        if numbers is not None
    ]


def cost(statistics: IndexStatistics, costs: Costs, candidates: int) -> QueryCost:
    """Return the estimated time of a query; the arguments are those of `Automatic.cost`. Scorer terms are computed for candidates alone."""
    scored = maxsim_ns(statistics, costs, statistics.num_docs)
    return QueryCost.of(plan_ns(statistics, costs), scored + statistics.scorer_cost * maxsim_ns(statistics, costs, candidates))


SCORE_ALL = Stage("score_all", "The exact score of every document that filters allow.", score_all)
RESCORE = Stage(
    "rescore",
    "The exact scores of the candidates; with scorer terms, only of those that can be among the best, and -inf for the others.",
    rescore,
)
"""The last stage of every engine that first finds candidates."""
ENGINE = Engine(
    description="scores every document exactly",
    params=ExactParams,
    plan=plan,
    stages=(SCORE_ALL,),
    automatic=Automatic(lambda fraction: ExactParams(), cost),
)
