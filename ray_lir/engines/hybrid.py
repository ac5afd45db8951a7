"""hybrid: BM25 and late interaction together (docs/algorithms.md#103-fusion).

Both sides select candidates over all shards. The candidates of both are united, every one of them gets both scores, and the fusion makes
one score of the two. With `fusion` rescore, only BM25 selects candidates, and the late-interaction score alone ranks them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from pydantic import Field

from ray_lir.engines import exact, plaid, scan, warp
from ray_lir.engines.bm25 import Bm25Config, LexicalQuery, best_by_terms, bm25_scores, lexical_query
from ray_lir.engines.cost import COSTS
from ray_lir.engines.engine import Allowed, Engine, Fusion, Scored, Stage
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, Sides, TopK
from ray_lir.engines.scoring.maxsim import best_scores
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

LEXICAL_WEIGHT = 0.2
"""Default weight of BM25. On NFCorpus's dev queries and on training queries of SciFact and NQ, it is the largest weight at which nDCG@10 is
at least that of the better side alone (bench/results/hybrid.md)."""


class HybridParams(Bm25Config):
    """Parameters of engine hybrid. `ray-lir tune --dataset` finds `fusion` and `lexical_weight` for an index."""

    engine: Literal["hybrid"] = "hybrid"
    fusion: Literal["weighted", "rrf", "rescore"] = "weighted"
    """weighted: the weighted sum of both scores, each scaled to 0 to 1 over the candidates. rrf: reciprocal ranks. rescore: candidates by
    BM25 alone, ranked by the late-interaction score."""
    lexical_weight: float | None = Field(None, ge=0, le=1)
    """Weight of BM25 in the fusion; late interaction has the rest. None: 0.2 for weighted, 0.5 for rrf. Not used by rescore."""
    candidates: Literal["scan", "plaid", "warp", "exact"] | None = None
    """Engine that selects the candidates of the vector side. None: scan or warp, whichever takes less time by estimate."""
    ncandidates: int | None = Field(None, ge=1)
    """Candidates of each side. None: 4 k, or more for a large index or a short query (`IndexStatistics.default_candidates`)."""
    rrf_k: int = Field(60, ge=0)
    """Constant that is added to ranks by rrf: a larger one weakens the best ranks."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class HybridPlan(QueryPlan):
    """The plan of one query.

    Attributes:
        params: The parameters with all defaults filled in.
        k: Documents to return.
        terms: The terms of the query.
        vectors: The plan of the engine that selects the candidates of the vector side; None for rescore.
    """

    params: HybridParams
    k: int
    terms: LexicalQuery
    vectors: QueryPlan | None

    @property
    def lexical_weight(self) -> float:
        """Weight of BM25 in the fusion."""
        return self.params.lexical_weight or 0.0


_VECTOR_ENGINES: dict[str, Engine[Any, Any]] = {"exact": exact.ENGINE, "plaid": plaid.ENGINE, "scan": scan.ENGINE, "warp": warp.ENGINE}


def _plan(query: Query, codec: ResidualCodec, statistics: IndexStatistics, params: HybridParams, k: int, kernels: Kernels) -> HybridPlan:
    terms = lexical_query(query, statistics, params)
    count = max(k, params.ncandidates or statistics.default_candidates(k, len(query.active)))
    engine = params.candidates or _faster(statistics, kernels, count)
    default_weight = {"weighted": LEXICAL_WEIGHT, "rrf": 0.5, "rescore": 0.0}[params.fusion]
    weight = default_weight if params.lexical_weight is None or params.fusion == "rescore" else params.lexical_weight
    vectors = None if params.fusion == "rescore" else _vector_plan(engine, query, codec, statistics, count, kernels)
    return HybridPlan(
        query=query,
        params=params.model_copy(update={"lexical_weight": weight, "candidates": engine, "ncandidates": count}),
        stage_limits=(count, 2 * count),
        k=k,
        terms=terms,
        vectors=vectors,
    )


def _faster(statistics: IndexStatistics, kernels: Kernels, count: int) -> Literal["scan", "warp"]:
    costs = COSTS[kernels.name]
    scan_cost, warp_cost = (
        engine.automatic.cost(statistics, costs, count, count).total for engine in (scan.ENGINE, warp.ENGINE) if engine.automatic
    )
    return "scan" if scan_cost <= warp_cost else "warp"


def _vector_plan(engine: str, query: Query, codec: ResidualCodec, statistics: IndexStatistics, count: int, kernels: Kernels) -> QueryPlan:
    """The plan of the vector side. Only its first stage runs, and it keeps `count` documents."""
    params: dict[str, EngineConfig] = {
        "exact": exact.ExactParams(),
        "plaid": plaid.PlaidParams(ncandidates=count),
        "scan": scan.ScanParams(ncandidates=count),
        "warp": warp.WarpParams(rescore=count),
    }
    return _VECTOR_ENGINES[engine].plan(query, codec, statistics, params[engine], count, kernels)


def _select_candidates(
    plans: Sequence[HybridPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, allowed in zip(plans, documents, strict=True):
        sides = [best_by_terms(plan.terms, shard, kernels, allowed, plan.stage_limits[0])]
        if plan.vectors is None:
            sides.append((np.zeros(0, np.float32), np.zeros(0, np.int64)))
        else:
            vectors = replace(plan.vectors, scorer_terms=plan.scorer_terms, unit_norms=plan.unit_norms, stage_limits=plan.stage_limits[:1])
            stage = _VECTOR_ENGINES[vectors.params.engine].stages[0]
            sides += [kernels.top_k(*scored, plan.stage_limits[0]) for scored in stage.run([vectors], shard, codec, kernels, [allowed])]
        numbers = np.union1d(*(found for _, found in sides)).astype(np.int64)
        scores = np.full((len(numbers), len(sides)), -np.inf, np.float32)
        for column, (found_scores, found) in enumerate(sides):
            scores[np.searchsorted(numbers, found), column] = found_scores
        results.append((scores, numbers))
    return results


def _score_both(
    plans: Sequence[HybridPlan], shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: Sequence[Allowed]
) -> list[Scored]:
    results = []
    for plan, numbers in zip(plans, documents, strict=True):
        if numbers is not None:
            lexical = np.maximum(bm25_scores(plan.terms, shard)[numbers], 0)
            vectors = best_scores(plan, shard, codec, kernels, numbers, len(numbers))
            results.append((np.stack([lexical, vectors], axis=1), numbers))
    return results


def _fuse(plan: HybridPlan, stages: Sequence[TopK]) -> TopK:
    """The best k candidates by the fused score; ties go to the lower document number."""
    candidates, scored = stages
    if not len(scored.documents):
        nothing, none = np.zeros(0, np.float32), np.zeros(0, bool)
        return TopK(nothing, scored.documents, sides=Sides(nothing, nothing, none, none))
    order = np.argsort(scored.documents)
    documents, (lexical, vectors) = scored.documents[order], scored.scores[order].T
    found = candidates.scores[np.argsort(candidates.documents)] > -np.inf
    found = found[np.isin(np.sort(candidates.documents), documents)]
    scores = _FUSIONS[plan.params.fusion](lexical.astype(np.float64), vectors.astype(np.float64), plan).astype(np.float32)
    best = np.lexsort((documents, -scores))[: plan.k]
    best = best[scores[best] > -np.inf]
    return TopK(scores[best], documents[best], sides=Sides(lexical[best], vectors[best], found[best, 0], found[best, 1]))


def _weighted_sum(lexical: np.ndarray, vectors: np.ndarray, plan: HybridPlan) -> np.ndarray:
    """Each score scaled to 0 to 1: BM25 from 0, which is the score of a document without a term; late interaction from its lowest."""
    weight = plan.lexical_weight
    return weight * _scaled(lexical, 0.0) + (1 - weight) * _scaled(vectors, vectors.min(initial=np.inf, where=np.isfinite(vectors)))


def _scaled(scores: np.ndarray, lowest: float) -> np.ndarray:
    span = scores.max(initial=-np.inf) - lowest
    return np.clip((scores - lowest) / span, 0, 1) if 0 < span < np.inf else np.isfinite(scores) * 0.0


def _reciprocal_ranks(lexical: np.ndarray, vectors: np.ndarray, plan: HybridPlan) -> np.ndarray:
    """2 w / (rrf_k + rank by BM25) + 2 (1 - w) / (rrf_k + rank by late interaction). Ranks begin at 1; equal scores have equal ranks."""
    weight, total = plan.lexical_weight, np.zeros(len(lexical))
    for scores, factor, lowest in ((lexical, weight, 0.0), (vectors, 1 - weight, -np.inf)):
        ranks = 1 + np.searchsorted(np.sort(-scores), -scores)
        total += np.where(scores > lowest, 2 * factor / (plan.params.rrf_k + ranks), 0.0)
    return total


def _vector_scores(lexical: np.ndarray, vectors: np.ndarray, plan: HybridPlan) -> np.ndarray:
    return vectors


_FUSIONS = {"weighted": _weighted_sum, "rrf": _reciprocal_ranks, "rescore": _vector_scores}
CANDIDATES = Stage(
    "candidates",
    "The candidates of both sides, united.",
    _select_candidates,
    columns=(
        ("candidates_by_terms", "The BM25 score of every document that holds a term of the query."),
        ("candidates_by_vectors", "The first score of the engine that selects candidates by token vectors (params.candidates)."),
    ),
)
SCORES = Stage(
    "scores",
    "Both scores of all candidates.",
    _score_both,
    columns=(
        ("bm25", "The BM25 score of every candidate."),
        ("rescore", "The exact late-interaction score of every candidate."),
    ),
    reads_vectors=True,
)
ENGINE = Engine(
    description="unites the `ncandidates` best documents by BM25 and the `ncandidates` best by token vectors, scores all of them exactly "
    "by both, and fuses the scores; or rescores the `ncandidates` best by BM25",
    params=HybridParams,
    plan=_plan,
    stages=(CANDIDATES, SCORES),
    lexical=True,
    fusion=Fusion("fuse", "The fused score of the candidates (params.fusion).", _fuse),
)
