"""Dropout of trainings on a CPU, against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from ray_lir.training.dropout import FastDropout, fast_dropout

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_the_requested_fraction_and_keeps_the_mean(share, dtype):
    torch.manual_seed(0)
    with fast_dropout(CPU):
        values = nn.Dropout(share)(torch.ones(1001, 999, dtype=dtype))
    assert values.dtype == dtype
    assert values.unique().tolist() == pytest.approx([0, 1 / (1 - share)], rel=1e-5 if dtype == torch.float32 else 4e-3)
    assert (values == 0).float().mean().item() == pytest.approx(share, abs=0.002)
    for axis in (0, 1):  # rows and columns are alike: draws of four neighbours are independent
        assert (values == 0).float().mean(axis).std().item() == pytest.approx((share * (1 - share) / 1000) ** 0.5, rel=0.15)


def test_dropout_drops_neighbours_independently():
    torch.manual_seed(0)
    with fast_dropout(CPU):
        dropped = (functional.dropout(torch.ones(1 << 20), 0.5) == 0).float()
    for distance in (1, 2, 3, 4):
        assert (dropped[:-distance] * dropped[distance:]).mean().item() == pytest.approx(0.25, abs=0.003)


def test_dropout_drops_the_gradients_of_dropped_values():
    values = torch.randn(64, 33, requires_grad=True)
    with fast_dropout(CPU):
        result = functional.dropout(values, 0.3)
    result.sum().backward()
    torch.testing.assert_close(values.grad, result.detach() / values.detach())


def test_dropout_masks_depend_on_the_seed():
    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        with fast_dropout(CPU):
            return functional.dropout(torch.ones(1000), 0.5)

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize("mask", ["none", "bool", "float"])
def test_attention_equals_torchs_except_for_dropout_masks(mask):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8) for _ in range(3))
    allowed = torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]], dtype=torch.bool)[:, None, None, :].expand(2, 1, 5, 5)
    attention_mask = {"none": None, "bool": allowed, "float": torch.zeros(2, 1, 5, 5).masked_fill(~allowed, -1e9)}[mask]
    expected = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
    with FastDropout():
        nothing_dropped = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=1e-9)
        torch.testing.assert_close(nothing_dropped, expected)
        dropped = [functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, dropout_p=0.2) for _ in range(4000)]
    torch.testing.assert_close(torch.stack(dropped).mean(0), expected, atol=0.08, rtol=0)


def test_dropout_equals_torchs_in_evaluation_and_at_probabilities_0_and_1():
    values = torch.randn(100)
    with fast_dropout(CPU):
        assert torch.equal(nn.Dropout(0.5).eval()(values), values)
        assert torch.equal(functional.dropout(values, 0.0), values)
        assert not functional.dropout(values, 1.0).any()
