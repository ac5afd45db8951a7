"""The int8 encoder in plain NumPy, operation for operation (docs/algorithms.md#17-products-of-bytes): compiled kernels give the same bits.

Shapes: T tokens, W width, H heads, d dimensions per head, K attended tokens of a text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

F = np.float32
GELU = [F(term) for term in (0.396536633, -0.0626617378, 0.00787680638, -0.000622064878, 2.72197309e-05, -4.98792799e-07)]
EXP2 = [F(term) for term in (0.999928057, 0.693260968, 0.24261114, 0.0551716648)]


class Linear(NamedTuple):
    """A linear layer: weight [out, in] and bias [out]."""

    weight: np.ndarray
    bias: np.ndarray


class Norm(NamedTuple):
    """A layer norm: scale and shift, [W]."""

    scale: np.ndarray
    shift: np.ndarray
    epsilon: float


class Layer(NamedTuple):
    """A layer of a transformer, like `ray_lir.encoder.layer_parts.LayerParts`."""

    heads: int
    project: tuple[Linear, Linear, Linear]
    output: Linear
    norm: Norm
    widen: Linear
    narrow: Linear
    last_norm: Norm


def random_layer(width: int, heads: int, wide: int, seed: int) -> Layer:
    """Return a layer with random weights, whose attention differs from its mean."""
    rng = np.random.default_rng(seed)

    def linear(inputs: int, outputs: int, size: float) -> Linear:
        return Linear(rng.normal(0, size, (outputs, inputs)).astype(F), rng.normal(0, 0.1, outputs).astype(F))

    def norm() -> Norm:
        return Norm(rng.normal(1, 0.3, width).astype(F), rng.normal(0, 0.3, width).astype(F), 1e-5)

    project = linear(width, width, 0.3), linear(width, width, 0.3), linear(width, width, 0.1)
    return Layer(heads, project, linear(width, width, 0.1), norm(), linear(width, wide, 0.1), linear(wide, width, 0.1), norm())


def ends(width: int, *fractions: float) -> list[int]:
    """Return the ends of groups of inputs: multiples of 16 near these fractions of the width, and the width."""
    return sorted({max(16, round(width * fraction / 16) * 16) for fraction in fractions} | {width})


def ordered(layers: Sequence[Layer]) -> tuple[np.ndarray, list[Layer]]:
    """Return the order of hidden dimensions, and layers whose dimensions and wide inputs are in the order of the groups."""
    norms = [(np.abs(each.shift.astype(np.float64)) + 4 * np.abs(each.scale)) for layer in layers for each in (layer.norm, layer.last_norm)]
    size = np.zeros(len(norms[0]))
    for each in norms:
        size = size + each / each.max()
    order, result = np.argsort(-size, kind="stable"), []
    for layer in layers:
        wide = np.argsort(-np.abs(layer.narrow.weight).max(0), kind="stable")
        project = [Linear(np.ascontiguousarray(each.weight[:, order]), each.bias) for each in layer.project]
        output = Linear(layer.output.weight[order], layer.output.bias[order])
        widen = Linear(np.ascontiguousarray(layer.widen.weight[wide][:, order]), layer.widen.bias[wide])
        narrow = Linear(np.ascontiguousarray(layer.narrow.weight[order][:, wide]), layer.narrow.bias[order])
        pair = [Norm(each.scale[order], each.shift[order], each.epsilon) for each in (layer.norm, layer.last_norm)]
        result.append(Layer(layer.heads, (project[0], project[1], project[2]), output, pair[0], widen, narrow, pair[1]))
    return order, result


def linear(rows: np.ndarray, *layers: Linear, ends: Sequence[int] | None = None) -> np.ndarray:
    """Return the output of linear layers with the same input, [T, out] float32; each group of inputs, up to one of `ends`, has scales."""
    weight, bias = (np.concatenate(parts) for parts in zip(*layers, strict=True))
    result, begin = np.broadcast_to(bias, (len(rows), len(bias))), 0
    for end in ends or [rows.shape[1]]:
        part, own = rows[:, begin:end], weight[:, begin:end]
        low, spread = part.min(1, keepdims=True), np.ptp(part, axis=1, keepdims=True)
        factor = np.divide(F(127), spread, out=np.zeros_like(spread), where=spread > 0)
        row_bytes = np.minimum((part - low) * factor + F(0.5), F(127)).astype(np.int64)
        largest = np.abs(own).max(1, keepdims=True)
        weight_bytes = np.rint(own * np.divide(F(64), largest, out=np.zeros_like(largest), where=largest > 0)).astype(np.int64)
        scale = (largest / F(64)).T
        products = (row_bytes @ weight_bytes.T).astype(F) * ((spread * F(1 / F(127))) * scale)
        result = result + products + low * (weight_bytes.sum(1).astype(F) * scale)
        begin = end
    return result


def norm(rows: np.ndarray, layer: Norm) -> np.ndarray:
    """Return normalized rows, [T, W]."""
    share = F(1) / F(rows.shape[1])
    centred = rows + -share * total(rows)
    factor = F(1) / np.sqrt(total(centred * centred) * share + F(layer.epsilon))
    return centred * factor * layer.scale + layer.shift


def total(rows: np.ndarray) -> np.ndarray:
    """Return the sums of rows, [T, 1]: 16 running sums, added in halves."""
    sums = np.zeros((len(rows), 16), F)
    for start in range(0, rows.shape[1], 16):
        sums = sums + rows[:, start : start + 16]
    for half in (8, 4, 2, 1):
        sums = sums[:, :half] + sums[:, half : 2 * half]
    return sums


def gelu(rows: np.ndarray) -> np.ndarray:
    """Return GELU of each item."""
    limited = np.clip(rows, F(-3.65), F(3.65))
    square, value = limited * limited, np.full_like(rows, GELU[-1])
    for term in GELU[-2::-1]:
        value = value * square + term
    return rows * (limited * value + F(0.5))


def to_words(rows: np.ndarray, limit: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Return rows as integers up to `limit`, and the largest absolute value of each row, [T]."""
    largest = np.abs(rows).max(1)
    factor = np.divide(limit, largest, out=np.zeros_like(largest), where=largest > 0)
    return np.rint(rows * factor[:, None]).astype(np.int64), largest


def attention(projected: np.ndarray, attended: int, heads: int, biases: np.ndarray | None) -> np.ndarray:
    """Return the result of attention for one text, [T, W], from its query, key and value, [T, 3 W]."""
    query, key, value = np.split(projected, 3, axis=1)
    key, value = key[:attended], value[:attended]
    dim = query.shape[1] // heads
    limit = np.floor(np.sqrt(F(2**31 - 129) / F(-(-dim // 32) * 32)))
    (query_words, query_most), (key_words, key_most), (value_words, value_most) = (
        to_words(query, limit),
        to_words(key, limit),
        to_words(value, F(32767)),
    )
    query_scales = query_most * (F(1.44269504) / (np.sqrt(F(dim)) * limit))
    key_scales, value_scales = key_most * (F(1) / limit), value_most * (F(1) / F(32767))
    result = np.empty_like(query)
    for head in range(heads):
        part = slice(head * dim, (head + 1) * dim)
        logits = (query_words[:, part] @ key_words[:, part].T).astype(F) * key_scales * query_scales[:, None]
        if biases is not None:
            distances = np.arange(attended) - np.arange(len(query))[:, None]
            logits = logits + biases[head, biases.shape[1] // 2 + distances] * F(np.log2(np.e))
        padding = np.full((len(query), -attended % 32), F(-1e30))
        powers = exp2(np.concatenate([logits, padding], 1))
        largest = value_scales.max()
        whole = F(32000) / (total(powers) * largest) if largest > 0 else F(0)
        shares = np.rint(powers[:, :attended] * whole * value_scales).astype(np.int64)
        result[:, part] = (shares @ value_words[:, part]).astype(F) * (largest / F(32000))
    return result


def exp2(logits: np.ndarray) -> np.ndarray:
    """Return 2^(x - h) for each row, where h is the row's largest logit, rounded up."""
    highest, step = np.ceil(logits.max(1, keepdims=True)), F(1.5 * 2**23)
    large = np.abs(highest) > F(2**20)
    logits, highest = np.where(large, logits - highest, logits), np.where(large, F(0), highest)
    limited = np.maximum(logits, highest - F(125))
    whole = (limited + (step - highest)) - (step - highest)
    fraction, value = limited - whole, np.full_like(logits, EXP2[-1])
    for term in EXP2[-2::-1]:
        value = value * fraction + term
    return np.ldexp(value, (whole - highest).astype(np.int32))


def encode(
    layers: Sequence[Layer], hidden: np.ndarray, lengths: Sequence[int], attended: Sequence[int], biases: np.ndarray | None
) -> np.ndarray:
    """Return the output of the last layer, [T, W]; the arguments are those of `ray_lir.encoder.byte_layers.ByteLayers`."""
    order, layers = ordered(layers)
    hidden, result, narrow = hidden[:, order], np.empty_like(hidden), ends(hidden.shape[1], 1 / 12)
    for layer in layers:
        projected, first = linear(hidden, *layer.project, ends=narrow), 0
        mixed = np.empty_like(hidden)
        for length, own in zip(lengths, attended, strict=True):
            mixed[first : first + length] = attention(projected[first : first + length], own, layer.heads, biases)
            first += length
        hidden = norm(linear(mixed, layer.output) + hidden, layer.norm)
        wide = gelu(linear(hidden, layer.widen, ends=narrow))
        hidden = norm(linear(wide, layer.narrow, ends=ends(wide.shape[1], 1 / 8, 1 / 2)) + hidden, layer.last_norm)
    result[:, order] = hidden
    return result
