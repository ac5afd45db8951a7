"""scan: score every document by its centroid codes, refine the best by their nearest tokens, then rescore the best of them exactly.

No clusters are probed, so no document is missed.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import AliasChoices, ConfigDict, Field

from ray_lir.engines.cost import Costs, QueryCost, maxsim_ns, plan_ns, rescore_ns, visit_ns, width
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among, centroid_scores, scan_table
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

MORE_CANDIDATES = 1.25
"""Default number of candidates if they are refined, over the number if all of them are rescored (bench/README.md, "Refining")."""
RESCORED = (2.4, 8)
"""Documents that are rescored after candidates are refined, by default: 2.4 k + 8 (bench/README.md, "Refining")."""
RESCORED_FRACTION = 1 / 6
"""At least this fraction of the default number of candidates is rescored, which is more for short queries."""


class ScanParams(RescoringConfig):
    """Parameters of scan: how many documents it rescores."""

    model_config = ConfigDict(validate_by_name=True)

    engine: Literal["scan"] = "scan"
    ncandidates: int | None = Field(None, ge=1)
    """Candidates: documents that are best by centroid score. They are all rescored exactly, unless `rescore` is set. None: 4 k, or more for
    a large index or a short query (`IndexStatistics.default_candidates`), a quarter more if `rescore` is None too; four times as many if
    vector lengths differ."""
    rescore: int | None = Field(None, ge=1, exclude_if=lambda count: count is None)
    """Documents rescored exactly: the candidates that are best when only the nearest document tokens are decoded (stage `refine`). None:
    2.4 k + 8, or more for a short query, if `ncandidates` is None; otherwise all candidates. If vector lengths differ, or the scorer has
    terms of its own, None always means all candidates."""
    candidate_fraction: float = Field(1, gt=0, validation_alias=AliasChoices("candidate_fraction", "share"))
    """Factor of the default number of candidates, used if ncandidates is None. `--quality` and jobs.tune set it, because it applies to any
    k and any query length."""


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: ScanParams, k: int, kernels: Kernels) -> QueryPlan:
    default = statistics.default_candidates(k, len(query.active), params.candidate_fraction)
    rescore = params.rescore
    if params.ncandidates is None and rescore is None and _refines(statistics, kernels):
        rescore = max(round(RESCORED[0] * k) + RESCORED[1], round(RESCORED_FRACTION * default))
        default = round(MORE_CANDIDATES * default)
    ncandidates = max(k, params.ncandidates or default)
    if rescore is None:
        return QueryPlan(query, ScanParams(ncandidates=ncandidates), (ncandidates, k))
    rescore = min(max(k, rescore), ncandidates)
    return QueryPlan(query, ScanParams(ncandidates=ncandidates, rescore=rescore), (ncandidates, rescore, k))


def _refines(statistics: IndexStatistics, kernels: Kernels) -> bool:
    """Return whether candidates are refined by default.

    Centroid scores do not select the nearest tokens if vector lengths differ. A scorer with terms of its own may rank candidates otherwise
    than MaxSim. A GPU rescores all candidates faster than it selects tokens.
    """
    return statistics.unit_norms and not statistics.scorer_cost and kernels.name != "cuda"


def _score_codes(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    numbers = np.arange(shard.num_docs)
    results = []
    for plan, allowed in zip(plans, documents, strict=True):
        scores = code_scores(plan, shard, codec, kernels)
        results.append(kernels.top_k(*among(scores, numbers, allowed), plan.stage_limits[0]))
    return results


def _refine(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, numbers in zip(plans, documents, strict=True):
        assert numbers is not None
        query, table = plan.query, scan_table(plan.query, codec, kernels)
        scores = kernels.nearest_maxsim(query.vectors, query.weights, table, shard, codec, numbers)
        results.append((scores, numbers))
    return results


def code_scores(
    plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None = None
) -> np.ndarray:
    """Return the centroid scores of documents, with each centroid scaled to the length of the token.

    Args:
        plan: The plan of the query.
        shard: The shard that holds the documents.
        codec: The codec of the index.
        kernels: The kernels that score codes.
        documents: [N] ascending numbers inside the shard; None for all documents.

    Returns:
        [N] float32, -inf for a document without tokens.
    """
    if plan.unit_norms:
        return kernels.scan_codes(scan_table(plan.query, codec, kernels), plan.query.weights, shard, documents)
    codes = norm_codes(shard)
    table = kernels.scan_table(codes.table(centroid_scores(plan.query, codec, kernels)))
    return kernels.scan_codes(table, plan.query.weights, codes.shard, documents)


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int, k: int) -> QueryCost:
    tables = plan_ns(statistics, costs) + statistics.num_centroids * costs.byte_table
    scan = statistics.num_tokens * costs.code
    if statistics.scorer_cost or not statistics.unit_norms:
        return QueryCost.of(tables, scan, rescore_ns(statistics, costs, candidates))
    # Candidates are at least 4 k.
    rescored = min(candidates, round(RESCORED[0] * candidates / 4) + RESCORED[1])
    refined = min(statistics.num_docs, MORE_CANDIDATES * candidates)
    refine = visit_ns(statistics, refined) + refined * statistics.tokens_per_document * costs.nearest * width(statistics)
    return QueryCost.of(tables, scan, refine, maxsim_ns(statistics, costs, rescored))


SCORE_CODES = Stage(
    "score_codes", "MaxSim of every document with each token replaced by its centroid, scaled to the token's length.", _score_codes
)
REFINE = Stage(
    "refine",
    "MaxSim with the decoded tokens of each query token's best centroid, plus half of what the second best centroid exceeds it.",
    _refine,
    reads_vectors=True,
    runs=lambda params: isinstance(params, ScanParams) and params.rescore is not None,
)
ENGINE = Engine(
    description="refines the `ncandidates` documents of the whole index that are best by centroid score, and rescores the best `rescore` "
    "of them",
    params=ScanParams,
    plan=_plan,
    stages=(SCORE_CODES, REFINE, RESCORE, RELATE),
    automatic=Automatic(lambda fraction: ScanParams(candidate_fraction=fraction), _cost),
)
