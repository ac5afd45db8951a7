"""scan: every document scored by its centroid codes alone, the best rescored exactly. No probing, so nothing is lost to it."""

from collections.abc import Sequence

import numpy as np

from ray_lir.base.engine_params import ScanParams
from ray_lir.engines.engine import Engine, Scored, Stage
from ray_lir.engines.exact import RESCORE
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ScanParams, k: int, kernels: Kernels) -> QueryPlan:
    ncandidates = max(k, params.ncandidates or statistics.default_candidates(k, len(query.live), params.share))
    return QueryPlan(query, ScanParams(ncandidates=ncandidates), (ncandidates, k))


def score_codes(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """Centroid interaction of every document: MaxSim with every token replaced by its centroid, as long as the token."""
    numbers = np.arange(shard.num_docs)
    answers = []
    for plan, mine in zip(plans, documents, strict=True):
        scores = _scan(plan, shard, codec, kernels)
        answers.append(kernels.top_k(*among(scores, numbers, mine), plan.stage_limits[0]))
    return answers


def _scan(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels) -> np.ndarray:
    """[N] float32."""
    if plan.unit_norms:
        return kernels.scan_codes(plan.scan_table(codec, kernels), plan.query.weights, shard)
    codes = norm_codes(shard)
    return kernels.scan_codes(kernels.scan_table(codes.table(plan.centroid_scores(codec, kernels))), plan.query.weights, codes.shard)


SCORE_CODES = Stage(
    "score_codes",
    "Centroid interaction of every document: MaxSim with every token replaced by its centroid, as long as the token.",
    score_codes,
)
ENGINE = Engine(ScanParams, plan, (SCORE_CODES, RESCORE))
