"""warp: score the tokens of probed clusters without decompressing vectors, impute the rest, then rescore (docs/algorithms.md#4-warp)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import AliasChoices, ConfigDict, Field

from ray_lir.base.config import Config
from ray_lir.engines.cost import QUERY_TOKENS, Costs, QueryCost, plan_ns, rescore_ns, width
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RESCORE
from ray_lir.engines.plan import NORMS_NPROBE, USUAL_TOKENS, IndexStatistics, Query, QueryPlan, among, centroid_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

NPROBE = 16
"""Clusters for each token of a usual query. With rescoring, half of WARP's 32 finds the same best 10 (bench/README.md)."""
DENSITY = 1.7
"""Tokens in a probed cluster over tokens in an average cluster (SciFact)."""


class WarpParams(Config):
    """WARP's parameters, and how many of its candidates are rescored exactly."""

    model_config = ConfigDict(validate_by_name=True)

    engine: Literal["warp"] = "warp"
    nprobe: int | None = Field(None, ge=1)
    """Clusters scored for each query token. None: 16, or more for a query of fewer than 21 tokens, so that the total is the same; four
    times that if vector lengths differ."""
    t_prime: int | None = Field(None, ge=1)
    """A document without a scored token for a query token gets the score of the centroid at which this many tokens have been passed.
    None: tokens a centroid x nprobe x half the query tokens, within 5,000 and 200,000 (docs/algorithms.md#42-parameters)."""
    bound: int | None = Field(None, ge=1)
    """Centroids passed on the way to t_prime, at most. None: 8 nprobe, or 5% of all centroids if that is more."""
    rescore: int | None = Field(None, ge=0)
    """Candidates rescored exactly; 0 returns WARP's own scores. None: 8 k, or twice the default of scan if that is more."""
    candidate_fraction: float = Field(1, gt=0, validation_alias=AliasChoices("candidate_fraction", "share"))
    """Factor of the default number, used if rescore is None (ScanParams.candidate_fraction)."""
    floor_at_imputed: bool = False
    """Let no score of a token fall below the imputed one (docs/algorithms.md#43-choices)."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class WarpPlan(QueryPlan):
    """A query's plan, for its n' active tokens.

    Attributes:
        active: [n'] int64, the active tokens.
        clusters: [n', nprobe] int64, the probed clusters.
        cluster_scores: [n', nprobe] float32, scores of their centroids.
        imputed: [n'] float32, score of a token in a document of no probed cluster.
    """

    active: np.ndarray
    clusters: np.ndarray
    cluster_scores: np.ndarray
    imputed: np.ndarray


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: WarpParams, k: int, kernels: Kernels) -> WarpPlan:
    """Return the plan of a query; the arguments are those of `Engine.plan`."""
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
        # Unseen tokens are assumed to have the mean length of the index's vectors, which is 1 for unit vectors.
        imputed=imputed[active] * np.float32(codec.mean_norm),
    )


def _defaults(params: WarpParams, statistics: IndexStatistics, num_active: int, k: int) -> tuple[int, int, int, int]:
    """nprobe, t_prime, bound and rescore."""
    num_centroids = len(statistics.cluster_sizes)
    usual = max(NPROBE, NPROBE * USUAL_TOKENS // max(1, num_active)) * (1 if statistics.unit_norms else NORMS_NPROBE)
    nprobe = min(params.nprobe or usual, num_centroids)
    expected = int(statistics.tokens_per_centroid * nprobe * max(1, num_active // 2))
    t_prime = min(params.t_prime or int(np.clip(expected, 5_000, 200_000)), max(1, statistics.num_tokens))
    bound = min(max(nprobe, params.bound or max(8 * nprobe, num_centroids // 20)), num_centroids)
    default = 2 * statistics.default_candidates(k, num_active, params.candidate_fraction)
    return nprobe, t_prime, bound, default if params.rescore is None else params.rescore


def score_postings(
    plans: Sequence[WarpPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    """Score the documents of probed clusters; the arguments are those of `Stage.run`."""
    answers = []
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
        answers.append(kernels.top_k(*among(scores, numbers, allowed), plan.stage_limits[0]))
    return answers


def cost(statistics: IndexStatistics, costs: Costs, candidates: int) -> QueryCost:
    """Return the estimated time of a query; the arguments are those of `Automatic.cost`."""
    probing = plan_ns(statistics, costs) + statistics.num_centroids * costs.probe
    postings = QUERY_TOKENS * NPROBE * DENSITY * statistics.tokens_per_centroid * costs.posting * width(statistics)
    return QueryCost.of(probing, postings, rescore_ns(statistics, costs, 2 * candidates))


SCORE_POSTINGS = Stage("score_postings", "WARP's score of every document with a token in a probed cluster.", score_postings)
ENGINE = Engine(
    description="of the documents with a token in a probed cluster: the `rescore` best by WARP's score",
    params=WarpParams,
    plan=plan,
    stages=(SCORE_POSTINGS, RESCORE),
    postings=True,
    automatic=Automatic(lambda fraction: WarpParams(candidate_fraction=fraction), cost),
)
