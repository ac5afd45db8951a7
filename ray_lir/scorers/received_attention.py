"""The attention that a transformer's last layer pays, without making any layer return its probabilities (docs/algorithms.md#63-cost).

B texts, H heads, L tokens, d dimensions a head.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from ray_lir.base.errors import ConfigError

ROWS_AT_ONCE = 128
"""Rows of probabilities that are in memory together."""


@dataclass(frozen=True)
class LastAttention:
    """What the last layer's softmax is computed from.

    Attributes:
        query: [B, H, L, d], with whatever positions a model turns into them.
        key: [B, H, L, d].
        bias: broadcastable to [B, H, L, L]: bool, false where nothing may be seen, or added to the logits; None: neither.
        scale: factor of the dot products.
        attended: [B, L] bool, the tokens that others may look at.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float
    attended: Tensor

    def column_mean(self) -> Tensor:
        """[B, L] what each token receives from the attended tokens, on average over them and over the heads; sums to 1."""
        received = torch.zeros_like(self.attended, dtype=self._dtype)
        for start in range(0, self.query.shape[2], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            received = received + torch.einsum("bhij,bi->bj", self._probabilities(rows), self.attended[:, rows].to(self._dtype))
        return received / (self.query.shape[1] * self.attended.sum(1, keepdim=True))

    def first_row(self) -> Tensor:
        """[B, L] what each token receives from the first one, on average over the heads; sums to 1."""
        return self._probabilities(slice(0, 1)).mean(1)[:, 0]

    @property
    def _dtype(self) -> torch.dtype:
        """At least float32, whatever the model multiplies in."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def _probabilities(self, rows: slice) -> Tensor:
        """[B, H, rows, L], 0 for tokens that nobody may look at."""
        logits = (self.query[:, :, rows] @ self.key.transpose(-1, -2)).to(self._dtype) * self.scale
        unseen = ~self.attended[:, None, None, :]
        if self.bias is not None:
            bias = self.bias[..., rows, :] if self.bias.shape[-2] > 1 else self.bias
            if bias.dtype == torch.bool:
                unseen = unseen | ~bias
            else:
                logits = logits + bias
        return logits.masked_fill(unseen, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~self.attended[:, None, None, :], 0.0)


@dataclass(frozen=True)
class RunAttention:
    """The same of texts that are equally long, and of their attended tokens alone, in the number format of the model: nothing is masked.

    Attributes:
        query: [B, H, L, d].
        key: [B, H, L, d].
        scale: factor of the dot products.
    """

    query: Tensor
    key: Tensor
    scale: float

    def column_mean(self) -> Tensor:
        """[B, L] float32 or wider, as of LastAttention."""
        starts = range(0, self.query.shape[2], ROWS_AT_ONCE)
        received = sum(self._summed(slice(start, start + ROWS_AT_ONCE)) for start in starts)
        return received / (self.query.shape[1] * self.query.shape[2])

    def first_row(self) -> Tensor:
        """[B, L] float32 or wider, as of LastAttention."""
        return self._summed(slice(0, 1)) / self.query.shape[1]

    def _summed(self, rows: slice) -> Tensor:
        """[B, L] probabilities added up over heads and rows, text by text: the order of a sum over several texts depends on how many."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        texts = zip(self.query[:, :, rows], self.key, strict=True)
        return torch.stack([((query * self.scale) @ key.transpose(-1, -2)).softmax(-1).sum((0, 1), dtype=wide) for query, key in texts])


@dataclass(frozen=True)
class UnpaddedAttention:
    """The same of texts that were encoded without padding, as a scorer reads it.

    Attributes:
        runs: of some texts each, in their order.
        attended: [B, L] bool, of all texts.
    """

    runs: Sequence[RunAttention]
    attended: Tensor

    def column_mean(self) -> Tensor:
        return self._padded([run.column_mean() for run in self.runs])

    def first_row(self) -> Tensor:
        return self._padded([run.first_row() for run in self.runs])

    def _padded(self, received: list[Tensor]) -> Tensor:
        """[B, L] from [texts, tokens] of each run."""
        padded = received[0].new_zeros(self.attended.shape)
        padded[self.attended] = torch.cat([each.flatten() for each in received])
        return padded


ReceivedAttention = LastAttention | UnpaddedAttention
"""What a scorer reads."""


class AttentionRecorder(TorchFunctionMode):
    """While it is entered, remembers what the latest scaled_dot_product_attention was called with.

    No layer is changed, so every one keeps its fused kernel, and it works for any architecture that attends this way: rotated
    queries and keys (ModernBERT) and relative positions (T5) arrive as they are used.
    """

    def __init__(self) -> None:
        super().__init__()
        self._arguments: dict[str, Any] = {}

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
            self._arguments = dict(zip(names, args, strict=False)) | kwargs
        return func(*args, **kwargs)

    def last(self, attended: Tensor) -> LastAttention:
        """The last layer's attention, if the model is one that looks both ways with as many key heads as query heads.

        Raises:
            ConfigError: if it is not.
        """
        query, key = self._arguments.get("query"), self._arguments.get("key")
        if query is None or self._arguments.get("is_causal") or query.shape != key.shape:
            raise ConfigError(
                "scorer attention needs a model like BERT, which looks both ways with scaled_dot_product_attention; give another checkpoint"
            )
        scale = self._arguments.get("scale")
        return LastAttention(
            query, key, self._arguments.get("attn_mask"), 1 / math.sqrt(query.shape[-1]) if scale is None else scale, attended.bool()
        )
