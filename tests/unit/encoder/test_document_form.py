"""Documents as sentences that are separated by [SEP], and markers from the vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from jobs import cli
from jobs.encode import EncodeJob, run
from ray_lir.base.config import EncoderConfig, WindowsConfig
from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.encoder.encoder import Encoder
from tests.fixtures.tiny import bert

TITLE, SENTENCES = "The river", ["Water is for trade.", "Star, a ship is!", "Is the road closed?", "what tax"]
TEXT = f"{TITLE} {' '.join(SENTENCES)}"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("form") / "tiny"
    bert(folder)
    return str(folder)


def loaded(checkpoint: str, **changes: object) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=checkpoint, precision="float32", **changes))


def whole_tokenizer(encoder: Encoder) -> Tokenizer:
    return Tokenizer.from_str(encoder.tokenizer.tokenizer.backend_tokenizer.to_str())


def parts(encoder: Encoder, texts: list[str]) -> list[int]:
    """[CLS], then the tokens of each text with [SEP] after it."""
    own = [whole_tokenizer(encoder).encode(text).ids for text in texts]
    return [own[0][0], *(token for ids in own for token in ids[1:])]


def test_each_sentence_and_the_title_end_with_a_separator(checkpoint):
    encoder = loaded(checkpoint, document_form="sentences")
    tokens = encoder.tokenizer.tokenize_documents([TEXT, SENTENCES[3], ""], [len(TITLE), 0, 0])
    assert tokens.ids[0].tolist() == parts(encoder, [TITLE, *SENTENCES])
    assert tokens.ids[1].tolist() == parts(encoder, [SENTENCES[3]])
    assert tokens.ids[2].tolist() == whole_tokenizer(encoder).encode("").ids
    assert [each.total for each in tokens.truncations] == [len(ids) for ids in tokens.ids]
    untitled = encoder.tokenizer.documents([TEXT])[0]
    assert untitled.tolist() == parts(encoder, [f"{TITLE} {SENTENCES[0]}", *SENTENCES[1:]])
    plain = loaded(checkpoint)
    assert plain.tokenizer.documents([TEXT])[0].tolist() == whole_tokenizer(plain).encode(TEXT).ids
    assert plain.contract.fingerprint != encoder.contract.fingerprint
    assert encoder.tokenizer.queries([TEXT])[0].tolist() == plain.tokenizer.queries([TEXT])[0].tolist()


@pytest.mark.parametrize("length", [5, 9, 14])
def test_truncation_keeps_the_last_separator(checkpoint, length):
    encoder = loaded(checkpoint, document_form="sentences", document_length=length, document_marker="[unused1]")
    tokens = encoder.tokenizer.tokenize_documents([TEXT], [len(TITLE)])
    whole = parts(encoder, [TITLE, *SENTENCES])
    marker = whole_tokenizer(encoder).token_to_id("[unused1]")
    assert tokens.ids[0].tolist() == [whole[0], marker, *whole[1 : length - 2], whole[-1]]
    assert (tokens.truncations[0].kept, tokens.truncations[0].is_cut) == (length, True)


def test_positions_belong_to_the_vectors(checkpoint):
    encoder = loaded(checkpoint, document_form="sentences", skip_punctuation=True)
    spans = encoder.tokenizer.document_spans(TEXT, len(TITLE))
    ids = encoder.tokenizer.documents([TEXT], [len(TITLE)])[0]
    kept = ids[~np.isin(ids, encoder.contract.skip_tokens)]
    assert spans.pieces == encoder.tokenizer.tokenizer.convert_ids_to_tokens(kept.tolist())
    for piece, (first, end) in zip(spans.pieces, spans.spans.tolist(), strict=True):
        assert (first < 0) == (piece in ("[CLS]", "[SEP]"))
        assert first < 0 or TEXT[first:end].lower() == piece.removeprefix("##")


def test_form_and_markers_are_saved_with_a_checkpoint(checkpoint, tmp_path):
    changes = {"document_form": "sentences", "query_marker": "[unused0]", "document_marker": "[unused1]"}
    encoder = loaded(checkpoint, **changes)
    encoder.save(tmp_path / "saved")
    again = loaded(str(tmp_path / "saved"))
    for name, value in changes.items():
        assert getattr(again.contract, name) == value
    assert again.tokenizer.documents([TEXT])[0].tolist() == encoder.tokenizer.documents([TEXT])[0].tolist()
    assert loaded(str(tmp_path / "saved"), query_marker="").contract.query_marker is None


def test_a_corpus_is_encoded_with_its_titles(checkpoint, tmp_path):
    (tmp_path / "corpus.jsonl").write_text(json.dumps({"_id": "d", "title": TITLE, "text": " ".join(SENTENCES)}) + "\n")
    flags = ["--encoder.checkpoint", checkpoint, "--encoder.document_form", "sentences", "--encoder.skip_punctuation", "no"]
    run(cli.parse(EncodeJob, ["--corpus", str(tmp_path / "corpus.jsonl"), "--output", str(tmp_path / "out"), "--where", "here", *flags]))
    [part] = Path(tmp_path / "out").rglob("*.parquet")
    [block] = read_blocks(str(part))
    assert block.embeddings.token_ids.tolist() == parts(loaded(checkpoint), [TITLE, *SENTENCES])


def test_what_cannot_be_separated_is_refused(checkpoint):
    with pytest.raises(ConfigError, match="cannot be used with windows"):
        loaded(checkpoint, document_form="sentences", windows=WindowsConfig(length=16))
    with pytest.raises(ConfigError, match="the tokenizer has no token"):
        loaded(checkpoint, document_marker="[nowhere]")
