"""The compiled layers of the int8 encoder give the bits of their definition in NumPy, with every instruction set."""

import numpy as np
import pytest

from ray_lir.base import compiled
from tests.support import byte_reference
from tests.support.byte_reference import Layer, Linear

pytestmark = pytest.mark.skipif(not compiled.available(), reason="the compiled kernels are not installed")
LENGTHS, ATTENDED = [1, 75, 7, 300, 40, 33], [1, 75, 4, 300, 32, 33]
SHAPES = [(96, 3, 336), (128, 2, 256), (96, 2, 96), (32, 4, 48), (144, 1, 176)]
"""Width, heads and width of the feed-forward network: heads of 32, 64, 48, 8 and 144 dimensions."""
REACH = max(LENGTHS)


def compiled_layer(layer: Layer) -> object:
    native, parts = compiled.module(), []
    for weight, bias in layer.project:
        dim = len(weight) // layer.heads
        rows = np.concatenate([weight, bias[:, None]], 1).reshape(layer.heads, dim, -1)
        parts.append(np.pad(rows, ((0, 0), (0, -dim % 32), (0, 0))).reshape(-1, rows.shape[2]))
    project = Linear(np.ascontiguousarray(np.concatenate(parts)[:, :-1]), np.ascontiguousarray(np.concatenate(parts)[:, -1]))
    weights = [native.ByteWeights(*each) for each in (project, layer.output, layer.widen, layer.narrow)]
    return native.ByteLayer(*weights[:2], *layer.norm, *weights[2:], *layer.last_norm)


def encode(name: str, layers: list[Layer], hidden: np.ndarray, biases: np.ndarray | None) -> np.ndarray:
    table = None if biases is None else np.pad(biases * np.float32(np.log2(np.e)), ((0, 0), (0, 32)))
    sizes = np.array(LENGTHS), np.array(ATTENDED)
    dim = hidden.shape[1] // layers[0].heads
    made = [compiled_layer(each) for each in layers]
    return compiled.module().encode_layers(name, made, hidden, *sizes, layers[0].heads, dim, table)


@pytest.mark.parametrize(("width", "heads", "wide"), SHAPES)
@pytest.mark.parametrize("biased", [False, True])
def test_every_instruction_set_gives_the_bits_of_the_reference(width: int, heads: int, wide: int, biased: bool) -> None:
    rng = np.random.default_rng(width + heads)
    layers = [byte_reference.random_layer(width, heads, wide, seed) for seed in range(2)]
    hidden = rng.normal(size=(sum(LENGTHS), width)).astype(np.float32)
    biases = rng.normal(size=(heads, 2 * REACH + 1)).astype(np.float32) if biased else None
    expected = byte_reference.encode(layers, hidden, LENGTHS, ATTENDED, biases)
    for name in compiled.module().instruction_sets():
        assert np.array_equal(encode(name, layers, hidden, biases), expected), name


def test_largest_words_do_not_overflow() -> None:
    layer = byte_reference.random_layer(96, 3, 96, 0)
    for each in layer.project:
        each.weight[:] = 1  # all dimensions of a query, key and value are equal, so all words are the largest ones
    hidden = np.random.default_rng(0).normal(size=(sum(LENGTHS), 96)).astype(np.float32)
    hidden[5], hidden[6], hidden[7] = 1e6, 0, -1e6
    expected = byte_reference.encode([layer], hidden, LENGTHS, ATTENDED, None)
    assert np.isfinite(expected).all()
    for name in compiled.module().instruction_sets():
        assert np.array_equal(encode(name, [layer], hidden, None), expected), name


def test_sizes_that_do_not_belong_together_are_refused() -> None:
    native, layer = compiled.module(), compiled_layer(byte_reference.random_layer(96, 3, 96, 0))
    hidden, biases = np.zeros((10, 96), np.float32), np.zeros((3, 40), np.float32)
    right = {
        "hidden": hidden,
        "lengths": np.array([4, 6]),
        "attended": np.array([4, 1]),
        "heads": 3,
        "dim": 32,
        "biases": None,
    }
    name = native.instruction_sets()[-1]
    assert native.encode_layers(name, [layer], **right).shape == (10, 96)
    wrong = [{"lengths": np.array([4, 5])}, {"attended": np.array([0, 1])}, {"attended": np.array([4, 7])}, {"attended": np.array([4])}]
    wrong += [{"heads": 6}, {"heads": 2, "dim": 48}, {"hidden": hidden[:, :64].copy()}, {"biases": biases}, {"biases": biases[:2]}]
    for each in wrong:
        with pytest.raises(ValueError, match="."):
            native.encode_layers(name, [layer], **(right | each))


@pytest.mark.parametrize("inputs", [16, 176, 384, 512, 768, 1040, 1536, 3072])
def test_a_product_has_the_bits_of_the_reference(inputs: int) -> None:
    rng = np.random.default_rng(inputs)
    layer = Linear(rng.normal(size=(48, inputs)).astype(np.float32), rng.normal(size=48).astype(np.float32))
    layer.weight[3], layer.weight[4, 1:], layer.weight[5] = 0, 0, np.sign(layer.weight[5])
    rows = rng.normal(size=(37, inputs)).astype(np.float32)
    rows[2], rows[3, 1:], rows[4] = 3.5, 0, np.sign(rows[4])
    expected = byte_reference.linear(rows, layer)
    for name in compiled.module().instruction_sets():
        assert np.array_equal(compiled.module().quantized_linear(name, rows, compiled.module().ByteWeights(*layer)), expected), name


def test_the_largest_sums_fit_16_bits() -> None:
    inputs = 176  # they are not mixed
    weight = np.zeros((16, inputs), np.float32)
    for n, places in enumerate(([0], [0, 1], [0, 1, 4], [0, 1, 4, 5], [2, 3, 6, 7], range(8), range(inputs))):
        weight[2 * n, list(places)], weight[2 * n + 1, list(places)] = 1, -1
    rows = np.ones((3, inputs), np.float32)
    rows[0, -1], rows[1, 8:] = 0, 0
    layer = Linear(weight, np.zeros(16, np.float32))
    expected = byte_reference.linear(rows, layer)
    np.testing.assert_allclose(expected, rows @ weight.T, rtol=0.01, atol=1)
    for name in compiled.module().instruction_sets():
        assert np.array_equal(compiled.module().quantized_linear(name, rows, compiled.module().ByteWeights(*layer)), expected), name
