"""The attention that tokens receive in a transformer's last layer, computed without making a layer return it (docs/algorithms.md#63-cost).

Shapes: B texts, H heads, L tokens, d dimensions per head.
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
from ray_lir.base.short_repr import ShortRepr

ROWS_AT_ONCE = 128
"""Rows of attention probabilities that are in memory at once."""


@dataclass(frozen=True, eq=False, repr=False)
class LastAttention(ShortRepr):
    """The input of the last layer's softmax, for padded texts.

    Attributes:
        query: [B, H, L, d], with the model's position encoding applied.
        key: [B, H, L, d].
        bias: Broadcastable to [B, H, L, L]: bool (false: masked), or float added to the logits; None: no bias.
        scale: Factor of the dot products.
        attended: [B, L] bool; true for tokens that other tokens attend to.
    """

    query: Tensor
    key: Tensor
    bias: Tensor | None
    scale: float
    attended: Tensor

    def column_mean(self) -> Tensor:
        """Return the attention that each token receives, averaged over attended tokens and heads, [B, L]; rows sum to 1."""
        received = torch.zeros_like(self.attended, dtype=self._dtype)
        for start in range(0, self.query.shape[2], ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            received = received + torch.einsum("bhij,bi->bj", self._probabilities(rows), self.attended[:, rows].to(self._dtype))
        return received / (self.query.shape[1] * self.attended.sum(1, keepdim=True))

    def first_row(self) -> Tensor:
        """Return the attention that each token receives from the first token, averaged over the heads, [B, L]; rows sum to 1."""
        return self._probabilities(slice(0, 1)).mean(1)[:, 0]

    @property
    def _dtype(self) -> torch.dtype:
        """At least float32, even if the model computes in a smaller format."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def _probabilities(self, rows: slice) -> Tensor:
        """Return the attention probabilities, [B, H, rows, L]; 0 for masked tokens."""
        logits = (self.query[:, :, rows] @ self.key.transpose(-1, -2)).to(self._dtype) * self.scale
        masked = ~self.attended[:, None, None, :]
        if self.bias is not None:
            bias = self.bias[..., rows, :] if self.bias.shape[-2] > 1 else self.bias
            if bias.dtype == torch.bool:
                masked = masked | ~bias
            else:
                logits = logits + bias
        return logits.masked_fill(masked, torch.finfo(logits.dtype).min).softmax(-1).masked_fill(~self.attended[:, None, None, :], 0.0)


@dataclass(frozen=True, eq=False, repr=False)
class RunAttention(ShortRepr):
    """The same for texts of equal length, with only their attended tokens, in the model's number format. No token is masked.

    Attributes:
        query: [B, H, L, d].
        key: [B, H, L, d].
        scale: Factor of the dot products.
        bias: [H, L, L], added to the logits; None: no bias.
    """

    query: Tensor
    key: Tensor
    scale: float
    bias: Tensor | None = None

    def column_mean(self) -> Tensor:
        """Return `LastAttention.column_mean`, [B, L] in float32 or wider."""
        starts = range(0, self.query.shape[2], ROWS_AT_ONCE)
        received = sum((self._summed(slice(start, start + ROWS_AT_ONCE)) for start in starts), self.query.new_zeros(()))
        return received / (self.query.shape[1] * self.query.shape[2])

    def first_row(self) -> Tensor:
        """Return `LastAttention.first_row`, [B, L] in float32 or wider."""
        return self._summed(slice(0, 1)) / self.query.shape[1]

    def _summed(self, rows: slice) -> Tensor:
        """Return the probabilities summed over heads and rows, [B, L]. Each text is summed alone, because the summation order of a batch
        depends on its size."""
        wide = torch.promote_types(self.query.dtype, torch.float32)
        bias = 0.0 if self.bias is None else self.bias[:, rows]
        texts = zip(self.query[:, :, rows], self.key, strict=True)
        logits = ((query * self.scale) @ key.transpose(-1, -2) + bias for query, key in texts)
        return torch.stack([each.softmax(-1).sum((0, 1), dtype=wide) for each in logits])


@dataclass(frozen=True, eq=False, repr=False)
class UnpaddedAttention(ShortRepr):
    """The same for texts that were encoded without padding.

    Attributes:
        runs: The texts, in order, as runs of texts of equal length.
        attended: [B, L] bool, for all texts.
    """

    runs: Sequence[RunAttention]
    attended: Tensor

    def column_mean(self) -> Tensor:
        """Return `LastAttention.column_mean`."""
        return self._padded([run.column_mean() for run in self.runs])

    def first_row(self) -> Tensor:
        """Return `LastAttention.first_row`."""
        return self._padded([run.first_row() for run in self.runs])

    def _padded(self, received: list[Tensor]) -> Tensor:
        """Return [B, L] from the [texts, tokens] of each run."""
        padded = received[0].new_zeros(self.attended.shape)
        padded[self.attended] = torch.cat([each.flatten() for each in received])
        return padded


@dataclass(frozen=True, eq=False, repr=False)
class KnownAttention(ShortRepr):
    """The same for texts with attention that was computed before.

    Attributes:
        received: [B, L, 2], column mean and first row.
        attended: [B, L] bool.
    """

    received: Tensor
    attended: Tensor

    def column_mean(self) -> Tensor:
        """Return `LastAttention.column_mean`."""
        return self.received[..., 0]

    def first_row(self) -> Tensor:
        """Return `LastAttention.first_row`."""
        return self.received[..., 1]


ReceivedAttention = LastAttention | UnpaddedAttention | KnownAttention
"""The last layer's attention as scorers read it."""


class AttentionRecorder(TorchFunctionMode):
    """Context manager that records the arguments of the latest call of scaled_dot_product_attention.

    No layer is changed, so every layer keeps its fused kernel. It works for any architecture that uses this function: rotated queries and
    keys (ModernBERT) and relative positions (T5) are recorded as they are used.
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
        """Return the last layer's attention.

        Args:
            attended: [B, L], nonzero for tokens that other tokens attend to.

        Raises:
            ConfigError: The model does not use scaled_dot_product_attention, attends only to earlier tokens, or has fewer key heads than
                query heads.
        """
        query, key = self._arguments.get("query"), self._arguments.get("key")
        if query is None or key is None or self._arguments.get("is_causal") or query.shape != key.shape:
            raise ConfigError(
                "scorer attention needs a bidirectional model with scaled_dot_product_attention, such as BERT; give another checkpoint"
            )
        scale = self._arguments.get("scale")
        return LastAttention(
            query, key, self._arguments.get("attn_mask"), 1 / math.sqrt(query.shape[-1]) if scale is None else scale, attended.bool()
        )
