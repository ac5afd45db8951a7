"""Layers of a transformer on a CPU with products of bytes, by compiled kernels (docs/algorithms.md#17-products-of-bytes).

Shapes: T tokens, W width of the model, H heads, d dimensions per head, P = d rounded up to a multiple of 32.
"""

import math
import os
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.base import compiled
from ray_lir.base.errors import ConfigError, KernelUnavailable
from ray_lir.encoder.layer_parts import LayerParts

VARIABLE = "RAY_LIR_KERNELS"
"""Environment variable that names the kernels; `native:SET` chooses the instruction set here too."""
STEP = 16
"""Widths of layers must be multiples of this."""
HEAD_STEP = 32
"""Dimensions of a head are padded to a multiple of this."""


class ByteLinear:
    """Linear layers with the same input as one product of bytes: [T, in] -> [T, out].

    The bits of a row's result depend on that row alone, and are the same on every instruction set.

    Args:
        layers: Linear layers with a bias.
        heads: Heads that their outputs are divided into; each gets P outputs, and the added ones are zero. None: nothing is added.
    """

    def __init__(self, *layers: nn.Linear, heads: int | None = None):
        rows = [torch.cat([layer.weight.detach().float(), layer.bias.detach().float()[:, None]], 1) for layer in layers]
        if heads is not None:
            rows = [
                functional.pad(each.unflatten(0, (heads, -1)), (0, 0, 0, -(len(each) // heads) % HEAD_STEP)).flatten(0, 1) for each in rows
            ]
        weight, bias = torch.cat(rows).split([layers[0].in_features, 1], 1)
        self.instruction_set = instruction_set()
        self.weights = compiled.module().ByteWeights(weight.contiguous().numpy(), bias.flatten().contiguous().numpy())

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the layers' output, [T, out] float32."""
        product = compiled.module().quantized_linear(self.instruction_set, rows.contiguous().numpy(), self.weights)
        return torch.from_numpy(product)


class ByteLayers:
    """Layers of a transformer: linear layers are products of bytes, and attention is products of 16-bit words.

    The bits of a token's result depend on its text alone, and are the same on every instruction set.
    """

    def __init__(self, layers: Sequence[LayerParts]):
        self.heads = layers[0].heads
        self._dim = layers[0].project[0].out_features // self.heads
        self._projections = [ByteLinear(*each.project, heads=self.heads) for each in layers]
        self._layers = [_compiled_layer(each, project) for each, project in zip(layers, self._projections, strict=True)]

    def __call__(self, hidden: Tensor, lengths: Sequence[int], attended: Sequence[int], biases: Tensor | None, last: bool = True) -> Tensor:
        """Return the output of the last layer, [T, W] float32.

        Args:
            hidden: Input of the first layer, [T, W]: the tokens of all texts, without padding.
            lengths: Number of tokens of each text.
            attended: How many of the first tokens of each text are attended to.
            biases: Added to the logits of attention, [H, 2 R + 1]; item R + j - i is for a query at position i and a key at position j.
                R is at least the greatest length. None: nothing is added.
            last: False: return the input of the last layer.
        """
        layers = self._layers if last else self._layers[:-1]
        if not layers:
            return hidden
        return self._run(layers, hidden, lengths, attended, biases)

    def last_layer(self, hidden: Tensor, lengths: Sequence[int], attended: Sequence[int], biases: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the last layer's query, key and value, [T, 3, H, d], and its output, [T, W], from its input.

        Args:
            hidden: Input of the last layer, [T, W].
            lengths: Number of tokens of each text.
            attended: How many of the first tokens of each text are attended to.
            biases: As in `__call__`.
        """
        products = self._projections[-1](hidden).unflatten(1, (3, self.heads, -1))[..., : self._dim]
        return products, self._run(self._layers[-1:], hidden, lengths, attended, biases)

    def _run(self, layers: list[object], hidden: Tensor, lengths: Sequence[int], attended: Sequence[int], biases: Tensor | None) -> Tensor:
        sizes = np.array(lengths, np.int64), np.array(attended, np.int64)
        table = None
        if biases is not None:
            reach = max(lengths, default=0)
            middle = biases.shape[1] // 2
            window = biases[:, middle - reach : middle + reach + 1].float() * math.log2(math.e)
            table = functional.pad(window, (0, 2 * STEP)).contiguous().numpy()
        name = self._projections[0].instruction_set
        found = compiled.module().encode_layers(name, layers, hidden.contiguous().numpy(), *sizes, self.heads, self._dim, table)
        return torch.from_numpy(found)


def _compiled_layer(parts: LayerParts, project: ByteLinear) -> object:
    norms = [
        (each.weight.detach().float().contiguous().numpy(), each.bias.detach().float().contiguous().numpy(), float(each.eps))
        for each in (parts.norm, parts.last_norm)
    ]
    output, widen, narrow = (ByteLinear(each).weights for each in (parts.output, parts.widen, parts.narrow))
    return compiled.module().ByteLayer(project.weights, output, *norms[0], widen, narrow, *norms[1])


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
