"""Encoding without padding equals the model's padded forward pass, and is used only if it does."""

import copy
import pickle
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    BertConfig,
    BertModel,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
)

from ray_lir.base.config import AttentionConfig, EncoderConfig
from ray_lir.encoder import unpadded_bert
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.network import Dense, Network, unpadded_pass
from ray_lir.scorers.attention import Attention
from ray_lir.scorers.batches import TokenBatch, pad

SIZES = {"vocab_size": 60, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4}
LENGTHS = [[1], [9, 9, 9], [40, 17, 17, 2, 1], [1, 30, 1, 1, 30, 13], list(range(1, 24))]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 0.03}


def network(kind: type[PreTrainedModel] = BertModel, dtype: torch.dtype = torch.float32, **changes: object) -> Network:
    """Return a small model with uneven attention and non-zero biases, so that a leaking token changes the result."""
    torch.manual_seed(0)
    config = {BertModel: BertConfig, RobertaModel: RobertaConfig, MPNetModel: MPNetConfig, ModernBertModel: ModernBertConfig}[kind]
    backbone = kind(config(**SIZES, max_position_embeddings=64, pad_token_id=1, **changes))
    for parameter in backbone.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    network = Network(backbone, [Dense(64, 16)], scorer=Attention(16, AttentionConfig(delta_length=50)))
    return network.eval().place(torch.device("cpu"), dtype)


def batch(lengths: Sequence[int], attended: Sequence[int] | None = None) -> TokenBatch:
    rng = np.random.default_rng(sum(lengths))
    ids = [rng.integers(5, 60, length).astype(np.int32) for length in lengths]
    return pad(ids, attended or lengths, [rng.random(length) < 0.8 for length in lengths])


def both(model: Network, texts: TokenBatch):
    with torch.inference_mode():
        found = model.documents(texts)
        assert model in unpadded_pass and unpadded_pass(model), "the padded pass was taken"
    expected = model.documents(texts)  # with gradients
    assert expected.vectors.requires_grad
    return found, expected


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", [BertModel, RobertaModel])
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_vectors_and_attention_weights_equal_the_padded_pass(lengths: list[int], kind: type, dtype: torch.dtype) -> None:
    found, expected = both(network(kind, dtype), batch(lengths))
    assert torch.equal(found.mask, expected.mask)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=TOLERANCE[dtype])
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=TOLERANCE[dtype] / 10)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_mpnet_equals_its_padded_pass(lengths: list[int], dtype: torch.dtype) -> None:
    model, texts = network(MPNetModel, dtype), batch(lengths)
    with torch.inference_mode():
        hidden, attention = unpadded_bert.UnpaddedBert(model.backbone)(texts)
        output = model.backbone(input_ids=texts.input_ids, attention_mask=texts.attention_mask, output_attentions=True)
    present, tolerance = texts.attention_mask.bool(), {torch.float32: 2e-5, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(hidden[present], output.last_hidden_state[present], rtol=0, atol=tolerance)
    last = output.attentions[-1].float().mean(1)
    received = (last * present[:, :, None]).sum(1) / present.sum(1, keepdim=True)
    torch.testing.assert_close(attention.column_mean(), received * present, rtol=0, atol=tolerance / 10)


@pytest.mark.parametrize("attended", [[12, 3, 1], [5, 5, 5]], ids=str)
def test_unattended_tokens_are_encoded(attended: list[int]) -> None:
    texts = batch([12, 12, 12], attended)
    texts = TokenBatch(texts.input_ids, texts.attention_mask, torch.ones_like(texts.keep_mask))
    found, expected = both(network(), texts)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=2e-5)
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_padding_changes_no_vector(dtype: torch.dtype) -> None:
    model, texts = network(dtype=dtype), batch([7, 20, 1])
    wider = [torch.nn.functional.pad(each, (0, 9), value=value) for each, value in zip(vars(texts).values(), (33, 0, False), strict=True)]
    wider[0][~unpadded_bert.present_tokens(TokenBatch(*wider))] = 44
    with torch.inference_mode():
        expected, found = model.documents(texts), model.documents(TokenBatch(*wider))
    assert torch.equal(found.vectors[:, :20], expected.vectors) and not found.vectors[:, 20:].any()
    assert torch.equal(found.weights[:, :20], expected.weights)


def test_texts_of_equal_length_and_attention_form_one_run() -> None:
    assert unpadded_bert.group_runs([5, 5, 4, 4, 4], [5, 5, 4, 2, 2]) == [
        unpadded_bert.Run(2, 5, 5),
        unpadded_bert.Run(1, 4, 4),
        unpadded_bert.Run(2, 4, 2),
    ]


def test_changed_encoder_weights_change_the_fingerprint() -> None:
    model, texts = network(), batch([7, 3])
    both(model, texts)
    with torch.no_grad():
        model.backbone.encoder.layer[0].output.dense.weight.mul_(2)
    found, expected = both(model, texts)
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=0, atol=2e-5)


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"is_decoder": True}])
def test_a_model_that_differs_from_bert_uses_its_own_forward_pass(changes: dict) -> None:
    assert unpadded_bert.is_supported(network().backbone) and not unpadded_bert.is_supported(network(**changes).backbone)
    assert not unpadded_bert.is_supported(network(ModernBertModel, eos_token_id=2, bos_token_id=3, cls_token_id=3, sep_token_id=2).backbone)


def test_an_adapter_in_place_of_a_layer_is_not_bypassed() -> None:
    class Adapter(torch.nn.Linear):
        pass

    model, texts = network(), batch([7, 3])
    both(model, texts)
    model.backbone.encoder.layer[1].attention.self.key = Adapter(64, 64)
    assert not unpadded_bert.is_supported(model.backbone)
    with torch.inference_mode():
        found = model.documents(texts)
    assert unpadded_pass(model) is None
    torch.testing.assert_close(found.vectors, model.documents(texts).vectors, rtol=0, atol=2e-5)


def test_batches_without_texts_or_with_empty_texts_use_the_padded_pass() -> None:
    assert not unpadded_bert.has_tokens(batch([3, 0])) and not unpadded_bert.has_tokens(batch([]))


def test_training_and_autocast_keep_the_padded_pass() -> None:
    model, texts = network(), batch([7, 3])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        model.documents(texts)
    with torch.no_grad():
        model.train().documents(texts)
    assert model not in unpadded_pass


def test_an_encoder_that_has_encoded_can_be_copied_and_pickled() -> None:
    encoder = Encoder.load(EncoderConfig(precision="bfloat16", device="cpu"))
    expected = encoder.encode_documents(["a river", ""])
    for other in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert np.array_equal(other.encode_documents(["a river", ""]).values, expected.values)
