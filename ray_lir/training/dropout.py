"""Fast dropout on a CPU: one random number gives four elements of a mask. torch draws one number for each element, on one thread."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LEVELS = 1 << 16
"""Number of values of the 16 random bits of an element, so a probability is exact to 1e-5."""


def fast_dropout(device: torch.device) -> AbstractContextManager:
    """Return a context in which any model's dropout on a CPU is fast; on a GPU it changes nothing, because torch's own is fast there."""
    return FastDropout() if device.type == "cpu" else nullcontext()


class FastDropout(TorchFunctionMode):
    """Replaces dropout, and attention with dropout, for which torch has only an unfused CPU kernel that converts to float32."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout:
            return _dropout(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            attended = _attention(*args, **kwargs)
            if attended is not None:
                return attended
        return func(*args, **kwargs)


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, probability: float) -> Tensor:
        dropped = min(round(probability * LEVELS), LEVELS - 1)
        draws = torch.empty(-(-values.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        kept = draws.view(torch.int16)[: values.numel()] >= dropped - LEVELS // 2
        factors = kept.to(values.dtype).mul_(LEVELS / (LEVELS - dropped)).view(values.shape)
        ctx.save_for_backward(factors)
        return values * factors

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradients: Tensor) -> tuple[Tensor, None]:
        (factors,) = ctx.saved_tensors
        return gradients * factors, None


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1:
        return functional.dropout(input, p, training, inplace)
    return _Drop.apply(input, p)


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor | None:
    """Return attention with dropout; None if torch's own function must be used."""
    if not dropout_p or is_causal or enable_gqa:
        return None
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attn_mask, torch.finfo(scores.dtype).min)
    elif attn_mask is not None:
        scores = scores + attn_mask.to(scores.dtype)
    return _dropout(scores.softmax(-1), dropout_p) @ value
