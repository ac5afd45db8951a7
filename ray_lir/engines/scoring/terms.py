"""The scorer's terms of a plan: how many documents get them, and in which stage."""

from dataclasses import replace

from ray_lir.engines.params import EngineConfig, RescoringConfig
from ray_lir.engines.plan import QueryPlan
from ray_lir.engines.registry import stages_of
from ray_lir.engines.scoring.scorer import SearchScorer
from ray_lir.index.codec import ResidualCodec

DEFAULT_RELATION_CANDIDATES = 8
"""Document tokens that each query token is related to in the qualities `fast` and `balanced` (bench/results/trial_nearest.md)."""


def default_relation_documents(k: int) -> int:
    """Return how many documents get relations for the top k, if not all of them do (bench/results/trial_nearest.md)."""
    return 2 * k + 10


def with_terms(plan: QueryPlan, params: EngineConfig, scorer: SearchScorer, codec: ResidualCodec) -> QueryPlan:
    """Return the plan with the scorer's terms.

    If the parameters limit relations, the plan gets one more stage, `relate`. It computes them for the documents that are best with
    relations to first order, over all shards.

    Args:
        plan: The plan of an engine, without terms.
        params: The parameters of the request.
        scorer: The scorer of the index.
        codec: The codec of the index, with `scorer_data`.
    """
    limits = isinstance(params, RescoringConfig) and (params.relation_candidates or params.relation_documents)
    rescores = len(plan.stage_limits) == len(stages_of([plan])) - 1
    if not (isinstance(params, RescoringConfig) and limits and rescores):
        return replace(plan, scorer_terms=scorer.terms(plan.query, codec))
    terms = scorer.terms(plan.query, codec, params.relation_candidates, approximates=True)
    if terms is None:
        return plan
    k = plan.stage_limits[-1]
    documents = max(k, params.relation_documents or default_relation_documents(k))
    return replace(
        plan,
        params=plan.params.model_copy(update={"relation_candidates": params.relation_candidates, "relation_documents": documents}),
        stage_limits=(*plan.stage_limits[:-1], documents, k),
        scorer_terms=terms,
        approximation=terms.approximation(plan.query),
    )
