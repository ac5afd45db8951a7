"""XTR's training score: only tokens that were retrieved from the whole batch count (docs/algorithms.md#31-training-score).

B queries of n tokens, N documents of m tokens, all those that the batch holds on all workers: the pool.
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
    """MaxSim in search, where the engine decides which tokens are retrieved; in training the pool is the batch."""

    name = "xtr"
    Settings = XtrConfig

    settings: XtrConfig

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        return maxsim.scores(queries, documents)

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        return scores(queries, documents, self.settings.k_train)


def scores(queries: EmbeddedTexts, documents: EmbeddedTexts, k_train: Sequence[int]) -> list[Tensor]:
    """For each k, the [B, N] mean similarity of the query tokens that retrieved a token of the document; differentiable.

    A query token retrieves its k most similar tokens of the pool (ties: the first). A document's term is its best retrieved
    token; without one, or if it is negative, the term is 0 and not counted. A document with no term scores 0.

    Raises:
        ConfigError: if the pool holds fewer than k tokens: every token would be retrieved, which is MaxSim.
    """
    pool = int(documents.mask.sum())
    if max(k_train) > pool:
        raise ConfigError(
            f"--xtr.k_train {max(k_train)} is more than the {pool} document tokens of a batch; lower it or raise --batch_size"
        )
    best = best_tokens(queries, documents)
    terms = cosines(queries, documents, best).clamp(min=0).masked_fill(~queries.mask[:, None, :], 0.0)
    result = []
    for retrieved in _retrieved(queries, documents, k_train):
        kept = terms.masked_fill(~retrieved, 0.0)
        # Where nothing counts the sum is 0 whatever it is divided by (docs/algorithms.md#9-where-sources-disagree).
        result.append(kept.sum(-1) / (kept > 0).sum(-1).clamp(min=1))
    return result


@torch.no_grad()
def _retrieved(queries: EmbeddedTexts, documents: EmbeddedTexts, k_train: Sequence[int]) -> list[Tensor]:
    """For each k, [B, N, n] bool: whether the query token retrieved the document's best token."""
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
    """[B, n, k] the largest similarities of each query token, descending; the pool passes by one part at a time."""
    top = queries.vectors.new_empty((*queries.mask.shape, 0))
    for part in parts:
        values = similarities(queries, documents, part).transpose(1, 2).flatten(2)
        top = torch.cat([top, values.topk(min(k, values.shape[-1])).values], -1)
        top = top.topk(min(k, top.shape[-1])).values
    return top
