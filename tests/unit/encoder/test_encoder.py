"""Properties of the encoder with any checkpoint, tested on the packaged MiniLM and a small PyLate checkpoint."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.encoder.encoder import Encoder, choose_device, choose_dtype
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.scorers.batches import group_by_length
from tests.fixtures.tiny import DOCUMENTS, QUERIES
from tests.support.checkpoints import put_together

STRANGE = ["", " \n\t", "\x00", "\ud800 lone surrogate", "\u202eright to left", "e\u0301 \u0130", "👩‍👩‍👧 emoji", "𝒳" * 40, "x" * 5000]


@pytest.fixture(scope="module")
def minilm() -> Encoder:
    return Encoder.load(EncoderConfig(precision="float32"))


def words_of(encoder: Encoder, ids: np.ndarray) -> list[str]:
    vocabulary = {number: word for word, number in encoder.tokenizer.tokenizer.get_vocab().items()}
    return [vocabulary[number] for number in ids.tolist()]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return put_together("pylate", "expansion", tmp_path_factory.mktemp("pylate"))


@pytest.fixture(scope="module")
def small(checkpoint: str) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=checkpoint, precision="float32"))


def test_the_default_is_a_plain_sentence_encoder_cut_at_its_own_length(minilm: Encoder) -> None:
    contract = minilm.contract
    assert (contract.dim, contract.document_length, contract.query_length) == (384, 256, 256)
    assert (contract.query_marker, contract.query_expansion, contract.skip_tokens, contract.lower_case) == (None, False, (), False)
    embeddings = minilm.encode_documents(["word " * 1000, "word"])
    assert embeddings.lengths.tolist() == [256, 3]
    np.testing.assert_allclose(np.linalg.norm(embeddings.values.astype(np.float32), axis=1), 1, atol=2e-3)


def test_token_ids_lie_beside_their_vectors(small: Encoder) -> None:
    embeddings = small.encode_documents(["the river , the bridge"])
    assert words_of(small, embeddings.token_ids) == ["[CLS]", "[D] ", "the", "river", "the", "bridge", "[SEP]"]
    assert len(embeddings.values) == 7


def test_truncation_keeps_the_last_special_token(small: Encoder) -> None:
    long = " ".join(["river"] * 100)
    for ids, length, marker in ((small.tokenizer.documents([long])[0], 40, "[D] "), (small.tokenizer.queries([long])[0], 16, "[Q] ")):
        words = words_of(small, ids)
        assert len(words) == length
        assert (words[:2], words[-1]) == (["[CLS]", marker], "[SEP]")


def test_a_texts_vectors_do_not_depend_on_other_texts_of_the_batch(small: Encoder) -> None:
    together, queries = small.encode_documents(DOCUMENTS), small.encode_queries(QUERIES)
    backwards = small.encode_documents(DOCUMENTS[::-1])
    for number, text in enumerate(DOCUMENTS):
        alone = small.encode_documents([text])[0].astype(float)
        np.testing.assert_allclose(together[number].astype(float), alone, rtol=0, atol=1e-3)
        np.testing.assert_allclose(backwards[len(DOCUMENTS) - 1 - number].astype(float), alone, rtol=0, atol=1e-3)
    for number, text in enumerate(QUERIES):
        np.testing.assert_allclose(queries[number].astype(float), small.encode_queries([text])[0].astype(float), rtol=0, atol=1e-3)


def test_equal_calls_give_equal_bits(minilm: Encoder) -> None:
    first, second = minilm.encode_documents(DOCUMENTS), minilm.encode_documents(DOCUMENTS)
    assert np.array_equal(first.values, second.values) and np.array_equal(first.offsets, second.offsets)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit_and_is_restored(checkpoint: str, precision: str) -> None:
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision=precision, batch_tokens=64))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(encoder.encode_documents(DOCUMENTS * 4))
            assert torch.get_num_threads() == threads
        with pytest.raises(ConfigError):
            encoder.encode_documents([*DOCUMENTS, 7])
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert all(np.array_equal(each.values, found[0].values) for each in found)


def test_splitting_into_small_batches_changes_only_rounding(small: Encoder) -> None:
    whole = small.encode_documents(DOCUMENTS)
    pieces = Encoder(small.contract, small.tokenizer, small.model, batch_tokens=1).encode_documents(DOCUMENTS)
    assert whole.lengths.tolist() == pieces.lengths.tolist()
    np.testing.assert_allclose(whole.values.astype(float), pieces.values.astype(float), rtol=0, atol=1e-3)


def test_batches_hold_every_text_once_within_the_limit_of_padded_tokens() -> None:
    lengths = np.random.default_rng(0).integers(1, 300, 500)
    batches = list(group_by_length(lengths, 1000))
    assert sorted(np.concatenate(batches).tolist()) == list(range(500))
    assert all(len(batch) * lengths[batch].max() <= 1000 for batch in batches)
    assert [batch.tolist() for batch in group_by_length([5, 900, 5], 100)] == [[1], [0, 2]]
    assert list(group_by_length([], 100)) == []


def test_unusual_texts_are_encoded_and_an_empty_text_keeps_its_special_tokens(small: Encoder, minilm: Encoder) -> None:
    for encoder, empty in ((small, 3), (minilm, 2)):
        embeddings = encoder.encode_documents(STRANGE)
        assert np.isfinite(embeddings.values).all() and embeddings.lengths.min() >= 2
        assert embeddings.lengths[:2].tolist() == [empty, empty]
        assert len(encoder.encode_queries(STRANGE)) == len(STRANGE)


def test_no_texts_give_no_embeddings(small: Encoder) -> None:
    for embeddings in (small.encode_documents([]), small.encode_queries([], [])):
        assert (len(embeddings), embeddings.values.shape) == (0, (0, 16))


@pytest.mark.parametrize("texts", [["fine", None], ["fine", 3], ["fine", b"bytes"], ["fine", float("nan")]])
def test_an_item_that_is_not_a_string_is_named_by_its_position(small: Encoder, texts: list) -> None:
    for encode in (small.encode_documents, small.encode_queries, small.batch_documents):
        with pytest.raises(ConfigError, match="text 1 is"):
            encode(texts)


def test_one_string_instead_of_a_list_and_a_wrong_number_of_ids_are_refused(small: Encoder) -> None:
    with pytest.raises(ConfigError, match="put it in a list"):
        small.encode_queries("river")
    with pytest.raises(ConfigError, match="2 texts need 2 ids, not 1"):
        small.encode_documents(["a", "b"], ["1"])


def test_configured_conventions_win_over_the_checkpoint(checkpoint: str, small: Encoder) -> None:
    changed = Encoder.load(
        EncoderConfig(
            checkpoint=checkpoint, query_length=8, document_length=10, query_expansion=False, skip_punctuation=False, precision="float32"
        )
    )
    assert changed.encode_queries(["river", " ".join(["river"] * 20)]).lengths.tolist() == [4, 8]
    assert changed.encode_documents(["a , b", " ".join(["river"] * 20)]).lengths.tolist() == [6, 10]
    assert small.encode_queries(["river"]).lengths.tolist() == [16]
    assert changed.contract.fingerprint != small.contract.fingerprint
    assert changed.contract.weights_digest == small.contract.weights_digest


def test_query_expansion_can_be_enabled_for_a_plain_encoder(minilm: Encoder) -> None:
    expanded = Encoder.load(EncoderConfig(query_expansion=True, query_length=12, skip_punctuation=True, precision="float32"))
    assert expanded.contract.expansion_token == "[MASK]"
    assert expanded.encode_queries(["river", "a b"]).lengths.tolist() == [12, 12]
    assert expanded.encode_documents(["river!"]).lengths.tolist() == [3]
    plain = minilm.encode_queries(["river"])[0].astype(float)
    np.testing.assert_allclose(expanded.encode_queries(["river"])[0][:3].astype(float), plain, rtol=0, atol=1e-3)


def test_query_expansion_uses_the_end_token_if_there_is_no_mask_token(tmp_path: Path) -> None:
    folder = put_together("xtr", "checkpoint", tmp_path)
    encoder = Encoder.load(EncoderConfig(checkpoint=folder, query_expansion=True, query_length=9))
    assert encoder.contract.expansion_token == "</s>"
    assert encoder.encode_queries(["river"]).lengths.tolist() == [9]


def test_expansion_tokens_are_attended_only_if_the_contract_says_so(checkpoint: str) -> None:
    def first_token(attend: bool) -> np.ndarray:
        config = EncoderConfig(checkpoint=checkpoint, attend_to_expansion=attend, precision="float32")
        return Encoder.load(config).encode_queries(["river"])[0][0].astype(float)

    def without_expansion() -> np.ndarray:
        config = EncoderConfig(checkpoint=checkpoint, query_expansion=False, precision="float32")
        return Encoder.load(config).encode_queries(["river"])[0][0].astype(float)

    np.testing.assert_allclose(first_token(False), without_expansion(), rtol=0, atol=1e-3)
    assert np.abs(first_token(True) - without_expansion()).max() > 0.01


def test_lengths_beyond_the_positions_of_the_model_are_refused(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="document_length 65 exceeds the 64 positions"):
        Encoder.load(EncoderConfig(checkpoint=checkpoint, document_length=65))


def test_documents_can_be_tokenised_elsewhere_without_weights(small: Encoder, checkpoint: str) -> None:
    copy: TextTokenizer = pickle.loads(pickle.dumps(small.tokenizer))
    reopened = TextTokenizer.load(checkpoint, small.contract)
    expected = small.encode_documents(DOCUMENTS, [f"d{i}" for i in range(len(DOCUMENTS))])
    for tokenizer in (copy, reopened):
        embeddings = small.encode_document_tokens(tokenizer.documents(DOCUMENTS), expected.doc_ids)
        assert np.array_equal(embeddings.values, expected.values) and list(embeddings.doc_ids) == list(expected.doc_ids)
        assert [ids.tolist() for ids in tokenizer.queries(QUERIES)] == [ids.tolist() for ids in small.tokenizer.queries(QUERIES)]


def test_queries_and_documents_can_be_tokenised_in_threads(small: Encoder) -> None:
    texts = [" ".join(["river"] * n) for n in range(60)]
    expected = [small.tokenizer.documents(texts), small.tokenizer.queries(texts)]
    with ThreadPoolExecutor(4) as pool:
        for number, ids in enumerate(pool.map(lambda n: (small.tokenizer.documents, small.tokenizer.queries)[n % 2](texts), range(40))):
            assert all(np.array_equal(got, want) for got, want in zip(ids, expected[number % 2], strict=True))


def test_embed_is_the_differentiable_form_of_encode(small: Encoder) -> None:
    batch = small.batch_documents(DOCUMENTS)
    vectors = small.embed_documents(batch).vectors
    assert vectors.shape[:2] == batch.input_ids.shape and vectors.dtype == torch.float32
    assert not vectors[~batch.keep_mask].any()
    torch.testing.assert_close(vectors[batch.keep_mask].norm(dim=-1), torch.ones(int(batch.keep_mask.sum())))
    np.testing.assert_allclose(
        vectors[batch.keep_mask].detach().half().numpy(), small.encode_documents(DOCUMENTS).values, rtol=0, atol=1e-3
    )
    queries = small.batch_queries(QUERIES)
    assert queries.keep_mask.all() and queries.attention_mask.sum() < queries.keep_mask.sum()
    small.embed_queries(queries).vectors.sum().backward()
    gradients = {name: parameter.grad for name, parameter in small.model.named_parameters() if parameter.requires_grad}
    assert gradients and all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients.values())
    small.model.zero_grad(set_to_none=True)


def test_an_encoder_can_be_loaded_from_its_contract(checkpoint: str, small: Encoder) -> None:
    made = Encoder.load(EncoderConfig(checkpoint=checkpoint, document_length=12, skip_punctuation=False))
    again = Encoder.for_contract(made.contract)
    assert again.contract == made.contract
    assert np.array_equal(again.encode_documents(DOCUMENTS).values, made.encode_documents(DOCUMENTS).values)
    with pytest.raises(IncompatibleError, match="other weights"):
        Encoder.for_contract(made.contract, EncoderConfig())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("/no/such/folder", "no checkpoint folder /no/such/folder; check the path"),
        ("./checkpoints/mine", "no checkpoint folder"),
        ("a/b/c", "no checkpoint folder"),
    ],
)
def test_a_missing_checkpoint_is_named_with_the_fix(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Encoder.load(name)


def test_a_hub_name_without_a_network_is_refused_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="no encoder nobody/nothing: no such folder, and the Hugging Face hub") as error:
        Encoder.load("nobody/nothing")
    assert "\n" not in str(error.value) and "all-MiniLM-L6-v2" in str(error.value)


def test_folders_and_files_without_a_checkpoint_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no known checkpoint"):
        Encoder.load(str(tmp_path))
    (tmp_path / "trained" / "checkpoint").mkdir(parents=True)
    with pytest.raises(ConfigError, match=f"give {tmp_path}/trained/checkpoint$"):
        Encoder.load(str(tmp_path / "trained"))
    (tmp_path / "epoch=1.ckpt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="Lightning checkpoint"):
        Encoder.load(str(tmp_path / "epoch=1.ckpt"))
    (tmp_path / "model.txt").write_bytes(b"x")
    with pytest.raises(ConfigError, match="is a file; give the checkpoint"):
        Encoder.load(str(tmp_path / "model.txt"))


def test_devices_and_precisions_are_checked_and_chosen() -> None:
    with pytest.raises(ConfigError, match="is not a device"):
        choose_device("gpu please")
    with pytest.raises(ConfigError, match="this machine has no device cuda:99"):
        choose_device("cuda:99")
    assert choose_dtype("auto", torch.device("cuda")) is torch.float16
    assert choose_dtype("auto", torch.device("cpu")) in (torch.float32, torch.bfloat16)
    assert choose_dtype("bfloat16", torch.device("cpu")) is torch.bfloat16


def test_bfloat16_stays_near_float32(checkpoint: str, small: Encoder) -> None:
    rounded = Encoder.load(EncoderConfig(checkpoint=checkpoint, precision="bfloat16"))
    exact, near = small.encode_documents(DOCUMENTS), rounded.encode_documents(DOCUMENTS)
    assert rounded.contract.fingerprint == small.contract.fingerprint
    cosines = (exact.values.astype(np.float32) * near.values.astype(np.float32)).sum(1)
    assert cosines.min() > 0.995


def test_encoders_load_in_several_threads_at_once(tmp_path: Path) -> None:
    folders = [
        put_together("sentence_transformers", "fixed", tmp_path / "bert"),
        put_together("xtr", "checkpoint", tmp_path / "t5"),
    ]
    with ThreadPoolExecutor(4) as pool:
        encoders = list(pool.map(Encoder.load, folders * 6))
    for folder, encoder in zip(folders * 6, encoders, strict=True):
        assert encoder.contract.weights_digest == Encoder.load(folder).contract.weights_digest
