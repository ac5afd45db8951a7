"""Every checkpoint layout gives the embeddings of its own library (tests/fixtures/README.md)."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from tests.fixtures.tiny import DOCUMENTS, QUERIES
from tests.support.checkpoints import FIXTURES, all_variants, plain, put_together

FP16_TOLERANCE = 1e-3  # both sides are rounded to float16


def load(checkpoint: str | Path, **changes: object) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=str(checkpoint), precision="float32", **changes))


def assert_equal_to(expected: np.lib.npyio.NpzFile, name: str, got: TokenEmbeddings) -> None:
    assert got.lengths.tolist() == expected[f"{name}_lengths"].tolist()
    np.testing.assert_allclose(got.values.astype(np.float32), expected[name].astype(np.float32), rtol=0, atol=FP16_TOLERANCE)


@pytest.mark.parametrize(("library", "variant"), all_variants())
def test_embeddings_equal_those_of_the_library_that_saved_the_checkpoint(library: str, variant: str, tmp_path: Path) -> None:
    encoder = load(put_together(library, variant, tmp_path))
    expected = np.load(FIXTURES / library / f"{variant}.npz")
    assert_equal_to(expected, "queries", encoder.encode_queries(QUERIES))
    assert_equal_to(expected, "documents", encoder.encode_documents(DOCUMENTS))


def test_conventions_of_each_library_are_read_into_the_contract(tmp_path: Path) -> None:
    pylate = load(put_together("pylate", "expansion", tmp_path / "pylate")).contract
    assert (pylate.query_marker, pylate.document_marker, pylate.query_expansion, pylate.expansion_token) == ("[Q] ", "[D] ", True, "[MASK]")
    assert (pylate.dim, pylate.query_length, pylate.document_length, len(pylate.skip_tokens)) == (16, 16, 40, 32)
    native = load(put_together("sentence_transformers", "min_attended", tmp_path / "native")).contract
    assert (native.query_prompt, native.document_prompt, native.expansion_token) == ("query: ", "document: ", "[unused1]")
    assert (native.query_length, native.expansion_length, native.attend_to_expansion) == (24, 12, True)
    assert native.skip_tokens == native.query_skip_tokens and len(native.skip_tokens) == 2
    stanford = load(put_together("stanford", "attended", tmp_path / "stanford")).contract
    assert (stanford.query_marker, stanford.document_marker, stanford.attend_to_expansion) == ("[unused0]", "[unused1]", True)
    xtr = load(put_together("xtr", "checkpoint", tmp_path / "xtr")).contract
    assert (xtr.query_marker, xtr.lower_case, xtr.query_expansion, xtr.skip_tokens, xtr.dim) == (None, True, False, (), 16)


def test_a_legacy_dnn_file_loads_like_its_folder(tmp_path: Path) -> None:
    folder = put_together("stanford", "default", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    torch.save({"model_state_dict": state, "arguments": {"model": "bert-base-uncased"}}, tmp_path / "colbert.dnn")
    whole = load(folder)
    (tmp_path / "model.safetensors").unlink()
    legacy = load(tmp_path / "colbert.dnn")
    assert legacy.contract.fingerprint == whole.contract.fingerprint
    assert np.array_equal(legacy.encode_documents(DOCUMENTS).values, whole.encode_documents(DOCUMENTS).values)


def test_a_dnn_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    put_together("stanford", "default", tmp_path)
    torch.save({"model_state_dict": {}, "arguments": Encoder}, tmp_path / "colbert.dnn")
    with pytest.raises(ConfigError, match="plain tensors"):
        load(tmp_path / "colbert.dnn")


def test_xtr_folders_without_modules_json_load_the_same(tmp_path: Path) -> None:
    folder = put_together("xtr", "checkpoint", tmp_path)
    listed = load(folder)
    (tmp_path / "modules.json").unlink()
    assert load(folder).contract.fingerprint == listed.contract.fingerprint


def test_a_plain_model_folder_gives_normalised_last_hidden_states(tmp_path: Path) -> None:
    encoder = load(plain(tmp_path))
    assert (encoder.contract.dim, encoder.contract.query_length, encoder.contract.document_length) == (32, 64, 64)
    ids = torch.from_numpy(encoder.tokenizer.documents([DOCUMENTS[0]])[0].astype(np.int64))[None]
    hidden = encoder.model.backbone(input_ids=ids).last_hidden_state[0]
    expected = torch.nn.functional.normalize(hidden, dim=-1).half().detach().numpy()
    np.testing.assert_allclose(
        encoder.encode_documents([DOCUMENTS[0]]).values.astype(float), expected.astype(float), rtol=0, atol=FP16_TOLERANCE
    )


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("modules.json", '[{"idx": 0, "path": "", "type": "x.Transformer"}, {"idx": 1, "path": "1_LSTM", "type": "x.LSTM"}]', "x.LSTM"),
        ("modules.json", "{", "cannot be read as JSON"),
        ("1_Dense/config.json", '{"activation_function": "os.system"}', "only activations of torch.nn"),
        ("model.safetensors", "", "cannot load the checkpoint"),
        ("tokenizer.json", "{}", "cannot load the checkpoint"),
        ("config_sentence_transformers.json", '{"query_prefix": "[X] ", "document_length": 40}', "no token '.X. '"),
        (
            "config_sentence_transformers.json",
            '{"query_prefix": "[Q] ", "query_length": "x", "document_length": 40}',
            "has query_length 'x'",
        ),
        ("config_sentence_transformers.json", '{"query_length": 2, "document_length": 40}', "leaves no room for a text"),
        ("config_sentence_transformers.json", '{"query_prefix": 5}', "cannot load the checkpoint"),
        ("config_sentence_transformers.json", '{"prompts": "x"}', "cannot load the checkpoint"),
        ("tokenizer_config.json", '{"model_max_length": "30"}', "max_length '30', which is not a whole number"),
        ("1_Dense/config.json", '{"activation_function": "torch.nn.Linear"}', "which needs arguments"),
    ],
)
def test_a_broken_checkpoint_is_named_in_one_line(file: str, content: str, message: str, tmp_path: Path) -> None:
    folder = put_together("pylate", "expansion", tmp_path)
    (tmp_path / file).write_text(content)
    with pytest.raises(ConfigError, match=message) as error:
        load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("shape", "message"), [((8, 31), "reads 31 dimensions, but gets 32"), ((8,), "linear.weight that is a matrix")])
def test_a_projection_of_another_shape_is_refused(shape: tuple[int, ...], message: str, tmp_path: Path) -> None:
    folder = put_together("pylate", "expansion", tmp_path)
    save_file({"linear.weight": torch.ones(shape)}, tmp_path / "1_Dense" / "model.safetensors")
    with pytest.raises(ConfigError, match=message):
        load(folder)


def test_missing_weights_are_an_error_and_are_not_initialised(tmp_path: Path) -> None:
    folder = put_together("pylate", "expansion", tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    removed = next(name for name in state if "layer.1." in name)
    save_file({name: tensor for name, tensor in state.items() if name != removed}, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match="lacks 1 weights"):
        load(folder)
