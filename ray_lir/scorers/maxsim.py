"""MaxSim: every query token finds its best document token, and the best similarities are added up (docs/algorithms.md#21-maxsim).

B queries, N documents.
"""

from torch import Tensor

from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.interaction import best_tokens, cosines, gather_tokens, sum_over_query_tokens
from ray_lir.scorers.scorer import Scorer


class MaxSim(Scorer):
    """ColBERT's scorer."""

    name = "maxsim"

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        return scores(queries, documents)


def scores(queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """All-pairs scores [B, N]; differentiable. The weighted form of docs/algorithms.md#7-one-factored-form where the texts have weights.

    Weights do not choose the best token, they only multiply its similarity. A masked document token never wins, a masked
    query token adds nothing, and a document without tokens scores -inf.
    """
    best = best_tokens(queries, documents)
    terms = cosines(queries, documents, best)
    if documents.weights is not None:
        terms = terms * gather_tokens(documents.weights.unsqueeze(-1), best).squeeze(-1)
    return sum_over_query_tokens(terms, queries, documents)
