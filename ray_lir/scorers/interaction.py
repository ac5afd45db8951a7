"""What the scorers share: which document token each query token wins, found without gradients and in document_chunks of documents.

A score's gradient flows through the winning tokens alone, so the [B, n, N, m] similarities are never kept: the best_tokens are
found first, and what is differentiated is computed for them, [B, N, n]. B queries of n tokens, N documents of m tokens.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

CHUNK_VALUES = {"cpu": 2**20, "cuda": 2**26}
"""Values that a chunk of documents may take, whatever the scorer holds for it: what stays in a CPU's caches, what fills a GPU."""


def document_chunks(documents: EmbeddedTexts, values_per_token: int) -> Iterator[slice]:
    """Slices of the documents so that each takes CHUNK_VALUES at most, at `values_per_token` for each token (or one document)."""
    num_documents, length = documents.mask.shape
    most = CHUNK_VALUES.get(documents.mask.device.type, CHUNK_VALUES["cpu"])
    size = max(1, most // max(1, values_per_token * length))
    return (slice(start, min(start + size, num_documents)) for start in range(0, num_documents, size))


def similarities(queries: EmbeddedTexts, documents: EmbeddedTexts, chunk: slice) -> Tensor:
    """[B, chunk, n, m] cosines; -inf for masked document tokens."""
    values = torch.einsum("bid,njd->bnij", queries.vectors, documents.vectors[chunk])
    return values.masked_fill(~documents.mask[chunk][None, :, None, :], -torch.inf)


@torch.no_grad()
def best_tokens(queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """[B, N, n] int64, the token of each document that is most similar to each query token; ties go to the first."""
    found = [similarities(queries, documents, chunk).argmax(-1) for chunk in document_chunks(documents, queries.mask.numel())]
    return torch.cat(found, dim=1)


def gather_tokens(values_Nmd: Tensor, tokens_BNn: Tensor) -> Tensor:
    """[B, N, n, d] rows of document tokens; differentiable."""
    num_documents, length, dim = values_Nmd.shape
    first = torch.arange(num_documents, device=tokens_BNn.device)[None, :, None] * length
    return functional.embedding(tokens_BNn + first, values_Nmd.reshape(num_documents * length, dim))


def cosines(queries: EmbeddedTexts, documents: EmbeddedTexts, tokens_BNn: Tensor) -> Tensor:
    """[B, N, n] similarity of each query token with one token of each document; differentiable."""
    return torch.einsum("bid,bnid->bni", queries.vectors, gather_tokens(documents.vectors, tokens_BNn))


def sum_over_query_tokens(terms_BNn: Tensor, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
    """[B, N] sums of the terms times the query tokens' weights; masked ones add nothing, a document without tokens scores -inf."""
    if queries.weights is not None:
        terms_BNn = terms_BNn * queries.weights[:, None, :]
    sums = terms_BNn.masked_fill(~queries.mask[:, None, :], 0.0).sum(-1)
    return sums.masked_fill(~documents.mask.any(-1)[None, :], -torch.inf)
