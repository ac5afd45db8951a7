"""XTR's training score: only tokens that a query token retrieves from the whole batch count (docs/algorithms.md#31-training-score).

Shapes: B queries of n tokens, N documents of m tokens. The pool is all documents of the batch, on all workers.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ray_lir.base.config import XtrConfig
from ray_lir.base.errors import ConfigError
from ray_lir.scorers import maxsim
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.interaction import best_tokens, cosines, document_chunks, similarities
from ray_lir.scorers.scorer import Scorer


class Xtr(Scorer):
    """XTR's scorer. In search it is MaxSim, and the engine decides which tokens are retrieved. In training the batch is the pool."""

    name = "xtr"
    Settings = XtrConfig

    settings: XtrConfig

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """Return MaxSim scores, [B, N]."""
        return maxsim.scores(queries, documents)

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        """Return one [B, N] score matrix for each k of `settings.k_train`."""
        return scores(queries, documents, self.settings.k_train)


def scores(queries: EmbeddedTexts, documents: EmbeddedTexts, k_train: Sequence[int]) -> list[Tensor]:
    """Return, for each k, the mean similarity of the query tokens that retrieved a token of the document, [B, N]; differentiable.

    A query token retrieves its k most similar tokens of the pool; ties go to the first. Its term for a document is the similarity of the
    best retrieved token of that document. Without such a token, or if the term is negative, the term is 0 and not counted. A document
    without terms scores 0.

    Args:
        queries: B queries.
        documents: N documents.
        k_train: Numbers of retrieved tokens.

    Raises:
        ConfigError: The pool has fewer than k tokens. Every token would be retrieved, which is MaxSim.

    Source: docs/algorithms.md#31-training-score
    """
    pool = int(documents.mask.sum())
    if max(k_train) > pool:
        raise ConfigError(f"--xtr.k_train {max(k_train)} exceeds the {pool} document tokens of a batch; lower it or raise --batch_size")
    best = best_tokens(queries, documents)
    terms = cosines(queries, documents, best).clamp(min=0).masked_fill(~queries.mask[:, None, :], 0.0)
    result = []
    for retrieved in _retrieved(queries, documents, k_train):
        kept = terms.masked_fill(~retrieved, 0.0)
        # without counted terms the sum is 0, so the divisor does not matter (docs/algorithms.md#9-where-sources-disagree)
        result.append(kept.sum(-1) / (kept > 0).sum(-1).clamp(min=1))
    return result


@torch.no_grad()
def _retrieved(queries: EmbeddedTexts, documents: EmbeddedTexts, k_train: Sequence[int]) -> list[Tensor]:
    """Return, for each k, whether the query token retrieved the document's best token, [B, N, n] bool."""
    parts = list(document_chunks(documents, queries.mask.numel()))
    top = _top_of_pool(queries, documents, parts, max(k_train))
    least = [top[..., k - 1] for k in k_train]
    ties_left = [k - (top[..., :k] > value[..., None]).sum(-1) for k, value in zip(k_train, least, strict=True)]
    found: list[list[Tensor]] = [[] for _ in k_train]
    for part in parts:
        values = similarities(queries, documents, part)
        best = values.amax(-1)
        for number, value in enumerate(least):
            num_tied = (values == value[:, None, :, None]).sum(-1)
            before = num_tied.cumsum(1) - num_tied
            threshold = value[:, None, :]
            found[number].append((best > threshold) | ((best == threshold) & (before < ties_left[number][:, None, :])))
            ties_left[number] = ties_left[number] - num_tied.sum(1)
    return [torch.cat(each, dim=1) for each in found]


def _top_of_pool(queries: EmbeddedTexts, documents: EmbeddedTexts, parts: Sequence[slice], k: int) -> Tensor:
    """Return the k largest similarities of each query token, [B, n, k], descending; the pool is read one part at a time."""
    top = queries.vectors.new_empty((*queries.mask.shape, 0))
    for part in parts:
        values = similarities(queries, documents, part).transpose(1, 2).flatten(2)
        top = torch.cat([top, values.topk(min(k, values.shape[-1])).values], -1)
        top = top.topk(min(k, top.shape[-1])).values
    return top
