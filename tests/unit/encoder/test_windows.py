"""Documents in windows: nothing of a text is lost, and every vector's characters are known."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_lir.base.config import EncoderConfig, IndexConfig, WindowsConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.embeddings.parquet import read_blocks, read_doc_ids, read_lengths, read_texts, read_whole_documents
from ray_lir.encoder import chunk_encoder, windows
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.windows import TokenStarts, cut, halves
from ray_lir.index.shard import open_shard
from ray_lir.index.versions import read_version
from tests.fixtures.tiny import WORDS, bert
from tests.support.checkpoints import put_together
from tests.support.corpora import write_rows

LENGTH, STRIDE = 32, 24
CAPACITY = LENGTH - 2
TITLE = "The tower of the church"


def sentences(count: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return " ".join(" ".join(rng.choice(WORDS, rng.integers(3, 12))).capitalize() + "." for _ in range(count))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("windows") / "checkpoint"
    bert(folder)
    return str(folder)


@pytest.fixture(scope="module")
def encoder(checkpoint: str) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=checkpoint, windows=WindowsConfig(length=LENGTH, stride=STRIDE)))


@pytest.fixture(scope="module")
def titled(checkpoint: str) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=checkpoint, windows=WindowsConfig(length=LENGTH, stride=STRIDE, repeat_title=True)))


def words_of(text: str) -> TokenStarts:
    starts = np.array([place for place, letter in enumerate(text) if letter != " " and (not place or text[place - 1] == " ")], np.int64)
    return TokenStarts(starts, np.arange(len(starts)))


@given(
    words=st.lists(st.sampled_from(["a", "word", "end.", "stop!", "x" * 30]), max_size=80),
    size=st.integers(1, 20),
    overlap=st.integers(0, 19),
    max_characters=st.integers(1, 200),
)
def test_windows_cover_the_text_and_stay_within_their_size(words: list[str], size: int, overlap: int, max_characters: int):
    text, overlap = " ".join(words), min(overlap, size - 1)
    spans = cut(text, words_of(text), size, overlap, max_characters)
    assert spans[0, 0] == 0 and spans[-1, 1] == len(text)
    assert (spans[1:, 0] <= spans[:-1, 1]).all() and (np.diff(spans[:, 0]) > 0).all() and (np.diff(spans[:, 1]) > 0).all()
    for number, (first, end) in enumerate(spans):
        assert len(text[first:end].split()) <= size
        if number:
            repeated = text[first : spans[number - 1, 1]].split()
            assert len(repeated) <= overlap


def test_a_window_ends_with_a_sentence_if_one_ends_in_its_second_half():
    text = "one two three four five six. seven eight nine ten eleven twelve"
    assert [text[first:end] for first, end in cut(text, words_of(text), 8, 0, 1000)] == [
        "one two three four five six. ",
        "seven eight nine ten eleven twelve",
    ]
    assert text[slice(*cut(text, words_of(text), 8, 3, 1000)[1])].startswith("four five six. seven")


def test_halves_of_a_window_cover_it():
    assert halves("ab cd ef", 0, 8) == [(0, 2), (2, 8)] and halves("abcd", 0, 4) == [(0, 2), (2, 4)] and halves("a", 0, 1) == [(0, 1)]


@pytest.mark.parametrize(
    "text", ["", " ", "river", sentences(40), "Straße, 東京。次の文。" * 30, "a" * 70_000, "é " * 500, "\x00" * 200 + "river"]
)
@pytest.mark.parametrize("lower_case", [False, True])
def test_no_token_of_a_document_is_dropped(encoder: Encoder, text: str, lower_case: bool):
    contract = encoder.contract.model_copy(update={"lower_case": lower_case})
    tokenizer = type(encoder.tokenizer)(contract, encoder.tokenizer.tokenizer)
    tokens = tokenizer.tokenize_documents([text, "river"])
    assert tokens.windows is not None and len(tokens.ids) == sum(map(len, tokens.windows)) and len(tokens.windows[1]) == 1
    assert max(map(len, tokens.ids)) <= LENGTH and not any(each.is_cut for each in tokens.truncations)
    spans = tokens.windows[0]
    assert spans[0, 0] == 0 and spans[-1, 1] == len(text) and (spans[1:, 0] <= spans[:-1, 1]).all()


def test_the_vectors_of_a_document_are_those_of_its_windows(encoder: Encoder):
    texts = [sentences(30), "river", ""]
    whole = encoder.encode_documents(texts, ["a", "b", "c"])
    tokens = encoder.tokenizer.tokenize_documents(texts)
    assert tokens.windows is not None
    parts = [text[first:end] for text, spans in zip(texts, tokens.windows, strict=True) for first, end in spans]
    one_by_one = [encoder.encode_documents([part])[0] for part in parts]
    assert np.array_equal(whole.values, np.concatenate(one_by_one)) and whole.doc_ids == ["a", "b", "c"]
    assert whole.lengths.tolist() == [len(each) for each in encoder.tokenizer.documents(texts)]
    with pytest.raises(ConfigError, match="3 texts need 3 ids, not 1"):
        encoder.encode_documents(texts, ["a"])


@pytest.mark.parametrize("name", ["encoder", "titled"])
def test_every_token_knows_its_characters_in_the_whole_text(name: str, request: pytest.FixtureRequest):
    tokenizer = request.getfixturevalue(name).tokenizer
    text = f"{TITLE} {sentences(40)}"
    found = tokenizer.document_spans(text, len(TITLE))
    assert len(found.pieces) == sum(map(len, tokenizer.tokenize_documents([text], [len(TITLE)]).ids))
    located = [
        (piece.replace("##", ""), text[first:end].lower())
        for piece, (first, end) in zip(found.pieces, found.spans, strict=True)
        if first >= 0
    ]
    assert all(piece == word for piece, word in located)
    assert set(range(len(text))) - {place for first, end in found.spans for place in range(first, end)} <= {
        place for place, letter in enumerate(text) if letter == " "
    }


def test_a_title_is_repeated_in_every_window(encoder: Encoder, titled: Encoder):
    text = f"{TITLE} {sentences(30)}"
    title = titled.tokenizer.tokenizer.encode(TITLE, add_special_tokens=False)
    tokens = titled.tokenizer.tokenize_documents([text], [len(TITLE)])
    assert len(tokens.ids) > 3 and all(ids[1 : 1 + len(title)].tolist() == title for ids in tokens.ids)
    plain = encoder.tokenizer.tokenize_documents([text], [len(TITLE)])
    assert sum(ids[1 : 1 + len(title)].tolist() == title for ids in plain.ids) == 1
    long = f"{'tower ' * 100}x {sentences(5)}"
    assert max(map(len, titled.tokenizer.tokenize_documents([long], [600]).ids)) <= LENGTH


def test_settings_that_would_lose_text_are_refused(checkpoint: str):
    def load(**settings: object) -> Encoder:
        return Encoder.load(EncoderConfig.model_validate({"checkpoint": checkpoint, **settings}))

    with pytest.raises(ConfigError, match="stride 40 exceeds windows.length 32"):
        load(windows=[32, 40])
    with pytest.raises(ConfigError, match="windows.length 32 differs from document_length 64"):
        load(windows=32, document_length=64)
    assert load(windows=True).contract.windows.stride == load().contract.document_length * 7 // 8
    assert load(windows=32).contract.document_length == 32 and load(windows=32).contract.windows.stride == 28
    assert load(windows=None).contract.fingerprint == load().contract.fingerprint != load(windows=32).contract.fingerprint


def test_a_document_beyond_the_limit_is_refused_with_the_reason(
    checkpoint: str, encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(windows, "MAX_CHARACTERS", 1000)
    with pytest.raises(ConfigError, match="has 1,001 characters, and a document in windows may have 1,000 at most"):
        encoder.encode_documents(["a" * 1001])
    write_rows(tmp_path / "corpus.jsonl", [{"_id": "long", "text": "a" * 1001}, {"_id": "short", "text": "river"}])
    config = EncoderConfig(checkpoint=checkpoint, windows=LENGTH)
    manifest = encode_corpus(str(tmp_path / "corpus.jsonl"), str(tmp_path / "out"), config).manifest
    assert (manifest.num_docs, manifest.num_dead) == (1, 1)
    [letter] = (tmp_path / "out" / "dead_letters").iterdir()
    assert "split it into several documents" in json.loads(letter.read_text())["reason"]


def test_a_document_of_many_blocks_is_one_document(checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows = [{"_id": f"d{n}", "title": f"Title {n}", "text": sentences(size, n)} for n, size in enumerate([4, 90, 1, 200, 3])]
    write_rows(tmp_path / "corpus.jsonl", rows)
    config = EncoderConfig(checkpoint=checkpoint, windows=WindowsConfig(length=LENGTH, stride=STRIDE))
    shards = {}
    for block_tokens in (1 << 16, 100):
        monkeypatch.setattr(chunk_encoder, "BLOCK_TOKENS", block_tokens)
        folder = str(tmp_path / f"embeddings-{block_tokens}")
        manifest = encode_corpus(str(tmp_path / "corpus.jsonl"), folder, config).manifest
        [part] = manifest.parts
        url = f"{folder}/{part.name}"
        blocks = list(read_blocks(url))
        assert (len(blocks) > 5) == (block_tokens == 100) == any(block.continues for block in blocks)
        assert read_doc_ids(url) == [row["_id"] for row in rows] and read_texts(url).column("text").to_pylist() == [
            row["text"] for row in rows
        ]
        assert read_lengths(url).sum() == manifest.num_tokens and len(read_lengths(url)) == manifest.num_docs == 5
        whole = list(read_whole_documents(url))
        assert [doc_id for block in whole for doc_id in block.embeddings.doc_ids] == [row["_id"] for row in rows]
        assert np.array_equal(np.concatenate([block.embeddings.lengths for block in whole]), read_lengths(url))
        assert manifest.num_windows == sum(len(block.windows) for block in blocks if block.windows is not None)
        index = build_index(folder, tmp_path / f"index-{block_tokens}", IndexConfig(num_shards=2))
        shards[block_tokens] = [open_shard(str(tmp_path / f"index-{block_tokens}"), entry, index) for entry in index.shards]
    assert read_version(str(tmp_path / "index-100")).num_docs == 5
    for one, other in zip(*shards.values(), strict=True):
        assert one.windows is not None and other.windows is not None
        assert np.array_equal(one.windows, other.windows) and np.array_equal(one.doc_offsets, other.doc_offsets)
        assert one.documents.equals(other.documents)
    owners = [shard.windows[np.searchsorted(shard.windows[:, 0], shard.doc_offsets[:-1])] for shard in shards[100]]
    assert all((windows[:, 1] == 0).all() for windows in owners)  # every document begins with a window at its first character


def test_training_refuses_windows(checkpoint: str):
    from ray_lir.training.trainer import load_encoder

    with pytest.raises(ConfigError, match="leave it out"):
        load_encoder(EncoderConfig(checkpoint=checkpoint, windows=LENGTH), 0, "cpu")


def test_pooled_windows_keep_their_places(tmp_path: Path, checkpoint: str):
    write_rows(tmp_path / "corpus.jsonl", [{"_id": "d", "text": sentences(40)}])
    config = EncoderConfig(checkpoint=checkpoint, windows=WindowsConfig(length=LENGTH, stride=STRIDE), pooling_factor=3)
    manifest = encode_corpus(str(tmp_path / "corpus.jsonl"), str(tmp_path / "out"), config).manifest
    [block] = read_blocks(str(tmp_path / "out" / manifest.parts[0].name))
    assert block.windows is not None and block.windows[:, 0].sum() == manifest.num_tokens and len(block.windows) > 5


def test_marked_checkpoints_have_windows_too(tmp_path: Path):
    checkpoint = put_together("stanford", "default", tmp_path / "checkpoint")
    encoder = Encoder.load(EncoderConfig(checkpoint=checkpoint, windows=WindowsConfig(length=LENGTH)))
    tokens = encoder.tokenizer.tokenize_documents([sentences(30)])
    assert len({tuple(ids[:2]) for ids in tokens.ids}) == 1 and not tokens.truncations[0].is_cut
