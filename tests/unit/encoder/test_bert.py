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
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.encoder import layouts
from ray_lir.encoder.bert import Bert, load_bert
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenizer_file import TokenizerFile
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
        {"num_hidden_layers": 0},
        {"num_attention_heads": 3},
        {"num_attention_heads": 0},
        {"num_attention_heads": True},
        {"vocab_size": 7},
        {"hidden_size": None},
        {"layer_norm_eps": None},
        {"layer_norm_eps": "1e-5"},
        {"pad_token_id": 500},
        {"pruned_heads": {"0": [1]}},
        {"transformers_weights": "other.safetensors"},
        {"an_unknown_setting": 1},
    ],
)
def test_other_models_are_left_to_transformers(changes, folder):
    config = json.loads((folder / "config.json").read_text())
    assert load_bert(folder) is not None
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert load_bert(folder) is None


def test_weights_that_transformers_loaded_stay_if_the_file_is_overwritten(folder):
    network = layouts.load(folder).network
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with open(folder / "model.safetensors", "r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


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


def test_weights_under_two_names_are_left_to_transformers(folder):
    weights = load_file(folder / "model.safetensors")
    twice = weights | {f"bert.{name}": tensor * 2 for name, tensor in weights.items()}
    save_file(twice, folder / "model.safetensors", metadata={"format": "pt"})
    assert load_bert(folder) is None


def test_adapters_are_left_to_transformers(folder):
    (folder / "adapter_config.json").write_text("{}")
    assert load_bert(folder) is None


def change_json(file, changes):
    content = json.loads(file.read_text()) if file.exists() else {}
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[last] = value
    file.write_text(json.dumps(content))


BERT = {"tokenizer_class": "BertTokenizer"}
OTHER_TOKENIZERS = [
    ({"normalizer.lowercase": False}, BERT),
    ({"normalizer.clean_text": False}, BERT),
    ({"normalizer.handle_chinese_chars": False}, BERT),
    ({"normalizer.strip_accents": True}, BERT),
    ({"pre_tokenizer": {"type": "WhitespaceSplit"}}, BERT),
    ({"model.max_input_chars_per_word": 3}, BERT),
    ({"model.unk_token": "[MASK]"}, BERT),
    ({"post_processor": None}, BERT),
    ({}, BERT | {"cls_token": "[SEP]"}),
    ({}, BERT | {"unk_token": "[MASK]"}),
    ({}, {"do_lower_case": False}),
    ({}, {"fast_tokenizer_files": ["tokenizer.4.0.0.json"]}),
    ({}, {"model_max_length": "30"}),
    ({}, {"an_unknown_setting": 1}),
]


@pytest.mark.parametrize(("serialized", "config"), OTHER_TOKENIZERS)
def test_tokenizers_that_transformers_changes_are_left_to_it(serialized, config, folder):
    assert TokenizerFile.load(folder) is not None
    change_json(folder / "tokenizer_config.json", BERT)
    assert TokenizerFile.load(folder) is not None
    change_json(folder / "tokenizer.json", serialized)
    change_json(folder / "tokenizer_config.json", {"tokenizer_class": "TokenizersBackend"} | config)
    assert TokenizerFile.load(folder) is None


def test_tokens_added_later_are_left_to_transformers(folder):
    (folder / "added_tokens.json").write_text('{"[MASK]": 6}')
    assert TokenizerFile.load(folder) is not None
    (folder / "added_tokens.json").write_text('{"[MASK]": 6, "[NEW]": 184}')
    assert TokenizerFile.load(folder) is None


def test_tokens_without_a_vector_are_refused(folder):
    change_json(folder / "tokenizer.json", {"model.vocab.zebra": 184})
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu"))
    encoder.encode_documents(["a river"])
    for encode in (encoder.encode_documents, encoder.encode_queries, encoder.batch_documents, encoder.batch_queries):
        with pytest.raises(ConfigError, match="has the token 'zebra' with id 184, but its model has 184 token vectors"):
            encode(["a river", "a zebra"])
    with pytest.raises(ConfigError, match="query_marker 'zebra' has id 184 in the tokenizer, but the model of .* has 184 token vectors"):
        Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu", query_marker="zebra"))
    with pytest.raises(ConfigError, match="no token 'yak'"):
        Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu", query_marker="yak"))


@pytest.mark.parametrize("name", ["query_length", "document_length"])
def test_lengths_without_room_for_a_text_are_refused(name, tmp_path):
    checkpoint = put_together("pylate", "expansion", tmp_path / "c")
    with pytest.raises(ConfigError, match=f"{name} 3 leaves no room for a text beside 3 special tokens and markers; set 4 or more"):
        Encoder.load(EncoderConfig(checkpoint=checkpoint, device="cpu", **{name: 3}))
    Encoder.load(EncoderConfig(checkpoint=checkpoint, device="cpu", **{name: 4}))


def test_a_text_without_tokens_has_no_vectors(folder):
    change_json(folder / "tokenizer.json", {"post_processor": None})
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder), device="cpu"))
    found = encoder.encode_documents(["", "river", ""])
    assert found.offsets.tolist() == [0, 0, 1, 1]
    assert np.array_equal(found.values, encoder.encode_documents(["river"]).values)
    assert encoder.encode_documents([""]).num_tokens == 0
