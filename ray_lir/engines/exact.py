"""exact: score every document by the scorer of the index, from the codes and residuals of its tokens. Compression is the only loss.

Its stage `rescore` is the last stage of every engine that selects candidates first. `rescore` applies document token weights and the
scorer's own terms.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from ray_lir.engines.cost import READ_TOKEN_NS, Costs, QueryCost, maxsim_ns, plan_ns, width
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among
from ray_lir.engines.scoring.maxsim import best_scores, maxsim_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class ExactParams(RescoringConfig):
    """Parameters of exact. By default all documents are scored exactly."""

    engine: Literal["exact"] = "exact"


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ExactParams, k: int, kernels: Kernels) -> QueryPlan:
    return QueryPlan(query, params, (k,))


def _score_all(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    """Score all allowed documents.

    On a CPU, queries are scored one at a time. Decoding a token takes a tenth of the time of scoring it, so little is gained by decoding
    once for several queries. The score tables of eight queries do not fit the caches together, and each query took twice as long.
    """
    plans = [_first_pass(plan) for plan in plans]
    if plans[0].scorer_terms is not None:
        return _rescore(plans, shard, codec, kernels, [np.arange(shard.num_docs) if each is None else each for each in documents])
    if all(each is not None and 2 * len(each) < shard.num_docs for each in documents):
        return _rescore(plans, shard, codec, kernels, documents)
    numbers = np.arange(shard.num_docs)
    results = []
    for start in range(0, len(plans), kernels.queries_together):
        batch = plans[start : start + kernels.queries_together]
        with shard.whole_pass():
            scores = maxsim_scores(batch, shard, codec, kernels, None)
        allowed = documents[start : start + len(batch)]
        for row, plan, each in zip(scores, batch, allowed, strict=True):
            results.append(kernels.top_k(*among(row, numbers, each), plan.stage_limits[0]))
    return results


def _rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    return [
        (best_scores(plan, shard, codec, kernels, numbers, plan.stage_limits[-1]), numbers)
        for plan, numbers in zip(map(_first_pass, plans), documents, strict=True)
        if numbers is not None
    ]


def _first_pass(plan: QueryPlan) -> QueryPlan:
    """Return the plan that scores documents before the stage `relate`; the same plan if there is no such stage."""
    return plan if plan.approximation is None else replace(plan, query=plan.approximation, scorer_terms=None, approximation=None)


def _relate(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    return [
        (plan.scorer_terms.scores(plan.query, shard, codec, kernels, numbers), numbers)
        for plan, numbers in zip(plans, documents, strict=True)
        if plan.scorer_terms is not None and numbers is not None
    ]


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int, k: int) -> QueryCost:
    # Every document gets its MaxSim score; scorer terms are computed for the candidates only.
    scored = maxsim_ns(statistics, costs, statistics.num_docs) + statistics.scorer_cost * maxsim_ns(statistics, costs, candidates)
    reads = statistics.num_tokens * READ_TOKEN_NS * width(statistics) if statistics.on_disk else 0
    return QueryCost.of(plan_ns(statistics, costs), scored + reads)


SCORE_ALL = Stage(
    "score_all",
    "The exact score of every document that filters allow; before the stage relate, with relations to first order.",
    _score_all,
    reads_vectors=True,
)
RESCORE = Stage(
    "rescore",
    "The exact scores of the candidates, -inf for those that relations cannot bring among the best; before the stage relate, with "
    "relations to first order.",
    _rescore,
    reads_vectors=True,
)
"""The last stage of every engine that selects candidates first, unless `relate` follows."""
RELATE = Stage(
    "relate",
    "The score with relations to the document tokens that are best by cosine plus relation to first order (params.relation_candidates).",
    _relate,
    reads_vectors=True,
)
"""The last stage of plans with `QueryPlan.approximation`."""
ENGINE = Engine(
    description="scores every document exactly",
    params=ExactParams,
    plan=_plan,
    stages=(SCORE_ALL, RELATE),
    automatic=Automatic(lambda fraction: ExactParams(), _cost),
)
