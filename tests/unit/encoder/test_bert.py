"""A plain BERT loads without transformers, with the same weights, conventions and vectors."""

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import IncompatibleError
from ray_lir.encoder import layouts
from ray_lir.encoder.bert import Bert, load_bert
from ray_lir.encoder.encoder import Encoder
from tests.support.checkpoints import all_variants, plain, put_together
from tests.support.repository import REPOSITORY

TEXTS = ["A late-interaction model scores each token.", "", "river", "The drug was given to 12 mice; no change! " * 20]


@pytest.fixture
def folder(tmp_path):
    return Path(plain(tmp_path / "plain"))


@pytest.mark.parametrize(("library", "variant"), [*all_variants(), ("plain", "")])
def test_both_ways_to_load_give_the_same_contract_and_vectors(library, variant, tmp_path, monkeypatch):
    checkpoint = plain(tmp_path / "c") if library == "plain" else put_together(library, variant, tmp_path / "c")
    config = EncoderConfig(checkpoint=checkpoint, device="cpu", precision="float32")
    light = Encoder.load(config)
    assert isinstance(light._network.backbone, Bert) == (library != "xtr")
    found = [light.encode_documents(TEXTS), light.encode_queries(TEXTS)]
    monkeypatch.setattr("ray_lir.encoder.layouts.loading.load_bert", lambda folder: None)
    whole = Encoder.load(config)
    assert not isinstance(whole._network.backbone, Bert)
    assert light.contract == whole.contract
    for one, other in zip(found, [whole.encode_documents(TEXTS), whole.encode_queries(TEXTS)], strict=True):
        assert np.array_equal(one.values, other.values) and np.array_equal(one.token_ids, other.token_ids)


def test_the_model_of_an_encoder_is_transformers_and_can_be_trained(folder):
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu", precision="float32"))
    before = encoder.encode_documents(TEXTS)
    encoder = pickle.loads(pickle.dumps(encoder))
    vectors = encoder.embed_documents(encoder.batch_documents(TEXTS[:1])).vectors
    vectors.sum().backward()
    assert encoder.model.backbone.embeddings.word_embeddings.weight.grad is not None
    assert type(encoder.model.backbone).__name__ == "BertModel"
    assert np.array_equal(encoder.encode_documents(TEXTS).values, before.values)
    with torch.no_grad():
        encoder.model.backbone.embeddings.word_embeddings.weight.mul_(-1)
    assert not np.array_equal(encoder.encode_documents(TEXTS).values, before.values)


def test_weights_that_changed_on_disk_are_not_loaded_again(folder):
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu", precision="float32"))
    before = encoder.encode_documents(TEXTS)
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.clone() * 2 for name, tensor in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})
    assert np.array_equal(encoder.encode_documents(TEXTS).values, before.values)
    with pytest.raises(IncompatibleError, match="have changed since they were loaded"):
        encoder.embed_documents(encoder.batch_documents(TEXTS))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "roberta"},
        {"hidden_act": "relu"},
        {"is_decoder": True},
        {"auto_map": {"AutoModel": "own.Model"}},
        {"num_hidden_layers": 3},
        {"num_hidden_layers": 10**12},
        {"vocab_size": 7},
        {"hidden_size": None},
    ],
)
def test_other_models_are_left_to_transformers(changes, folder):
    config = json.loads((folder / "config.json").read_text())
    assert load_bert(folder) is not None
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert load_bert(folder) is None


def test_loading_draws_no_random_numbers(folder):
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    assert load_bert(folder) is not None
    assert torch.equal(torch.rand(2), expected)


def test_special_tokens_and_lengths_are_those_of_transformers(folder):
    light, whole = layouts.load(folder, light=True).tokenizer, layouts.load(folder).tokenizer
    assert type(light) is not type(whole)
    for name in ("model_max_length", "mask_token", "eos_token", "pad_token", "unk_token_id"):
        assert getattr(light, name) == getattr(whole, name), name
    for text in (*TEXTS, "[MASK] [SEP] a"):
        assert light.encode(text, add_special_tokens=False) == whole.encode(text, add_special_tokens=False)


def test_encoding_imports_neither_transformers_nor_ray(folder):
    code = (
        "import sys; from ray_lir.base.config import EncoderConfig; from ray_lir.encoder.encoder import Encoder; "
        f"encoder = Encoder.load(EncoderConfig(checkpoint={str(folder)!r}, device='cpu')); encoder.encode_documents(['a']); "
        "encoder.encode_queries(['a']); encoder.tokenizer.query_spans('a'); "
        "print([name for name in ('transformers', 'ray', 'sympy', 'torch._dynamo', 'duckdb', 'faiss') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
