"""Products of bytes in the encoder: equal to their definition, equal bits everywhere, near float32, refused where they cannot run."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn import functional

from ray_lir.base import compiled
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, KernelUnavailable
from ray_lir.encoder.byte_layers import ByteLayers, ByteLinear, check_layers, instruction_set
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.layer_parts import LayerParts
from ray_lir.training.trainer import load_encoder
from tests.support import byte_reference
from tests.support.checkpoints import put_together

pytestmark = pytest.mark.skipif(not compiled.available(), reason="the compiled kernels are not installed")
DOCUMENTS = ["", "a river", *(" ".join(f"word{i * j}" for i in range(3 * j)) for j in range(1, 9))]


def defined(rows: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return the product of docs/algorithms.md#17-products-of-bytes in float64."""
    matrix, power = mixing(rows.shape[1])
    rows, weight = rows @ matrix, weight @ matrix / power
    low = rows.min(1, keepdims=True)
    step = (rows.max(1, keepdims=True) - low) / 181
    bytes_of_rows = np.floor(np.divide(rows - low, step, out=np.zeros_like(rows), where=step > 1e-6) + 0.5)
    signs = np.stack([np.maximum(weight, 0), np.maximum(-weight, 0)])
    fours = signs.reshape(2, len(weight), -1, 8)[..., [[0, 1, 4, 5], [2, 3, 6, 7]]].sum(-1).max((0, 2, 3))
    scale = np.maximum(np.abs(weight).max(1) / 127, fours / 179)[:, None]
    bytes_of_weights = np.round(weight / scale)
    products = bytes_of_rows @ bytes_of_weights.T
    return step * scale.T * products + low * scale.T * bytes_of_weights.sum(1) + bias


def mixing(inputs: int) -> tuple[np.ndarray, int]:
    """Return the matrix that mixes inputs, [inputs, inputs], and the power of two in it."""
    registers, matrix = inputs // 16, np.ones((1, 1))
    while len(matrix) < 32 and registers % (2 * len(matrix)) == 0:
        matrix = np.kron([[1, 1], [1, -1]], matrix)
    power = len(matrix)
    if registers % (3 * power) == 0:
        matrix = np.kron(np.eye(3) - 2 / 3, matrix)
    return np.kron(matrix, np.eye(inputs // len(matrix))), power


def linear(inputs: int, outputs: int, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(inputs, outputs)


SIZES = [(1, 16, 16), (7, 48, 96), (33, 528, 16), (70, 1040, 112), (9, 384, 32), (5, 1536, 16), (0, 32, 32)]


@pytest.mark.parametrize(("count", "inputs", "outputs"), SIZES)
def test_a_product_is_what_the_definition_says(count: int, inputs: int, outputs: int) -> None:
    layer = linear(inputs, outputs, 0)
    rows = np.random.default_rng(1).normal(size=(count, inputs)).astype(np.float32)
    rows[count // 2 : count // 2 + 1] = 3.5  # a row without a range
    found = ByteLinear(layer)(torch.from_numpy(rows)).numpy()
    expected = defined(rows, layer.weight.detach().numpy(), layer.bias.detach().numpy())
    assert found.shape == (count, outputs)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_give_rows_that_are_not_finite(bad: float) -> None:
    layer = linear(32, 32, 0)
    with torch.no_grad():
        layer.weight[3, 5] = bad
    assert not ByteLinear(layer)(torch.rand(2, 32)).isfinite().all()


def layer(width: int, heads: int, wide: int, seed: int) -> LayerParts:
    norms = nn.LayerNorm(width), nn.LayerNorm(width)
    parts = LayerParts(
        heads,
        (linear(width, width, seed), linear(width, width, seed + 1), linear(width, width, seed + 2)),
        linear(width, width, seed + 3),
        norms[0],
        linear(width, wide, seed + 4),
        linear(wide, width, seed + 5),
        norms[1],
    )
    for each in norms:
        nn.init.normal_(each.weight, 1, 0.3)
        nn.init.normal_(each.bias, 0, 0.3)
    nn.init.normal_(parts.project[0].weight, 0, 0.3)  # attention that differs from its mean
    nn.init.normal_(parts.project[1].weight, 0, 0.3)
    return parts


LENGTHS, ATTENDED = [1, 75, 7, 300, 40, 33], [1, 75, 4, 300, 32, 33]


def reference(parts: LayerParts) -> byte_reference.Layer:
    def arrays(layer: nn.Linear | nn.LayerNorm) -> tuple[np.ndarray, np.ndarray]:
        return layer.weight.detach().numpy(), layer.bias.detach().numpy()

    project = tuple(byte_reference.Linear(*arrays(each)) for each in parts.project)
    output, widen, narrow = (byte_reference.Linear(*arrays(each)) for each in (parts.output, parts.widen, parts.narrow))
    norm, last_norm = (byte_reference.Norm(*arrays(each), each.eps) for each in (parts.norm, parts.last_norm))
    return byte_reference.Layer(parts.heads, project, output, norm, widen, narrow, last_norm)


def hidden_states(width: int) -> torch.Tensor:
    torch.manual_seed(9)
    return torch.randn(sum(LENGTHS), width)


@pytest.mark.parametrize("biased", [False, True])
def test_every_instruction_set_gives_the_bits_of_the_reference(biased: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layers, hidden = [layer(96, 2, 336, seed) for seed in (0, 10)], hidden_states(96)
    biases = torch.randn(2, 2 * 310 + 1) if biased else None
    numbers = LENGTHS, ATTENDED, None if biases is None else biases.numpy()
    references = [reference(each) for each in layers]
    expected = byte_reference.encode(references, hidden.numpy(), *numbers)
    project = references[1].project
    for name in compiled.module().instruction_sets():
        monkeypatch.setenv("RAY_LIR_KERNELS", f"native:{name}")
        assert instruction_set() == name
        run = ByteLayers(layers)
        assert np.array_equal(run(hidden, LENGTHS, ATTENDED, biases).numpy(), expected), name
        before = run(hidden, LENGTHS, ATTENDED, biases, last=False)
        products, found = run.last_layer(before, LENGTHS, ATTENDED, biases)
        assert np.array_equal(found.numpy(), expected), name
        assert np.array_equal(products.flatten(1).numpy(), byte_reference.linear(before.numpy(), *project)), name


def test_layers_are_near_float32_and_texts_are_independent() -> None:
    layers, hidden = [layer(96, 3, 336, seed) for seed in (0, 10)], hidden_states(96)
    run, biases = ByteLayers(layers), torch.randn(3, 2 * max(LENGTHS) + 1)
    found = run(hidden, LENGTHS, ATTENDED, biases)
    expected = float_layers(layers, hidden, biases)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.5)
    cosines = functional.cosine_similarity(found, expected, dim=1)
    assert cosines.mean() > 0.999 and cosines.min() > 0.99
    parts = zip(hidden.split(LENGTHS), LENGTHS, ATTENDED, strict=True)
    alone = torch.cat([run(part, [length], [own], biases) for part, length, own in parts])
    assert torch.equal(alone, found)


@torch.no_grad()
def float_layers(layers: list[LayerParts], hidden: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
    for each in layers:
        mixed = []
        for part, own in zip(hidden.split(LENGTHS), ATTENDED, strict=True):
            query, key, value = (project(part).unflatten(1, (each.heads, -1)).transpose(0, 1) for project in each.project)
            distances = torch.arange(own) - torch.arange(len(part))[:, None]
            bias = biases[:, biases.shape[1] // 2 + distances]
            attended = functional.scaled_dot_product_attention(query, key[:, :own], value[:, :own], attn_mask=bias)
            mixed.append(attended.transpose(0, 1).flatten(1))
        hidden = each.norm(each.output(torch.cat(mixed)) + hidden)
        hidden = each.last_norm(each.narrow(functional.gelu(each.widen(hidden))) + hidden)
    return hidden


def test_no_texts_give_no_rows() -> None:
    assert ByteLayers([layer(32, 4, 48, 0)])(torch.empty(0, 32), [], [], None).shape == (0, 32)


def test_int8_vectors_are_near_float32_and_do_not_depend_on_threads_or_neighbours(tmp_path: Path) -> None:
    checkpoint = put_together("sentence_transformers", "fixed", tmp_path)
    exact, encoder = (Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=each, device="cpu")) for each in ("float32", "int8"))
    assert encoder.contract.fingerprint == exact.contract.fingerprint
    expected, found = exact.encode_documents(DOCUMENTS), encoder.encode_documents(DOCUMENTS)
    cosines = (expected.values.astype(np.float32) * found.values.astype(np.float32)).sum(1)
    assert cosines.min() > 0.98 and not np.array_equal(expected.values, found.values)
    alone = np.concatenate([encoder.encode_documents([text]).values for text in DOCUMENTS])
    assert np.array_equal(alone, found.values)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        again = encoder.encode_documents(DOCUMENTS[::-1] * 3)
        assert np.array_equal(np.concatenate([again[len(DOCUMENTS) - 1 - i] for i in range(len(DOCUMENTS))]), found.values)
    finally:
        torch.set_num_threads(before)


def test_attention_of_int8_is_near_float32(tmp_path: Path) -> None:
    checkpoint, found = put_together("sentence_transformers", "fixed", tmp_path), {}
    for precision in ("float32", "int8"):
        torch.manual_seed(0)  # heads of the scorer
        encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=precision, device="cpu")).with_scorer("attention")
        found[precision] = encoder.encode_documents(DOCUMENTS[1:]).attention
    assert found["int8"] is not None and not np.array_equal(*found.values())
    np.testing.assert_allclose(found["int8"], found["float32"], rtol=0, atol=0.03)


def test_int8_is_refused_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    t5 = EncoderConfig(checkpoint=put_together("xtr", "checkpoint", tmp_path / "xtr"), precision="int8", device="cpu")
    with pytest.raises(ConfigError, match="not with a model of type t5; choose auto"):
        Encoder.load(t5)
    with pytest.raises(ConfigError, match="int8 is for encoding only"):
        load_encoder(EncoderConfig(precision="int8"), 0, "cpu")
    for wrong in ([linear(24, 32, 0)], [nn.Linear(32, 32, bias=False)]):
        with pytest.raises(ConfigError, match="multiples of 16"):
            check_layers(wrong)
    with pytest.raises(ValidationError, match="'bfloat16', 'float16' or 'int8'"):
        EncoderConfig(precision="int4")
    monkeypatch.setenv("RAY_LIR_KERNELS", "native:mmx")
    with pytest.raises(KernelUnavailable, match="cannot run 'mmx', which RAY_LIR_KERNELS names"):
        ByteLinear(linear(32, 32, 0))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_layers_with_weights_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    layers = [linear(32, 48, seed) for seed in range(2)]
    check_layers(layers)
    getattr(layers[1], name).data.view(-1)[5] = bad
    with pytest.raises(ConfigError, match="weights that are NaN or infinite"):
        check_layers(layers)
