"""scan: score every document by its centroid codes, then rescore the best exactly. No clusters are probed, so no document is missed."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import AliasChoices, ConfigDict, Field

from ray_lir.engines.cost import Costs, QueryCost, plan_ns, rescore_ns
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among, centroid_scores, scan_table
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class ScanParams(RescoringConfig):
    """Parameters of scan: how many documents it rescores."""

    model_config = ConfigDict(validate_by_name=True)

    engine: Literal["scan"] = "scan"
    ncandidates: int | None = Field(None, ge=1)
    """Documents rescored exactly. None: 4 k, or more for a large index or a short query (`IndexStatistics.default_candidates`); four times
    as many if vector lengths differ."""
    candidate_fraction: float = Field(1, gt=0, validation_alias=AliasChoices("candidate_fraction", "share"))
    """Factor of the default number of candidates, used if ncandidates is None. `--quality` and jobs.tune set it, because it applies to any
    k and any query length."""


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ScanParams, k: int, kernels: Kernels) -> QueryPlan:
    default = statistics.default_candidates(k, len(query.active), params.candidate_fraction)
    ncandidates = max(k, params.ncandidates or default)
    return QueryPlan(query, ScanParams(ncandidates=ncandidates), (ncandidates, k))


def _score_codes(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    numbers = np.arange(shard.num_docs)
    results = []
    for plan, allowed in zip(plans, documents, strict=True):
        scores = _scan(plan, shard, codec, kernels)
        results.append(kernels.top_k(*among(scores, numbers, allowed), plan.stage_limits[0]))
    return results


def _scan(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels) -> np.ndarray:
    """Centroid scores [N] of all documents, float32."""
    if plan.unit_norms:
        return kernels.scan_codes(scan_table(plan.query, codec, kernels), plan.query.weights, shard)
    codes = norm_codes(shard)
    table = kernels.scan_table(codes.table(centroid_scores(plan.query, codec, kernels)))
    return kernels.scan_codes(table, plan.query.weights, codes.shard)


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int) -> QueryCost:
    tables = plan_ns(statistics, costs) + statistics.num_centroids * costs.byte_table
    return QueryCost.of(tables, statistics.num_tokens * costs.code, rescore_ns(statistics, costs, candidates))


SCORE_CODES = Stage(
    "score_codes", "MaxSim of every document with each token replaced by its centroid, scaled to the token's length.", _score_codes
)
ENGINE = Engine(
    description="rescores the `ncandidates` documents of the whole index that are best by centroid score",
    params=ScanParams,
    plan=_plan,
    stages=(SCORE_CODES, RESCORE, RELATE),
    automatic=Automatic(lambda fraction: ScanParams(candidate_fraction=fraction), _cost),
)
