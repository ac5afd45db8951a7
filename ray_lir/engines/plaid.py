"""plaid: probe the nearest centroids, score candidates by centroids in two stages, rescore the rest (docs/algorithms.md#23-plaid.4)."""

from collections.abc import Sequence

import numpy as np

from ray_lir.base.engine_params import PlaidParams
from ray_lir.engines.engine import Engine, Scored, Stage
from ray_lir.engines.exact import RESCORE
from ray_lir.engines.plan import NORMS_NPROBE, IndexStatistics, Query, QueryPlan, among, centroid_interaction
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: PlaidParams, k: int, kernels: Kernels) -> QueryPlan:
    nprobe, threshold, ncandidates = (2, 0.5, 1024) if k <= 10 else (4, 0.45, 1024) if k <= 100 else (8, 0.4, 4096)
    nprobe *= 1 if statistics.unit_norms else NORMS_NPROBE
    params = PlaidParams(
        nprobe=min(params.nprobe or nprobe, codec.num_centroids),
        centroid_score_threshold=threshold if params.centroid_score_threshold is None else params.centroid_score_threshold,
        ncandidates=max(params.ncandidates, k) if params.ncandidates else max(ncandidates, 4 * k),
    )
    result = QueryPlan(query, params, (params.ncandidates, max(params.ncandidates // 4, k), k))
    # A token of weight 0 adds nothing to any score, so it need not find candidates; pruning looks at unweighted scores.
    live = (query.weights > 0) & query.vectors.any(axis=1)
    table, nprobe = result.centroid_scores(codec, kernels), params.nprobe
    cells, _, _ = kernels.probe(table, len(live), statistics.cluster_sizes, nprobe, nprobe, 1)
    result.terms["cells"] = np.unique(cells[live])
    return result


def probe(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """Documents with a token in a probed cell, scored by their centroids above the threshold; those without such a centroid come last."""
    answers = []
    for plan, allowed in zip(plans, documents, strict=True):
        numbers = kernels.candidates(plan.terms["cells"], shard)
        numbers, _ = among(numbers, numbers, allowed)
        scores = centroid_interaction(plan, shard, codec, kernels, plan.params.centroid_score_threshold * codec.mean_norm, numbers)
        pruned = np.flatnonzero(np.isneginf(scores))
        if len(pruned) and len(scores) - len(pruned) < plan.stage_limits[0]:
            full = centroid_interaction(plan, shard, codec, kernels, None, numbers[pruned])
            scores = scores.copy()
            scores[pruned] = full - _score_range(plan, codec, kernels)
        answers.append(kernels.top_k(scores, numbers, plan.stage_limits[0]))
    return answers


def _score_range(plan: QueryPlan, codec: ResidualCodec, kernels: Kernels) -> np.float32:
    """At least the difference between any two centroid scores of documents whose tokens are no longer than is usual in the index."""
    weights = plan.query.weights.astype(np.float64)
    largest = np.abs(plan.centroid_scores(codec, kernels)[:, : len(weights)]).max(axis=0)
    return np.float32(codec.mean_norm * (2 * weights @ largest + 1))


def interact(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """The survivors, scored by all their centroids."""
    return [
        (centroid_interaction(plan, shard, codec, kernels, None, numbers), numbers) for plan, numbers in zip(plans, documents, strict=True)
    ]


PROBE = Stage(
    "probe",
    "Documents with a token in a probed cell, scored by their centroids above the threshold; those without such a centroid come last.",
    probe,
)
INTERACT = Stage("interact", "The survivors, scored by all their centroids.", interact)
ENGINE = Engine(PlaidParams, plan, (PROBE, INTERACT, RESCORE))
