"""exact: every token of every document, from its code and residual, by the scorer of the index. Nothing is lost but what compression lost.

Its `rescore` is the last stage of every engine that first finds candidates: there the weights of document tokens count, and TRIAL's
relations.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from ray_lir.base.engine_params import ExactParams
from ray_lir.engines.engine import Engine, Scored, Stage
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, RelationTerms, among
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ExactParams, k: int, kernels: Kernels) -> QueryPlan:
    return QueryPlan(query, params, (k,))


def score_all(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """The exact score of every document, or of those given, for as many queries at a time as the kernels like.

    On a CPU that is one: decoding a token is a tenth of scoring it, and several queries' tables of centroid scores push
    each other out of the processor's caches (eight together took twice the time each).
    """
    if plans[0].relation is not None:
        return rescore(plans, shard, codec, kernels, [np.arange(shard.num_docs) if mine is None else mine for mine in documents])
    if all(mine is not None and 2 * len(mine) < shard.num_docs for mine in documents):
        return rescore(plans, shard, codec, kernels, documents)
    numbers = np.arange(shard.num_docs)
    answers = []
    for start in range(0, len(plans), kernels.queries_together):
        batch = plans[start : start + kernels.queries_together]
        scores = _scores(batch, shard, codec, kernels, None)
        mine = documents[start : start + len(batch)]
        answers += [
            kernels.top_k(*among(row, numbers, only), plan.stage_limits[0]) for row, plan, only in zip(scores, batch, mine, strict=True)
        ]
    return answers


def rescore(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """The exact scores of the candidates; with TRIAL's relations of all that can be among the best, and -inf for the others."""
    return [(_rescored(plan, shard, codec, kernels, numbers), numbers) for plan, numbers in zip(plans, documents, strict=True)]


def _rescored(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, numbers: np.ndarray) -> np.ndarray:
    """[N] float32."""
    if plan.relation is None:
        return _scores([plan], shard, codec, kernels, numbers)[0]
    related = _related(plan, plan.relation, shard, codec, kernels)
    k = plan.stage_limits[-1]
    if 3 * k >= len(numbers) or shard.weights is not None:
        return related(numbers)
    bounds = _scores([plan], shard, codec, kernels, numbers)[0] + plan.relation.most(plan.query)
    scores = np.full(len(numbers), -np.inf, np.float32)
    _, first = kernels.top_k(bounds, np.arange(len(numbers)), k)
    scores[first] = related(numbers[first])
    others = np.setdiff1d(np.flatnonzero(bounds >= scores[first].min()), first)
    scores[others] = related(numbers[others])
    return scores


def _scores(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None
) -> np.ndarray:
    """[plans, N] float32, without relations."""
    tables = (plan.centroid_scores(codec, kernels) for plan in plans)  # made only if the kernels look at them
    return kernels.residual_maxsim(
        [plan.query.vectors for plan in plans], [plan.query.weights for plan in plans], tables, shard, codec, documents
    )


def _related(
    plan: QueryPlan, relation: RelationTerms, shard: IndexShard, codec: ResidualCodec, kernels: Kernels
) -> Callable[[np.ndarray], np.ndarray]:
    """What gives documents' scores by TRIAL. Masked tokens of the query are left out first: they are nobody's predecessor."""
    vectors, weights = plan.query.vectors[relation.live], plan.query.weights[relation.live]
    masked = len(vectors) < len(plan.query.vectors)
    table = kernels.centroid_scores(vectors, codec) if masked else plan.centroid_scores(codec, kernels)
    return partial(kernels.relation_maxsim, vectors, weights, relation.pairs, table, shard, codec)


RESCORE = Stage(
    "rescore",
    "The exact scores of the candidates; with TRIAL's relations of all that can be among the best, and -inf for the others.",
    rescore,
)
"""The last stage of every engine that first finds candidates."""
ENGINE = Engine(
    ExactParams,
    plan,
    (
        Stage(
            "score_all",
            "The exact score of every document, or of those given, for as many queries at a time as the kernels like.",
            score_all,
        ),
    ),
)
