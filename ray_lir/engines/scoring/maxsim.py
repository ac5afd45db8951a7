"""Exact scores of documents, for engines and explanations: MaxSim with token weights, or the scorer's own terms.

Source: docs/algorithms.md#7-one-factored-form.
"""

from collections.abc import Sequence

import numpy as np

from ray_lir.engines.plan import QueryPlan, centroid_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


def maxsim_scores(
    plans: Sequence[QueryPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None
) -> np.ndarray:
    """Return MaxSim scores with token weights, without scorer terms.

    Args:
        plans: P plans.
        shard: The shard that holds the documents.
        codec: The codec of the index.
        kernels: The kernels that score tokens from codes and residuals.
        documents: [N] ascending numbers inside the shard; None for all.

    Returns:
        [P, N] float32, -inf for a document without tokens.
    """
    tables = (centroid_scores(plan.query, codec, kernels) for plan in plans)  # computed only if the kernels read them
    vectors, weights = [plan.query.vectors for plan in plans], [plan.query.weights for plan in plans]
    return kernels.residual_maxsim(vectors, weights, tables, shard, codec, documents)


def best_scores(plan: QueryPlan, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray, k: int) -> np.ndarray:
    """Return exact scores of candidates. If the scorer's terms have an upper bound, candidates that cannot reach the top k are skipped.

    Args:
        plan: The plan of the query.
        shard: The shard that holds the documents.
        codec: The codec of the index.
        kernels: The kernels that score tokens.
        documents: [N] ascending numbers inside the shard.
        k: Size of the top k.

    Returns:
        [N] float32, -inf for candidates that were skipped and for documents without tokens.
    """
    terms = plan.scorer_terms
    if terms is None:
        return maxsim_scores([plan], shard, codec, kernels, documents)[0]
    bound = terms.upper_bound(plan.query)
    if bound is None or 3 * k >= len(documents) or shard.weights is not None:
        return terms.scores(plan.query, shard, codec, kernels, documents)
    bounds = maxsim_scores([plan], shard, codec, kernels, documents)[0] + bound
    scores = np.full(len(documents), -np.inf, np.float32)
    _, first = kernels.top_k(bounds, np.arange(len(documents)), k)
    scores[first] = terms.scores(plan.query, shard, codec, kernels, documents[first])
    rest = np.setdiff1d(np.flatnonzero(bounds >= scores[first].min()), first)
    scores[rest] = terms.scores(plan.query, shard, codec, kernels, documents[rest])
    return scores


def match(
    plan: QueryPlan, vectors_TD: np.ndarray, weights_T: np.ndarray | None, codec: ResidualCodec
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the document token that matches each query token; ties go to the first document token.

    Args:
        plan: The plan of a query of n tokens.
        vectors_TD: [T, D] float64, decompressed tokens of the document, T at least 1.
        weights_T: [T] float64, weights of these tokens; None if all are 1.
        codec: The codec of the index.

    Returns:
        Matched tokens [n] int64, their dot products with the query vectors [n] float64, and terms [n] float64. The document's score is the
        sum of `query.weights` times the terms.
    """
    similarities_nT = plan.query.vectors.astype(np.float64) @ vectors_TD.T
    if plan.scorer_terms is not None:
        tokens, terms = plan.scorer_terms.match(plan.query, vectors_TD, weights_T, codec)
        return tokens, similarities_nT[np.arange(len(tokens)), tokens], terms
    tokens = similarities_nT.argmax(axis=1)
    similarities = similarities_nT[np.arange(len(tokens)), tokens]
    return tokens, similarities, similarities if weights_T is None else weights_T[tokens] * similarities
