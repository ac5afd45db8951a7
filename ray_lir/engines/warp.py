"""warp: score the tokens of probed cells without decompressing vectors, impute the rest, then rescore (docs/algorithms.md#4-warp)."""

from collections.abc import Sequence

import numpy as np

from ray_lir.base.engine_params import WarpParams
from ray_lir.engines.engine import Engine, Scored, Stage
from ray_lir.engines.exact import RESCORE
from ray_lir.engines.plan import NORMS_NPROBE, USUAL_TOKENS, IndexStatistics, Query, QueryPlan, among
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

NPROBE = 16
"""Cells for each token of a usual query: half of WARP's 32 finds the same best 10 once they are rescored (bench/README.md)."""


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: WarpParams, k: int, kernels: Kernels) -> QueryPlan:
    live = query.live
    params = _resolve(params, statistics, len(live), k)
    limits = (max(params.rescore, k), k) if params.rescore else (k,)
    result = QueryPlan(query, params, limits)
    table = result.centroid_scores(codec, kernels)
    cells, cell_scores, imputed = kernels.probe(
        table, len(query.vectors), statistics.cluster_sizes, params.nprobe, params.bound, params.t_prime
    )
    # mean_norm is 1 for unit vectors. What was not seen is taken to be as long as vectors of the index are on average.
    result.terms.update(live=live, cells=cells[live], cell_scores=cell_scores[live], imputed=imputed[live] * np.float32(codec.mean_norm))
    return result


def _resolve(params: WarpParams, statistics: IndexStatistics, num_live: int, k: int) -> WarpParams:
    num_centroids = len(statistics.cluster_sizes)
    usual = max(NPROBE, NPROBE * USUAL_TOKENS // max(1, num_live)) * (1 if statistics.unit_norms else NORMS_NPROBE)
    nprobe = min(params.nprobe or usual, num_centroids)
    expected = int(statistics.tokens_per_centroid * nprobe * max(1, num_live // 2))
    return WarpParams(
        nprobe=nprobe,
        t_prime=min(params.t_prime or int(np.clip(expected, 5_000, 200_000)), max(1, statistics.num_tokens)),
        bound=min(max(nprobe, params.bound or max(8 * nprobe, num_centroids // 20)), num_centroids),
        rescore=2 * statistics.default_candidates(k, num_live, params.share) if params.rescore is None else params.rescore,
        floor_at_imputed=params.floor_at_imputed,
    )


def score_postings(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """WARP's score of every document with a token in a probed cell."""
    answers = []
    for plan, mine in zip(plans, documents, strict=True):
        live, terms, scored = plan.terms["live"], plan.terms, shard
        cells, cell_scores = terms["cells"], terms["cell_scores"]
        if not plan.unit_norms:
            codes = norm_codes(shard)
            scored = codes.shard
            cells, cell_scores = codes.expand(cells, cell_scores)
        scores, numbers = kernels.posting_scores(
            plan.query.vectors[live],
            plan.query.weights[live],
            cells,
            cell_scores,
            terms["imputed"],
            plan.params.floor_at_imputed,
            scored,
            codec,
        )
        answers.append(kernels.top_k(*among(scores, numbers, mine), plan.stage_limits[0]))
    return answers


SCORE_POSTINGS = Stage("score_postings", "WARP's score of every document with a token in a probed cell.", score_postings)
ENGINE = Engine(WarpParams, plan, (SCORE_POSTINGS, RESCORE))
