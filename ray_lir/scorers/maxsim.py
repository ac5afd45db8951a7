"""MaxSim: the sum, over query tokens, of the highest similarity with any document token (docs/algorithms.md#21-maxsim).

Shapes: B queries, N documents.
"""

from torch import Tensor

from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.interaction import best_tokens, sum_over_query_tokens, weighted_cosines
from ray_lir.scorers.scorer import Scorer


class MaxSim(Scorer):
    """ColBERT's scorer."""

    name = "maxsim"

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """Return MaxSim scores, [B, N]."""
        return scores(queries, documents)


def scores(queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """Return the scores of all pairs, [B, N]; differentiable. With token weights, this is docs/algorithms.md#7-one-factored-form.

    Weights multiply the similarity of the best token but do not choose it. A masked document token is never the best, a masked query token
    adds 0, and a document without tokens gets -inf.

    Source: docs/algorithms.md#21-maxsim
    """
    best = best_tokens(queries, documents)
    return sum_over_query_tokens(weighted_cosines(queries, documents, best), queries, documents)
