"""plaid: probe the nearest centroids, score candidates by centroids in two stages, rescore the survivors (docs/algorithms.md#23-plaid).

Engine auto uses a shorter form: it scores the documents of the probed clusters by all their centroids, like scan, and does not prune
(docs/algorithms.md#27-plaid-in-engine-auto).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from ray_lir.engines.cost import DENSITY, FAR_CODES_NS, QUERY_TOKENS, READ_PAGE_NS, Costs, QueryCost, far, plan_ns, rescore_ns
from ray_lir.engines.engine import Allowed, Automatic, Engine, Scored, Stage
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import EngineConfig, RescoringConfig
from ray_lir.engines.plan import (
    NORMS_NPROBE,
    USUAL_TOKENS,
    IndexStatistics,
    Query,
    QueryPlan,
    among,
    centroid_interaction,
    centroid_scores,
)
from ray_lir.engines.scan import code_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

POSTING_NS = 5
"""Time to mark the document of a posting (bench/results/larger_than_memory.md)."""
POSTINGS_PER_DOCUMENT = 4
"""Postings of all query tokens for each document that is found. Real collections of 1 to 9 million tokens have 3 to 4, made-up ones 12."""


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
    """Documents kept by the first stage; a quarter of them is rescored. None: max(1024, 4 k) for k up to 100, else
    max(4096, 4 k)."""
    rescore: int | None = Field(None, ge=1, exclude_if=lambda count: count is None)
    """Documents rescored exactly: the documents of the probed clusters that are best by all their centroids. There is then only one
    candidate stage, without threshold and ncandidates. None: PLAID's two candidate stages, unless candidate_fraction is set."""
    candidate_fraction: float | None = Field(None, gt=0, exclude_if=lambda fraction: fraction is None)
    """Factor of the default number of documents to rescore (`IndexStatistics.default_candidates`). Engine auto sets it. The defaults of
    nprobe and rescore are then those of docs/algorithms.md#27-plaid-in-engine-auto. With the threshold or ncandidates, there are two
    candidate stages, and ncandidates defaults to four times the number. None: PLAID's defaults."""
    weighted_candidates: bool = Field(True, exclude_if=lambda weighted: weighted)
    """Weight query tokens in all stages, if the scorer weights them. no: only exact scores are weighted, as in TRIAL's table 8."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PlaidPlan(QueryPlan):
    """The plan of one query.

    Attributes:
        threshold: `params.centroid_score_threshold`; None if no centroid is pruned.
        clusters: [P] int64, the union of the clusters that query tokens probe, ascending.
        candidate_query: The query by which candidates are scored; without token weights unless `params.weighted_candidates`.
    """

    threshold: float | None
    clusters: np.ndarray
    candidate_query: Query


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: PlaidParams, k: int, kernels: Kernels) -> PlaidPlan:
    params = _complete(params, statistics, len(query.active), k)
    nprobe, ncandidates = params.nprobe or 1, params.ncandidates or 0
    candidate_query = query if params.weighted_candidates else _without_weights(query)
    # A token of weight 0 adds nothing to any score, so its clusters are not probed. Pruning compares unweighted scores.
    table, active = centroid_scores(candidate_query, codec, kernels), candidate_query.active
    clusters, _, _ = kernels.probe(table, len(query.vectors), statistics.cluster_sizes, nprobe, nprobe, 1)
    return PlaidPlan(
        query=query,
        params=params,
        stage_limits=(params.rescore, k) if params.rescore else (ncandidates, max(ncandidates // 4, k), k),
        threshold=params.centroid_score_threshold,
        clusters=np.unique(clusters[active]),
        candidate_query=candidate_query,
    )


def _skips_pruning(params: EngineConfig) -> bool:
    """Return whether documents are scored by all their centroids at once, instead of in PLAID's two stages."""
    assert isinstance(params, PlaidParams)
    automatic = params.candidate_fraction is not None and params.ncandidates is None and params.centroid_score_threshold is None
    return params.rescore is not None or automatic


def _defaults(k: int) -> tuple[int, float, int]:
    """nprobe, threshold and ncandidates of PLAID for k documents."""
    return (2, 0.5, 1024) if k <= 10 else (4, 0.45, 1024) if k <= 100 else (8, 0.4, 4096)


def _complete(params: PlaidParams, statistics: IndexStatistics, num_active: int, k: int) -> PlaidParams:
    """Return the parameters with defaults filled in."""
    nprobe, threshold, ncandidates = _defaults(k)
    rescore = params.rescore
    if params.candidate_fraction is not None:
        default = statistics.default_candidates(k, num_active, params.candidate_fraction)
        # A short query probes more clusters a token, so that the total is that of a query of usual length.
        nprobe = math.ceil(nprobe * max(1, USUAL_TOKENS / max(1, num_active)))
        ncandidates, rescore = 4 * default, rescore or default
    nprobe = params.nprobe or nprobe * (1 if statistics.unit_norms else NORMS_NPROBE)
    nprobe = min(nprobe, statistics.num_centroids)
    if _skips_pruning(params):
        assert rescore is not None
        return PlaidParams(nprobe=nprobe, rescore=max(rescore, k), weighted_candidates=params.weighted_candidates)
    return PlaidParams(
        nprobe=nprobe,
        centroid_score_threshold=threshold if params.centroid_score_threshold is None else params.centroid_score_threshold,
        ncandidates=max(params.ncandidates or max(ncandidates, 4 * k), k),
        weighted_candidates=params.weighted_candidates,
    )


def _cost(statistics: IndexStatistics, costs: Costs, candidates: int, k: int) -> QueryCost:
    tables = plan_ns(statistics, costs) + statistics.num_centroids * (costs.probe + costs.byte_table)
    lists = QUERY_TOKENS * _defaults(k)[0]
    postings = lists * DENSITY * statistics.tokens_per_centroid
    found = min(statistics.num_docs, postings / POSTINGS_PER_DOCUMENT)
    codes = found * (far(statistics) * FAR_CODES_NS + statistics.tokens_per_document * costs.code)
    reads = lists * READ_PAGE_NS if statistics.on_disk else 0
    return QueryCost.of(tables, postings * POSTING_NS + codes + reads, rescore_ns(statistics, costs, candidates))


def _without_weights(query: Query) -> Query:
    """Return the query with every token as important as any other."""
    return replace(query, weights=np.ones_like(query.weights) if query.norms is None else query.norms)


def _for_candidates(plan: PlaidPlan) -> PlaidPlan:
    return plan if plan.candidate_query is plan.query else replace(plan, query=plan.candidate_query)


def _found(plan: PlaidPlan, shard: IndexShard, kernels: Kernels, allowed: Allowed) -> np.ndarray:
    """Return the allowed documents with a token in a probed cluster."""
    numbers = kernels.candidates(plan.clusters, shard)
    return among(numbers, numbers, allowed)[0]


def _probe(
    plans: Sequence[PlaidPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(map(_for_candidates, plans), documents, strict=True):
        numbers = _found(plan, shard, kernels, allowed)
        threshold = None if plan.threshold is None else plan.threshold * codec.mean_norm
        scores = centroid_interaction(plan, shard, codec, kernels, threshold, numbers)
        pruned = np.flatnonzero(np.isneginf(scores))
        if len(pruned) and len(scores) - len(pruned) < plan.stage_limits[0]:
            full = centroid_interaction(plan, shard, codec, kernels, None, numbers[pruned])
            scores = scores.copy()
            scores[pruned] = full - _score_range(plan, codec, kernels)
        results.append(kernels.top_k(scores, numbers, plan.stage_limits[0]))
    return results


def _probe_all_codes(
    plans: Sequence[PlaidPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(map(_for_candidates, plans), documents, strict=True):
        numbers = _found(plan, shard, kernels, allowed)
        scores = code_scores(plan, shard, codec, kernels, numbers)
        if len(numbers) < plan.stage_limits[0]:
            others = np.setdiff1d(np.arange(shard.num_docs) if allowed is None else allowed, numbers, assume_unique=True)
            lower = code_scores(plan, shard, codec, kernels, others) - _score_range(plan, codec, kernels)
            scores, numbers = np.concatenate([scores, lower]), np.concatenate([numbers, others])
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
    runs=lambda params: not _skips_pruning(params),
)
INTERACT = Stage("interact", "The survivors, scored by all their centroids.", _interact, runs=lambda params: not _skips_pruning(params))
PROBE_ALL_CODES = Stage(
    "probe_all_codes",
    "Documents with a token in a probed cluster, scored by all their centroids. If they are too few, other documents come last.",
    _probe_all_codes,
    runs=_skips_pruning,
)
ENGINE = Engine(
    description="keeps the `ncandidates` best documents of the probed clusters by pruned centroid score, and rescores the best quarter "
    "of them by full centroid score",
    params=PlaidParams,
    plan=_plan,
    stages=(PROBE, INTERACT, PROBE_ALL_CODES, RESCORE, RELATE),
    postings=True,
    automatic=Automatic(lambda fraction: PlaidParams(candidate_fraction=fraction), _cost),
)
