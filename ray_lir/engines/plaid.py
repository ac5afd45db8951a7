"""plaid: probe the nearest centroids, score candidates by centroids in two stages, rescore the survivors (docs/algorithms.md#23-plaid)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from ray_lir.engines.cost import DENSITY, QUERY_TOKENS, Costs, QueryCost, plan_ns, rescore_ns
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import NORMS_NPROBE, IndexStatistics, Query, QueryPlan, among, centroid_interaction, centroid_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

AUTO_NPROBE = 8
"""Centroids probed for each query token if engine auto chooses plaid."""
PRUNED_CODE = 2.5
"""Time of a candidate's code, most of which are pruned, over the time of a code in a scan (bench/results/larger_than_memory.md)."""


class PlaidParams(RescoringConfig):
    """The parameters of PLAID; the defaults depend on k."""

    engine: Literal["plaid"] = "plaid"
    nprobe: int | None = Field(None, ge=1)
    """Centroids probed for each query token. None: 2 for k up to 10, 4 for k up to 100, else 8. If vector lengths differ, four times
    as many."""
    centroid_score_threshold: float | None = None
    """The first stage ignores centroids that score below this threshold for every query token. If vector lengths differ, the threshold is
    multiplied by the mean length. Documents without any other centroid rank last. None: 0.5 for k up to 10, 0.45 for k up to 100, else
    0.4."""
    ncandidates: int | None = Field(None, ge=1)
    """Documents kept by the first stage; a quarter of them is rescored. None: max(1024, 4 k) for k up to 100, else max(4096, 4 k)."""
    candidate_fraction: float | None = Field(None, gt=0, exclude_if=lambda fraction: fraction is None)
    """Factor of scan's default number of candidates. The last stage then rescores as many documents as scan, and the first keeps four
    times as many, unless ncandidates is set; nprobe and the threshold default to 8 and 0.4. Engine auto sets it. None: PLAID's defaults."""
    weighted_candidates: bool = Field(True, exclude_if=lambda weighted: weighted)
    """Weight query tokens in all stages, if the scorer weights them. no: only exact scores are weighted, as in TRIAL's table 8."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PlaidPlan(QueryPlan):
    """The plan of one query.

    Attributes:
        threshold: `params.centroid_score_threshold`.
        clusters: [P] int64, the union of the clusters that query tokens probe, ascending.
        candidate_query: The query by which candidates are scored; without token weights unless `params.weighted_candidates`.
    """

    threshold: float
    clusters: np.ndarray
    candidate_query: Query


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: PlaidParams, k: int, kernels: Kernels) -> PlaidPlan:
    nprobe, threshold, ncandidates = (2, 0.5, 1024) if k <= 10 else (4, 0.45, 1024) if k <= 100 else (8, 0.4, 4096)
    if params.candidate_fraction is not None:
        nprobe, threshold = AUTO_NPROBE, 0.4
        ncandidates = 4 * statistics.default_candidates(k, len(query.active), params.candidate_fraction)
    nprobe = min(params.nprobe or nprobe * (1 if statistics.unit_norms else NORMS_NPROBE), codec.num_centroids)
    threshold = threshold if params.centroid_score_threshold is None else params.centroid_score_threshold
    ncandidates = max(params.ncandidates, k) if params.ncandidates else max(ncandidates, 4 * k)
    candidate_query = query if params.weighted_candidates else _without_weights(query)
    # A token of weight 0 adds nothing to any score, so its clusters are not probed. Pruning compares unweighted scores.
    table, active = centroid_scores(candidate_query, codec, kernels), candidate_query.active
    clusters, _, _ = kernels.probe(table, len(query.vectors), statistics.cluster_sizes, nprobe, nprobe, 1)
    return PlaidPlan(
        query=query,
        params=PlaidParams(
            nprobe=nprobe, centroid_score_threshold=threshold, ncandidates=ncandidates, weighted_candidates=params.weighted_candidates
        ),
        stage_limits=(ncandidates, max(ncandidates // 4, k), k),
        threshold=threshold,
        clusters=np.unique(clusters[active]),
        candidate_query=candidate_query,
    )


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int) -> QueryCost:
    probing = plan_ns(statistics, costs) + statistics.num_centroids * costs.probe
    postings = QUERY_TOKENS * AUTO_NPROBE * DENSITY * statistics.tokens_per_centroid
    # A document has postings of several query tokens, and about half of its tokens repeat a centroid.
    codes = min(statistics.num_docs, postings / 2) * statistics.tokens_per_document / 2
    return QueryCost.of(
        probing,
        codes * PRUNED_CODE * costs.code,
        4 * candidates * statistics.tokens_per_document * costs.code,
        rescore_ns(statistics, costs, candidates),
    )


def _without_weights(query: Query) -> Query:
    """Return the query with every token as important as any other."""
    return replace(query, weights=np.ones_like(query.weights) if query.norms is None else query.norms)


def _for_candidates(plan: PlaidPlan) -> PlaidPlan:
    return plan if plan.candidate_query is plan.query else replace(plan, query=plan.candidate_query)


def _probe(
    plans: Sequence[PlaidPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(map(_for_candidates, plans), documents, strict=True):
        numbers = kernels.candidates(plan.clusters, shard)
        numbers, _ = among(numbers, numbers, allowed)
        scores = centroid_interaction(plan, shard, codec, kernels, plan.threshold * codec.mean_norm, numbers)
        pruned = np.flatnonzero(np.isneginf(scores))
        if len(pruned) and len(scores) - len(pruned) < plan.stage_limits[0]:
            full = centroid_interaction(plan, shard, codec, kernels, None, numbers[pruned])
            scores = scores.copy()
            scores[pruned] = full - _score_range(plan, codec, kernels)
        results.append(kernels.top_k(scores, numbers, plan.stage_limits[0]))
    return results


def _score_range(plan: PlaidPlan, codec: ResidualCodec, kernels: Kernels) -> np.float32:
    """An upper bound of the difference between two documents' centroid scores, if their token vectors have at most the mean length."""
    weights = plan.query.weights.astype(np.float64)
    largest = np.abs(centroid_scores(plan.query, codec, kernels)[:, : len(weights)]).max(axis=0)
    return np.float32(codec.mean_norm * (2 * weights @ largest + 1))


def _interact(
    plans: Sequence[PlaidPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    return [
        (centroid_interaction(plan, shard, codec, kernels, None, numbers), numbers)
        for plan, numbers in zip(map(_for_candidates, plans), documents, strict=True)
        if numbers is not None
    ]


PROBE = Stage(
    "probe",
    "Documents with a token in a probed cluster, scored by their centroids above the threshold; documents without one come last.",
    _probe,
)
INTERACT = Stage("interact", "The survivors, scored by all their centroids.", _interact)
ENGINE = Engine(
    description="keeps the `ncandidates` best documents of the probed clusters by pruned centroid score, and rescores the best quarter "
    "of them by full centroid score",
    params=PlaidParams,
    plan=_plan,
    stages=(PROBE, INTERACT, RESCORE, RELATE),
    postings=True,
    automatic=Automatic(lambda fraction: PlaidParams(candidate_fraction=fraction), _cost, on_disk_only=True),
)
