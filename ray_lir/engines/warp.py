"""warp: score the tokens of probed cells without decompressing vectors, impute the rest, then rescore (ALGORITHMS 4)."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from ray_lir.config import Config
from ray_lir.engines.exact import rescore
from ray_lir.engines.plan import Engine, IndexStatistics, Query, QueryPlan, Scored, top_centroids
from ray_lir.index import postings
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class WarpParams(Config):
    """WARP's knobs, and how many of its candidates are rescored exactly."""

    engine: Literal["warp"] = "warp"
    nprobe: int | None = Field(None, ge=1)
    """Cells scored for each query token. None: 32."""
    t_prime: int | None = Field(None, ge=1)
    """A document not seen for a query token is given the score of the centroid at which this many tokens have been passed.
    None: tokens a centroid x nprobe x half the query tokens, within 5,000 and 200,000 (ALGORITHMS 4.2)."""
    bound: int | None = Field(None, ge=1)
    """Centroids passed on the way to t_prime, at most. None: 8 nprobe, or 5% of all if that is more."""
    rescore: int | None = Field(None, ge=0)
    """Candidates rescored exactly; 0 gives WARP's own scores. None: 512, or 2 k if that is more."""
    floor_at_imputed: bool = False
    """Let no seen score fall below the imputed one (ALGORITHMS 4.3)."""


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: WarpParams, k: int) -> QueryPlan:
    live = np.flatnonzero((query.weights > 0) & query.vectors.any(axis=1))
    params = _resolve(params, statistics, len(live), k)
    keeps = (max(params.rescore, k), k) if params.rescore else (k,)
    result = QueryPlan(query, params, keeps)
    scores_nC = result.centroid_scores(codec)
    cells = np.zeros((len(live), params.nprobe), np.int64)
    imputed = np.zeros(len(live), np.float32)
    for row, token in enumerate(live):
        order = top_centroids(scores_nC[token], params.bound)
        cells[row] = order[: params.nprobe]
        passed = np.cumsum(statistics.cluster_sizes[order])
        imputed[row] = scores_nC[token, order[min(np.searchsorted(passed, params.t_prime), len(order) - 1)]]
    result.terms.update(live=live, cells=cells, cell_scores=np.take_along_axis(scores_nC[live], cells, axis=1), imputed=imputed)
    return result


def _resolve(params: WarpParams, statistics: IndexStatistics, num_live: int, k: int) -> WarpParams:
    num_centroids = len(statistics.cluster_sizes)
    nprobe = min(params.nprobe or 32, num_centroids)
    expected = int(statistics.tokens_per_centroid * nprobe * max(1, num_live // 2))
    return WarpParams(
        nprobe=nprobe,
        t_prime=min(params.t_prime or int(np.clip(expected, 5_000, 200_000)), max(1, statistics.num_tokens)),
        bound=min(max(nprobe, params.bound or max(8 * nprobe, num_centroids // 20)), num_centroids),
        rescore=max(512, 2 * k) if params.rescore is None else params.rescore,
        floor_at_imputed=params.floor_at_imputed,
    )


def score_postings(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """WARP's score of every document with a token in a probed cell."""
    answers = []
    for plan in plans:
        totals = np.zeros(shard.num_docs)
        seen = np.zeros(shard.num_docs, bool)
        weights = plan.query.weights[plan.terms["live"]].astype(np.float64)
        for row, weight in enumerate(weights):
            numbers, best = _best_by_document(plan, row, shard, codec, kernels)
            gain = best - plan.terms["imputed"][row]
            totals[numbers] += weight * (np.maximum(gain, 0) if plan.params.floor_at_imputed else gain)
            seen[numbers] = True
        numbers = np.flatnonzero(seen)
        scores = (totals[numbers] + weights @ plan.terms["imputed"]).astype(np.float32)
        answers.append(kernels.top_k(scores, numbers, plan.keeps[0]))
    return answers


def _best_by_document(
    plan: QueryPlan, row: int, shard: IndexShard, codec: ResidualCodec, kernels: Kernels
) -> tuple[np.ndarray, np.ndarray]:
    """Documents with a token in the cells of one query token, ascending, and their best token score."""
    cells = plan.terms["cells"][row]
    sizes = shard.posting_offsets[cells + 1] - shard.posting_offsets[cells]
    tokens = postings.tokens_of(shard.postings, shard.posting_offsets, cells)
    query = plan.query.vectors[plan.terms["live"][row]]
    scores = kernels.posting_scores(query, np.repeat(plan.terms["cell_scores"][row], sizes), shard.residuals[tokens], codec.weights)
    numbers = postings.documents_of(tokens, shard.doc_offsets)
    order = np.argsort(numbers, kind="stable")
    found, starts = np.unique(numbers[order], return_index=True)
    return found, np.maximum.reduceat(scores[order], starts) if len(found) else scores


ENGINE = Engine(WarpParams, plan, (score_postings, rescore))
