"""Document weights from stored attention equal those of an encoding with the same settings, and need no encoder."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs import cli
from jobs.build_index import BuildIndexJob
from jobs.build_index import run as build
from jobs.encode import EncodeJob
from jobs.encode import run as encode
from ray_lir.base.config import AttentionConfig, EncoderConfig
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.building.update import update_index
from ray_lir.embeddings.attention import document_weights
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import bert

TEXTS = ["water flows", "energy of light and heat in a river of stone", "music, history; city. theory " * 8]
SMALL = ["--where", "here", "--clustering.num_centroids", "8"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus, a checkpoint for maxsim, one for attention that weights both sides at l = 150, and embeddings of the latter."""
    folder = tmp_path_factory.mktemp("attention")
    bert(folder / "maxsim")
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder / "maxsim"), precision="float32"))
    encoder.with_scorer("attention", AttentionConfig()).save(folder / "both")
    encoder.with_scorer("attention", AttentionConfig(sides="queries")).save(folder / "queries")
    rows = [{"_id": f"d{number}", "text": f"{text} {number}"} for number, text in enumerate(TEXTS * 4)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("maxsim", "both", "queries"):
        encoded(folder, name, name)
    return folder


def encoded(folder: Path, name: str, checkpoint: str, *flags: str) -> Path:
    output = folder / f"{name}_embeddings"
    places = ["--corpus", folder / "corpus.jsonl", "--output", output, "--encoder.checkpoint", folder / checkpoint]
    encode(cli.parse(EncodeJob, [*map(str, places), "--encoder.precision", "float32", "--where", "here", *flags]))
    return output


def built(embeddings: Path, output: Path, *flags: str) -> Searcher:
    build(cli.parse(BuildIndexJob, ["--embeddings", str(embeddings), "--output", str(output), *SMALL, *flags]))
    return Searcher.open(str(output))


def weights(searcher: Searcher) -> np.ndarray:
    return np.concatenate([shard.token_weights(slice(None)) for shard in searcher.shards])


def test_weights_follow_their_definition():
    attention = np.array([[0.25, 4], [0.5, 40]], np.float32)
    np.testing.assert_allclose(document_weights(attention, 16), np.exp([0.25 * 0.25, 0.5]), rtol=1e-6)
    np.testing.assert_allclose(document_weights(attention, 0), np.exp([0.25, 0.5]), rtol=1e-6)


def test_attention_is_stored_and_sums_to_one_over_a_text(place):
    [block, *_] = read_blocks(str(next((place / "both_embeddings").rglob("*.parquet"))))
    found = block.embeddings
    assert found.attention.shape == (found.num_tokens, 2)
    encoder = Encoder.load(EncoderConfig(checkpoint=str(place / "both"), precision="float32"))
    lengths = np.repeat([len(ids) for ids in encoder.tokenizer.documents(list(block.texts.column("text").to_pylist()))], found.lengths)
    np.testing.assert_array_equal(found.attention[:, 1], lengths)
    sums = np.add.reduceat(found.attention[:, 0], found.offsets[:-1])
    assert (sums <= 1.0001).all() and (sums > 0.2).all()  # skipped punctuation receives the rest
    np.testing.assert_allclose(document_weights(found.attention, 150), found.weights, rtol=1e-6)


@pytest.mark.parametrize(("length", "sides"), [("20", "both"), ("0", "documents"), ("400", "documents")])
def test_a_build_with_other_settings_equals_an_encoding_with_them(place, tmp_path, length, sides):
    flags = ["--attention.delta_length", length, "--attention.sides", sides]
    again = built(encoded(tmp_path.parent / place.name, f"{length}_{sides}", "both", *flags), tmp_path / "encoded")
    rebuilt = built(place / "both_embeddings", tmp_path / "rebuilt", *flags)
    plain = built(place / "both_embeddings", tmp_path / "plain")
    np.testing.assert_allclose(weights(rebuilt), weights(again), rtol=1e-3)
    assert np.abs(weights(rebuilt) - weights(plain)).max() > 1e-3
    assert rebuilt.manifest.contract.fingerprint == again.manifest.contract.fingerprint != plain.manifest.contract.fingerprint
    queries = Encoder.for_contract(rebuilt.manifest.contract).encode_queries(["water flows"])
    assert (queries.weights is not None) == (sides == "both")
    assert rebuilt.search(queries, 3)


def test_document_weights_can_be_left_out_and_added(place, tmp_path):
    without = built(place / "both_embeddings", tmp_path / "without", "--attention.sides", "queries")
    assert without.shards[0].weights is None and without.manifest.contract.weighs == ("queries",)
    added = built(place / "queries_embeddings", tmp_path / "added", "--attention.sides", "both", "--attention.delta_length", "150")
    np.testing.assert_allclose(weights(added), weights(built(place / "both_embeddings", tmp_path / "plain")), rtol=1e-3)
    with pytest.raises(ConfigError, match="set --attention.delta_length too"):
        built(place / "queries_embeddings", tmp_path / "unknown", "--attention.sides", "both")


def test_an_update_weights_new_documents_like_the_index(place, tmp_path):
    """The encoder has the settings of the index, also after it has loaded its weights again for training."""
    flags = ["--attention.delta_length", "20"]
    searcher = built(place / "both_embeddings", tmp_path / "index", *flags)
    encoder = Encoder.for_contract(searcher.manifest.contract)
    before = encoder.encode_documents(TEXTS).weights
    assert encoder.model.scorer.settings.delta_length == 20
    texts = [f"{text} new" for text in TEXTS]
    embeddings = encoder.encode_documents(texts, ["a", "b", "c"])
    np.testing.assert_allclose(encoder.encode_documents(TEXTS).weights, before, rtol=1e-5)
    update_index(str(tmp_path / "index"), embeddings, contract=encoder.contract, texts=texts)
    np.testing.assert_allclose(weights(Searcher.open(str(tmp_path / "index")))[-embeddings.num_tokens :], embeddings.weights, rtol=1e-3)


def test_changes_that_are_not_possible_are_refused(place, tmp_path):
    with pytest.raises(ConfigError, match="need embeddings of the scorer attention, not maxsim"):
        built(place / "maxsim_embeddings", tmp_path / "index", "--attention.delta_length", "20")
    with pytest.raises(ConfigError, match="need a checkpoint of the scorer attention, and this one is for maxsim"):
        encoded(place, "refused", "maxsim", "--attention.delta_length", "20")
    encoder = Encoder.load(EncoderConfig(checkpoint=str(place / "both"), precision="float32"))
    embeddings = encoder.encode_documents(TEXTS)
    older = type(embeddings)(embeddings.values, embeddings.offsets, embeddings.doc_ids, embeddings.token_ids, embeddings.weights)
    save_embeddings(str(tmp_path / "older"), older, contract=encoder.contract)
    with pytest.raises(IncompatibleError, match="hold no attention.*encode the corpus again"):
        built(tmp_path / "older", tmp_path / "index", "--attention.delta_length", "20")
