"""The analyses of the papers, one file each; `jobs.analyze` runs them on an index and a data set."""

from ray_lir.evaluation.analyses import (
    attention,
    candidate_recall,
    candidates,
    cost,
    geometry,
    k_prime,
    query_length,
    relations,
    score_distribution,
    token_retrieval,
    token_weights,
)
from ray_lir.evaluation.analyses.analysis import Analysis, AnalysisSettings, AnalyzedModel

ANALYSES: dict[str, Analysis] = {
    "k_prime": k_prime.ANALYSIS,  # retrieves most tokens, which the next two use again
    "score_distribution": score_distribution.ANALYSIS,
    "token_retrieval": token_retrieval.ANALYSIS,
    "geometry": geometry.ANALYSIS,
    "candidates": candidates.ANALYSIS,
    "token_weights": token_weights.ANALYSIS,
    "query_length": query_length.ANALYSIS,
    "cost": cost.ANALYSIS,
    "candidate_recall": candidate_recall.ANALYSIS,
    "relations": relations.ANALYSIS,
    "attention": attention.ANALYSIS,
}
"""The registry: every analysis by its name."""

__all__ = ["ANALYSES", "Analysis", "AnalysisSettings", "AnalyzedModel"]
