"""MaxSim: every query token finds its best document token, and the best similarities are added up (ALGORITHMS 2.1).

B queries of n tokens, N documents of m tokens, d dimensions.
"""

import torch


def scores(
    queries: torch.Tensor, documents: torch.Tensor, query_mask: torch.Tensor | None = None, document_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """All-pairs scores [B, N]; differentiable.

    A masked document token never wins, a masked query token adds nothing, and a document without tokens scores -inf.

    Args:
        queries: [B, n, d].
        documents: [N, m, d].
        query_mask: [B, n], true where there is a token; None: everywhere.
        document_mask: [N, m], likewise.
    """
    similarities = torch.einsum("bid,njd->bnij", queries, documents)
    if document_mask is not None:
        similarities = similarities.masked_fill(~document_mask.bool()[None, :, None, :], -torch.inf)
    best = similarities.amax(-1)
    if query_mask is not None:
        best = best.masked_fill(~query_mask.bool()[:, None, :], 0.0)
    totals = best.sum(-1)
    if document_mask is not None:
        totals = totals.masked_fill(~document_mask.bool().any(-1)[None, :], -torch.inf)
    return totals
