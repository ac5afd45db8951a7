"""xtr: retrieve the best tokens of the whole index for each query token, and impute what a document's unseen ones score.

Source: docs/algorithms.md#35-retrieval-and-imputation.

Which tokens are retrieved is decided over all shards before the first stage: every shard gives its best, and the best of those are
retrieved. So all shards must lie in one process, and the engine is for comparisons rather than for services.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from ray_lir.base.engine_params import Imputation, XtrParams
from ray_lir.engines.engine import Engine, Scored, Stage
from ray_lir.engines.exact import RESCORE
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among
from ray_lir.engines.token_index import token_index
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

K_PRIME = 4000
POWER_LAW_RANKS = 100
"""The power law is read at so many times the rank of the last retrieved token (docs/algorithms.md#9-where-sources-disagree)."""


def plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: XtrParams, k: int, kernels: Kernels) -> QueryPlan:
    params = XtrParams(
        k_prime=max(1, min(params.k_prime or max(K_PRIME, 4 * k), statistics.num_tokens)),
        imputation=params.imputation,
        nprobe=min(params.nprobe or codec.num_centroids, codec.num_centroids),
        rescore=params.rescore,
    )
    limits = (max(params.rescore, k), k) if params.rescore else (k,)
    result = QueryPlan(query, params, limits)
    live = np.flatnonzero((query.weights > 0) & query.vectors.any(axis=1))
    result.terms["live"] = live
    if params.nprobe < codec.num_centroids:
        table = result.centroid_scores(codec, kernels)
        cells, _, _ = kernels.probe(table, len(query.vectors), statistics.cluster_sizes, params.nprobe, params.nprobe, 1)
        result.terms["cells"] = cells[live]
    return result


def survey(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, documents: np.ndarray | None) -> dict[str, np.ndarray]:
    """This shard's best tokens, k_prime for each query token at most, one query token after another, best first.

    `rows` [hits] int64: which live query token; `scores` [hits] float32; `documents` [hits] int64: of the index; `worths` [hits]
    float32: scores times what the tokens weigh.
    """
    queries = plan.query.vectors[plan.terms["live"]]
    allowed = None if documents is None else shard.tokens(documents)[0]
    rows, tokens, scores = token_index(shard, codec).search(queries, plan.params.k_prime, plan.terms.get("cells"), allowed)
    weights = shard.token_weights(tokens)
    numbers = np.searchsorted(shard.doc_offsets, tokens, side="right") - 1
    worths = scores if weights is None else (weights * scores).astype(np.float32)
    return {"rows": rows, "scores": scores, "documents": numbers + shard.first_document, "worths": worths}


def settle(plan: QueryPlan, surveys: Sequence[dict[str, np.ndarray]]) -> QueryPlan:
    """The plan with the best tokens of all shards, ties to the first of the index, and `imputed` [live] float32."""
    hits = {name: np.concatenate([each[name] for each in surveys]) for name in ("rows", "scores", "documents", "worths")}
    # Shards come in the order of their documents and a stable sort keeps it, so that of equals the first stay.
    order = np.lexsort((-hits["scores"], hits["rows"]))
    rows = hits["rows"][order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    kept = order[ranks < plan.params.k_prime]
    hits = {name: values[kept] for name, values in hits.items()}
    bounds = np.searchsorted(hits["rows"], np.arange(len(plan.terms["live"]) + 1))
    scores = (hits["scores"][first:last] for first, last in pairwise(bounds.tolist()))
    imputed = [impute(each, plan.params.imputation, plan.params.k_prime) for each in scores]
    return replace(plan, terms=plan.terms | hits | {"imputed": np.array(imputed, np.float32)})


def impute(scores: np.ndarray, how: Imputation, k_prime: int) -> float:
    """The score of a token that was not retrieved, from those that were, best first; 0 if there are none."""
    scores = scores.astype(np.float64)
    if how == "zero" or not len(scores):
        return 0.0
    if how == "mean":
        return float(scores.mean())
    if how == "p10":
        return float(np.quantile(scores, 0.1))
    least = float(scores[-1])
    positive = scores[scores > 0]
    if how == "min" or len(positive) < 2:
        return least
    slope, height = np.polyfit(np.log(np.arange(1, len(positive) + 1)), np.log(positive), 1)
    guess = float(np.exp(height + slope * np.log(POWER_LAW_RANKS * k_prime)))
    return min(max(guess, 0.0), max(least, 0.0))


def add_up(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[np.ndarray | None]
) -> list[Scored]:
    """XTR's score of every document with a retrieved token: its best for each query token, or the imputed score."""
    answers = []
    for plan, mine in zip(plans, documents, strict=True):
        terms = plan.terms
        here = np.flatnonzero((terms["documents"] >= shard.first_document) & (terms["documents"] < shard.first_document + shard.num_docs))
        rows, numbers, weights = terms["rows"][here], terms["documents"][here] - shard.first_document, plan.query.weights[terms["live"]]
        # Hits stand best first, so a document's first one for a query token is its best.
        _, first = np.unique(rows * shard.num_docs + numbers, return_index=True)
        rows, found = rows[first], numbers[first]
        gains = weights[rows].astype(np.float64) * (terms["worths"][here[first]].astype(np.float64) - terms["imputed"][rows])
        scored = np.unique(found)
        totals = np.bincount(np.searchsorted(scored, found), gains, len(scored)) + weights.astype(np.float64) @ terms["imputed"]
        answers.append(kernels.top_k(*among(totals.astype(np.float32), scored, mine), plan.stage_limits[0]))
    return answers


ADD_UP = Stage(
    "add_up", "XTR's score of every document with a retrieved token: its best for each query token, or the imputed score.", add_up
)
ENGINE = Engine(XtrParams, plan, (ADD_UP, RESCORE), survey, settle)
