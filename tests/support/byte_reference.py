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


def mix(rows: np.ndarray) -> tuple[np.ndarray, int]:
    """Return rows times Hadamard's matrix, and times 1 - 2/3 for three parts, and the power of two that divides the inverse, [T, W]."""
    count, width = rows.shape
    power, step = 1, width
    while power < 32 and step % 32 == 0:
        power, step = power * 2, step // 2
    three = step % 48 == 0
    step = step // 3 if three else step
    half = step
    while half < power * step:
        pairs = rows.reshape(count, -1, 2, half)
        rows = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], 2).reshape(count, width)
        half *= 2
    if three:
        parts = rows.reshape(count, -1, 3, half)
        rows = (parts - ((parts[:, :, :1] + parts[:, :, 1:2]) + parts[:, :, 2:]) * F(2 / 3)).reshape(count, width)
    return rows, power


def weight_scales(weight: np.ndarray) -> np.ndarray:
    """Return the value of one unit of each output's bytes, [out, 1]: bytes are at most 127, and those of one sign among 4 at most 181."""
    fours = weight.reshape(len(weight), -1, 2, 2, 2).transpose(0, 1, 3, 2, 4).reshape(len(weight), -1, 4)  # 0, 1, 4, 5 and 2, 3, 6, 7
    sums = np.zeros((len(weight), 1), F)
    for sign in (F(1), F(-1)):
        part = np.maximum(sign * fours, F(0))
        sums = np.maximum(sums, ((part[..., 0] + part[..., 1]) + (part[..., 2] + part[..., 3])).max(1, keepdims=True))
    return np.maximum(np.abs(weight).max(1, keepdims=True) / F(127), sums / F(179))


def linear(rows: np.ndarray, *layers: Linear) -> np.ndarray:
    """Return the output of linear layers with the same input, [T, out] float32."""
    weight, bias = (np.concatenate(parts) for parts in zip(*layers, strict=True))
    weight, power = mix(weight)
    weight, rows = weight * F(1 / power), mix(rows)[0]
    low, spread = rows.min(1, keepdims=True), np.ptp(rows, axis=1, keepdims=True)
    factor = np.divide(F(181), spread, out=np.zeros_like(spread), where=spread > 0)
    row_bytes = np.minimum((rows - low) * factor + F(0.5), F(181)).astype(np.int64)
    scale = weight_scales(weight)
    weight_bytes = np.rint(weight * np.divide(F(1), scale, out=np.zeros_like(scale), where=scale > 0)).astype(np.int64)
    products = (row_bytes @ weight_bytes.T).astype(F) * ((spread * F(1 / F(181))) * scale.T)
    return bias + products + low * (weight_bytes.sum(1).astype(F) * scale.T)


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
    for layer in layers:
        projected, first = linear(hidden, *layer.project), 0
        mixed = np.empty_like(hidden)
        for length, own in zip(lengths, attended, strict=True):
            mixed[first : first + length] = attention(projected[first : first + length], own, layer.heads, biases)
            first += length
        hidden = norm(linear(mixed, layer.output) + hidden, layer.norm)
        wide = gelu(linear(hidden, layer.widen))
        hidden = norm(linear(wide, layer.narrow) + hidden, layer.last_norm)
    return hidden
