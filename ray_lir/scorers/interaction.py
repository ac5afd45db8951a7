"""Functions that scorers share: the best document token of each query token, and sums over query tokens.

A score's gradient flows only through the best tokens, so the [B, n, N, m] similarities are never stored. The best tokens are found first,
without gradients and in chunks of documents. The differentiable part is then computed for the best tokens only, [B, N, n].

Shapes: B queries of n tokens, N documents of m tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

CHUNK_VALUES = {"cpu": 2**20, "cuda": 2**26}
"""Values that a scorer computes at once for a chunk of documents, by device type. They fit into a CPU's caches, or use a GPU fully."""


def document_chunks(documents: EmbeddedTexts, values_per_token: int) -> Iterator[slice]:
    """Yield slices of the documents so that a chunk has at most CHUNK_VALUES values.

    Args:
        documents: N documents.
        values_per_token: Values that the scorer computes for each document token.
    """
    num_documents, length = documents.mask.shape
    most = CHUNK_VALUES.get(documents.mask.device.type, CHUNK_VALUES["cpu"])
    size = max(1, most // max(1, values_per_token * length))
    return (slice(start, min(start + size, num_documents)) for start in range(0, num_documents, size))


def similarities(queries: EmbeddedTexts, documents: EmbeddedTexts, chunk: slice) -> Tensor:
    """Return the similarities with the documents of a chunk, [B, chunk, n, m]; -inf for masked document tokens.

    Args:
        queries: B queries.
        documents: N documents.
        chunk: Slice of the documents.
    """
    values = torch.einsum("bid,njd->bnij", queries.vectors, documents.vectors[chunk])
    return values.masked_fill(~documents.mask[chunk][None, :, None, :], -torch.inf)


@torch.no_grad()
def best_tokens(queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """Return the token of each document that is most similar to each query token, [B, N, n] int64. Ties go to the first token."""
    found = [similarities(queries, documents, chunk).argmax(-1) for chunk in document_chunks(documents, queries.mask.numel())]
    return torch.cat(found, dim=1)


def gather_tokens(values_Nmd: Tensor, tokens_BNn: Tensor) -> Tensor:
    """Return the rows of the given document tokens, [B, N, n, d]; differentiable."""
    num_documents, length, dim = values_Nmd.shape
    first = torch.arange(num_documents, device=tokens_BNn.device)[None, :, None] * length
    return functional.embedding(tokens_BNn + first, values_Nmd.reshape(num_documents * length, dim))


def cosines(queries: EmbeddedTexts, documents: EmbeddedTexts, tokens_BNn: Tensor) -> Tensor:
    """Return the similarity of each query token with one token of each document, [B, N, n]; differentiable.

    Args:
        queries: B queries.
        documents: N documents.
        tokens_BNn: [B, N, n] int64 positions of document tokens.
    """
    return torch.einsum("bid,bnid->bni", queries.vectors, gather_tokens(documents.vectors, tokens_BNn))


def weighted_cosines(queries: EmbeddedTexts, documents: EmbeddedTexts, tokens_BNn: Tensor) -> Tensor:
    """Return `cosines` times the weights of the document tokens, [B, N, n]; differentiable.

    Args:
        queries: B queries.
        documents: N documents.
        tokens_BNn: [B, N, n] int64 positions of document tokens.
    """
    terms = cosines(queries, documents, tokens_BNn)
    if documents.weights is None:
        return terms
    return terms * gather_tokens(documents.weights.unsqueeze(-1), tokens_BNn).squeeze(-1)


def sum_over_query_tokens(terms_BNn: Tensor, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """Return the sums of the terms times the query token weights, [B, N]. Masked query tokens add 0; a document without tokens gets -inf.

    Args:
        terms_BNn: [B, N, n] term of each query token.
        queries: B queries.
        documents: N documents.
    """
    if queries.weights is not None:
        terms_BNn = terms_BNn * queries.weights[:, None, :]
    sums = terms_BNn.masked_fill(~queries.mask[:, None, :], 0.0).sum(-1)
    return sums.masked_fill(~documents.mask.any(-1)[None, :], -torch.inf)
