"""Products of bytes for the layers of a transformer on a CPU, by compiled kernels (docs/algorithms.md#17-products-of-bytes).

Shapes: T tokens, W width of the model.
"""

import os
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from ray_lir.base import compiled
from ray_lir.base.errors import ConfigError, KernelUnavailable

VARIABLE = "RAY_LIR_KERNELS"
"""Environment variable that names the kernels; `native:SET` chooses the instruction set here too."""
STEP = 16
"""Widths of layers must be multiples of this."""


class ByteLinear:
    """Linear layers with the same input as one product of bytes: [T, in] -> [T, out].

    The bits of a row's result depend on that row alone, and are the same on every instruction set.
    """

    def __init__(self, *layers: nn.Linear):
        weight, bias = (torch.cat([getattr(layer, name).detach().float() for layer in layers]) for name in ("weight", "bias"))
        self.instruction_set = instruction_set()
        self.weights = compiled.module().ByteWeights(weight.contiguous().numpy(), bias.contiguous().numpy())

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the layers' output, [T, out] float32."""
        product = compiled.module().quantized_linear(self.instruction_set, rows.contiguous().numpy(), self.weights)
        return torch.from_numpy(product)


def feed_forward(
    output: nn.Linear, norm: nn.LayerNorm, widen: nn.Linear, narrow: nn.Linear, last_norm: nn.LayerNorm
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return what follows attention in a layer: the result of attention and the input of the layer, each [T, W], to the output, [T, W].

    Args:
        output: The linear layer after attention.
        norm: The norm of its sum with the layer's input.
        widen: The first layer of the feed-forward network, followed by GELU.
        narrow: The second one.
        last_norm: The norm of its sum with the network's input.
    """
    first, second, third = ByteLinear(output), ByteLinear(widen), ByteLinear(narrow)
    norms = [(each.weight.detach().float().numpy(), each.bias.detach().float().numpy(), float(each.eps)) for each in (norm, last_norm)]

    def run(attended: Tensor, hidden: Tensor) -> Tensor:
        arrays = attended.contiguous().numpy(), hidden.contiguous().numpy()
        weights = first.weights, *norms[0], second.weights, third.weights, *norms[1]
        return torch.from_numpy(compiled.module().encoder_layer(first.instruction_set, *arrays, *weights))

    return run


def check_layers(layers: list[nn.Linear]) -> None:
    """Check that these layers can be computed in bytes.

    Raises:
        ConfigError: A width is not a multiple of 16, a layer has no bias, or a weight is NaN or infinite.
        KernelUnavailable: There is no compiled module with these functions.
    """
    if any(layer.bias is None or layer.in_features % STEP or layer.out_features % STEP for layer in layers):
        raise ConfigError("precision int8 needs layers with a bias and widths that are multiples of 16; use float32")
    if not all(torch.isfinite(weight.detach().abs().max()) for layer in layers for weight in (layer.weight, layer.bias)):
        raise ConfigError("the checkpoint has weights that are NaN or infinite; copy it again, or train it again")  # bytes would hide them
    if not compiled.available() or not hasattr(compiled.module(), "ByteWeights"):
        raise KernelUnavailable("precision int8 needs the compiled kernels of this version; install ray_lir again, or use float32")


def instruction_set() -> str:
    """Return the instruction set that RAY_LIR_KERNELS names, or the fastest one that computes correctly on this processor.

    Raises:
        KernelUnavailable: The variable names a set that this processor cannot run.
    """
    names = _correct_sets()
    kind, _, chosen = os.environ.get(VARIABLE, "").strip().partition(":")
    if kind != "native" or not chosen:
        return names[-1]
    if chosen not in names:
        raise KernelUnavailable(f"this processor cannot run {chosen!r}, which {VARIABLE} names; use one of {', '.join(names)}")
    return chosen


@cache
def _correct_sets() -> tuple[str, ...]:
    """Return the instruction sets that give the results of the plain one, slowest first."""
    native, rng = compiled.module(), np.random.default_rng(0)
    weights = native.ByteWeights(rng.normal(size=(48, 528)).astype(np.float32), rng.normal(size=48).astype(np.float32))
    rows = rng.normal(size=(13, 528)).astype(np.float32)
    names = native.instruction_sets()
    expected = native.quantized_linear(names[0], rows, weights)
    return tuple(name for name in names if np.array_equal(native.quantized_linear(name, rows, weights), expected))
