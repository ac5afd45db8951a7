"""warp: score the tokens of probed clusters without decompression, impute missing scores, then rescore (docs/algorithms.md#4-warp)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import AliasChoices, ConfigDict, Field

from ray_lir.engines.cost import DENSITY, FAR_TOKEN_NS, QUERY_TOKENS, READ_PAGE_NS, Costs, QueryCost, far, plan_ns, rescore_ns, width
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import NORMS_NPROBE, USUAL_TOKENS, IndexStatistics, Query, QueryPlan, among, centroid_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

NPROBE = 16
"""Clusters probed for each token of a query of usual length. With rescoring, 16 find the same top 10 as WARP's 32 (bench/README.md)."""


class WarpParams(RescoringConfig):
    """Parameters of warp: those of WARP, and how many of its candidates are rescored exactly."""

    model_config = ConfigDict(validate_by_name=True)

    engine: Literal["warp"] = "warp"
    nprobe: int | None = Field(None, ge=1)
    """Clusters probed for each query token. None: 16; a query of fewer than 21 tokens probes more for each token, so that the total is the
    same. Four times as many if vector lengths differ."""
    t_prime: int | None = Field(None, ge=1)
    """Position of the imputed score. Centroids are taken in descending order of score until their clusters hold this many tokens. A
    document without a token in the probed clusters gets the score of the last of these centroids. None: mean tokens of a cluster x nprobe x
    half the query tokens, clipped to 5,000 and 200,000 (docs/algorithms.md#42-parameters)."""
    bound: int | None = Field(None, ge=1)
    """Largest number of centroids taken to reach t_prime. None: 8 nprobe, or 5% of all centroids if that is more."""
    rescore: int | None = Field(None, ge=0)
    """Candidates rescored exactly; 0 returns WARP's own scores. None: 8 k, or twice the default of scan if that is more."""
    candidate_fraction: float = Field(1, gt=0, validation_alias=AliasChoices("candidate_fraction", "share"))
    """Factor of the default number of candidates, used if rescore is None (`ScanParams.candidate_fraction`)."""
    floor_at_imputed: bool = False
    """Raise token scores below the imputed score to the imputed score (docs/algorithms.md#43-choices)."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WarpPlan(QueryPlan):
    """The plan of one query with n' active tokens.

    Attributes:
        params: The parameters with all defaults filled in.
        active: [n'] int64, the active tokens.
        clusters: [n', nprobe] int64, the probed clusters.
        cluster_scores: [n', nprobe] float32, scores of their centroids.
        imputed: [n'] float32, score of the token in a document that has no token in its probed clusters.
    """

    params: WarpParams
    active: np.ndarray
    clusters: np.ndarray
    cluster_scores: np.ndarray
    imputed: np.ndarray


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: WarpParams, k: int, kernels: Kernels) -> WarpPlan:
    active = query.active
    nprobe, t_prime, bound, rescore = _defaults(params, statistics, len(active), k)
    table = centroid_scores(query, codec, kernels)
    clusters, scores, imputed = kernels.probe(table, len(query.vectors), statistics.cluster_sizes, nprobe, bound, t_prime)
    return WarpPlan(
        query=query,
        params=WarpParams(nprobe=nprobe, t_prime=t_prime, bound=bound, rescore=rescore, floor_at_imputed=params.floor_at_imputed),
        stage_limits=(max(rescore, k), k) if rescore else (k,),
        active=active,
        clusters=clusters[active],
        cluster_scores=scores[active],
        # The imputed score assumes a token of mean length, which is 1 for unit vectors.
        imputed=imputed[active] * np.float32(codec.mean_norm),
    )


def _defaults(params: WarpParams, statistics: IndexStatistics, num_active: int, k: int) -> tuple[int, int, int, int]:
    """nprobe, t_prime, bound and rescore, with defaults filled in."""
    num_centroids = len(statistics.cluster_sizes)
    usual = max(NPROBE, NPROBE * USUAL_TOKENS // max(1, num_active)) * (1 if statistics.unit_norms else NORMS_NPROBE)
    nprobe = min(params.nprobe or usual, num_centroids)
    expected = int(statistics.tokens_per_centroid * nprobe * max(1, num_active // 2))
    t_prime = min(params.t_prime or int(np.clip(expected, 5_000, 200_000)), max(1, statistics.num_tokens))
    bound = min(max(nprobe, params.bound or max(8 * nprobe, num_centroids // 20)), num_centroids)
    default = 2 * statistics.default_candidates(k, num_active, params.candidate_fraction)
    return nprobe, t_prime, bound, default if params.rescore is None else params.rescore


def _score_postings(
    plans: Sequence[WarpPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(plans, documents, strict=True):
        clusters, cluster_scores, scored = plan.clusters, plan.cluster_scores, shard
        if not plan.unit_norms:
            codes = norm_codes(shard)
            scored = codes.shard
            clusters, cluster_scores = codes.expand(clusters, cluster_scores)
        scores, numbers = kernels.posting_scores(
            plan.query.vectors[plan.active],
            plan.query.weights[plan.active],
            clusters,
            cluster_scores,
            plan.imputed,
            plan.params.floor_at_imputed,
            scored,
            codec,
        )
        results.append(kernels.top_k(*among(scores, numbers, allowed), plan.stage_limits[0]))
    return results


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int, k: int) -> QueryCost:
    probing = plan_ns(statistics, costs) + statistics.num_centroids * costs.probe
    postings = QUERY_TOKENS * NPROBE * DENSITY * statistics.tokens_per_centroid
    access = postings * (READ_PAGE_NS if statistics.on_disk else far(statistics) * FAR_TOKEN_NS)
    return QueryCost.of(probing, postings * costs.posting * width(statistics) + access, rescore_ns(statistics, costs, 2 * candidates))


SCORE_POSTINGS = Stage("score_postings", "WARP's score of every document with a token in a probed cluster.", _score_postings)
ENGINE = Engine(
    description="rescores the `rescore` documents of the probed clusters that are best by WARP's score",
    params=WarpParams,
    plan=_plan,
    stages=(SCORE_POSTINGS, RESCORE, RELATE),
    postings=True,
    automatic=Automatic(lambda fraction: WarpParams(candidate_fraction=fraction), _cost),
)
