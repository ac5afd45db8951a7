"""xtr: retrieve the best tokens of the whole index for each query token, and impute the scores of tokens that were not retrieved.

Source: docs/algorithms.md#35-retrieval-and-imputation.

Before the first stage, each shard finds its best tokens, and the best tokens of all shards are retrieved. All shards must therefore be in
one process. The engine serves comparisons with the paper; a service does not offer it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import numpy as np
from pydantic import Field

from ray_lir.base.short_repr import ShortRepr
from ray_lir.engines.engine import Allowed, Engine, Scored, Stage, Survey
from ray_lir.engines.exact import RELATE, RESCORE
from ray_lir.engines.params import RescoringConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, among, centroid_scores
from ray_lir.engines.token_index import token_index
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

K_PRIME = 4000
POWER_LAW_RANKS = 100
"""The power law is evaluated at this multiple of k_prime (docs/algorithms.md#9-where-sources-disagree)."""

Imputation = Literal["min", "mean", "p10", "power_law", "zero"]


class XtrParams(RescoringConfig):
    """Parameters of xtr."""

    engine: Literal["xtr"] = "xtr"
    k_prime: int | None = Field(None, ge=1)
    """Tokens retrieved for each query token, from the whole index. None: 4,000, or 4 k if that is more."""
    imputation: Imputation = "min"
    """Score of a query token in a document that has no retrieved token for it. min, mean and p10: the lowest, the mean and the 10th
    percentile of the retrieved scores. power_law: a power law fitted to these scores, evaluated at rank 100 k_prime. zero: 0."""
    nprobe: int | None = Field(None, ge=1)
    """Clusters of the codec that are searched for each query token. None: all clusters, so that token retrieval is exact."""
    rescore: int = Field(0, ge=0)
    """Candidates rescored exactly; 0 returns XTR's own scores."""


@dataclass(frozen=True, eq=False, repr=False)
class TokenHits(ShortRepr):
    """Tokens that were retrieved for the active query tokens: grouped by query token, best first.

    Attributes:
        rows: [H] int64, position of the query token among the active ones.
        scores: [H] float32.
        documents: [H] int64, document numbers of the index.
        weighted_scores: [H] float32, scores times the weights of the document tokens.
    """

    rows: np.ndarray
    scores: np.ndarray
    documents: np.ndarray
    weighted_scores: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, hits: np.ndarray) -> "TokenHits":
        """Return the hits at these positions [<= H] int64."""
        return TokenHits(self.rows[hits], self.scores[hits], self.documents[hits], self.weighted_scores[hits])

    @classmethod
    def concatenate(cls, parts: "Sequence[TokenHits]") -> "TokenHits":
        """Return the hits of several shards, one shard after another."""
        return cls(
            np.concatenate([part.rows for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.documents for part in parts]),
            np.concatenate([part.weighted_scores for part in parts]),
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class XtrPlan(QueryPlan):
    """The plan of one query with n' active tokens.

    Attributes:
        params: The parameters with all defaults filled in.
        k_prime: Tokens retrieved for each query token.
        active: [n'] int64, the active tokens.
        clusters: [n', nprobe] int64, the clusters that are searched; None for all.
        hits: The retrieved tokens; None before the survey.
        imputed: [n'] float32, score of each token in documents without a retrieved token for it; None before the survey.
    """

    params: XtrParams
    k_prime: int
    active: np.ndarray
    clusters: np.ndarray | None = None
    hits: TokenHits | None = None
    imputed: np.ndarray | None = None


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: XtrParams, k: int, kernels: Kernels) -> XtrPlan:
    k_prime = max(1, min(params.k_prime or max(K_PRIME, 4 * k), statistics.num_tokens))
    nprobe = min(params.nprobe or codec.num_centroids, codec.num_centroids)
    active, clusters = query.active, None
    if nprobe < codec.num_centroids:
        table = centroid_scores(query, codec, kernels)
        probed, _, _ = kernels.probe(table, len(query.vectors), statistics.cluster_sizes, nprobe, nprobe, 1)
        clusters = probed[active]
    return XtrPlan(
        query=query,
        params=XtrParams(k_prime=k_prime, imputation=params.imputation, nprobe=nprobe, rescore=params.rescore),
        stage_limits=(max(params.rescore, k), k) if params.rescore else (k,),
        k_prime=k_prime,
        active=active,
        clusters=clusters,
    )


def _retrieve(plan: XtrPlan, shard: IndexShard, codec: ResidualCodec, documents: Allowed) -> TokenHits:
    """The best tokens of a shard, at most k_prime for each query token."""
    queries = plan.query.vectors[plan.active]
    allowed = None if documents is None else shard.tokens(documents)[0]
    rows, tokens, scores = token_index(shard, codec).search(shard, queries, plan.k_prime, plan.clusters, allowed)
    weights = shard.token_weights(tokens)
    numbers = np.searchsorted(shard.doc_offsets, tokens, side="right") - 1
    weighted = scores if weights is None else (weights * scores).astype(np.float32)
    return TokenHits(rows, scores, numbers + shard.first_document, weighted)


def _settle(plan: XtrPlan, surveys: Sequence[TokenHits]) -> XtrPlan:
    """The plan with the best tokens of all shards; ties go to the first token of the index."""
    hits = TokenHits.concatenate(surveys)
    # Surveys arrive in document order and the sort is stable, so the first of equal tokens is kept.
    order = np.lexsort((-hits.scores, hits.rows))
    rows = hits.rows[order]
    ranks = np.arange(len(rows)) - np.searchsorted(rows, rows)
    return with_hits(plan, hits.take(order[ranks < plan.k_prime]), plan.k_prime, plan.params.imputation)


def with_hits(plan: XtrPlan, hits: TokenHits, k_prime: int, imputation: Imputation) -> XtrPlan:
    """Return the plan with retrieved tokens and the scores imputed from them.

    Args:
        plan: The plan of the query.
        hits: The best tokens of the whole index, at most `k_prime` for each query token.
        k_prime: Tokens retrieved for each query token.
        imputation: See `XtrParams.imputation`.
    """
    bounds = np.searchsorted(hits.rows, np.arange(len(plan.active) + 1))
    scores = (hits.scores[first:last] for first, last in pairwise(bounds.tolist()))
    imputed = [impute(each, imputation, k_prime) for each in scores]
    params = plan.params.model_copy(update={"k_prime": k_prime, "imputation": imputation})
    return replace(plan, params=params, k_prime=k_prime, hits=hits, imputed=np.array(imputed, np.float32))


def impute(scores: np.ndarray, how: Imputation, k_prime: int) -> float:
    """Return the score of a query token in documents without a retrieved token for it.

    Args:
        scores: [H] float32, scores of the tokens retrieved for the query token, best first.
        how: See `XtrParams.imputation`.
        k_prime: Number of tokens requested; H is at most this.

    Returns:
        The imputed score; 0 if no token was retrieved.

    Source: docs/algorithms.md#35-retrieval-and-imputation
    """
    scores = scores.astype(np.float64)
    if how == "zero" or not len(scores):
        return 0.0
    if how == "mean":
        return float(scores.mean())
    if how == "p10":
        return float(np.quantile(scores, 0.1))
    lowest = float(scores[-1])
    positive = scores[scores > 0]
    if how == "min" or len(positive) < 2:
        return lowest
    slope, height = np.polyfit(np.log(np.arange(1, len(positive) + 1)), np.log(positive), 1)
    extrapolated = float(np.exp(height + slope * np.log(POWER_LAW_RANKS * k_prime)))
    return min(max(extrapolated, 0.0), max(lowest, 0.0))


def _add_up(
    plans: Sequence[XtrPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(plans, documents, strict=True):
        assert plan.hits is not None and plan.imputed is not None
        end = shard.first_document + shard.num_docs
        hits = plan.hits.take(np.flatnonzero((plan.hits.documents >= shard.first_document) & (plan.hits.documents < end)))
        numbers, weights = hits.documents - shard.first_document, plan.query.weights[plan.active]
        # Hits are sorted best first, so the first hit of a document for a query token is its best.
        _, first = np.unique(hits.rows * shard.num_docs + numbers, return_index=True)
        rows, found = hits.rows[first], numbers[first]
        gains = weights[rows].astype(np.float64) * (hits.weighted_scores[first].astype(np.float64) - plan.imputed[rows])
        scored = np.unique(found)
        totals = np.bincount(np.searchsorted(scored, found), gains, len(scored)) + weights.astype(np.float64) @ plan.imputed
        results.append(kernels.top_k(*among(totals.astype(np.float32), scored, allowed), plan.stage_limits[0]))
    return results


ADD_UP = Stage(
    "add_up", "XTR's score of every document with a retrieved token: its best for each query token, or the imputed score.", _add_up
)
ENGINE = Engine(
    description="retrieves the `k_prime` best tokens of the index for each query token, and ranks their documents by XTR's score, or "
    "rescores the best `rescore` of them",
    params=XtrParams,
    plan=_plan,
    stages=(ADD_UP, RESCORE, RELATE),
    survey=Survey(_retrieve, _settle),
)
