"""Encoders with a scorer: token weights, checkpoints with heads, and refused combinations."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ray_lir.base.config import AttentionConfig, ClusteringConfig, CodecConfig, Config, EncoderConfig, IndexConfig, TrialConfig, XtrConfig
from ray_lir.base.errors import ConfigError, IncompatibleError
from ray_lir.building.build import build_index
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fit_projection
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import DOCUMENTS, QUERIES
from tests.support.checkpoints import put_together

SETTINGS = {"xtr": XtrConfig(k_train=(8, 4)), "trial": TrialConfig(relation_weight=0.1), "attention": AttentionConfig(sides="documents")}
WEIGHED = {"xtr": (False, False), "trial": (True, False), "attention": (False, True)}


def load(checkpoint: str | Path, **changes: object) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=str(checkpoint), **({"precision": "float32"} | changes)))


@pytest.fixture
def source(tmp_path: Path) -> Encoder:
    return load(put_together("pylate", "expansion", tmp_path / "source"))


@pytest.mark.parametrize("name", SETTINGS)
def test_saving_and_loading_keeps_scorer_settings_heads_and_weights(name: str, source: Encoder, tmp_path: Path) -> None:
    encoder = source.with_scorer(name, SETTINGS[name])
    encoder.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert again.contract.scorer == name and again.contract.fingerprint == encoder.contract.fingerprint
    assert again.model.scorer.settings == SETTINGS[name]
    for encode, texts, weighed in zip(("encode_queries", "encode_documents"), (QUERIES, DOCUMENTS), WEIGHED[name], strict=True):
        ours, theirs = getattr(encoder, encode)(texts), getattr(again, encode)(texts)
        assert np.array_equal(ours.values, theirs.values) and np.array_equal(ours.values, getattr(source, encode)(texts).values)
        assert (ours.weights is not None) == weighed
        assert np.array_equal(ours.weights, theirs.weights) if weighed else theirs.weights is None
    found = Encoder.for_contract(again.contract)
    assert found.contract == again.contract


@pytest.mark.parametrize("name", SETTINGS)
def test_sentence_transformers_still_loads_the_encoder_of_a_checkpoint_with_heads(name: str, source: Encoder, tmp_path: Path) -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers", minversion="6")
    encoder = source.with_scorer(name)
    encoder.save(tmp_path / "saved")
    model = sentence_transformers.MultiVectorEncoder(str(tmp_path / "saved"), device="cpu")
    np.testing.assert_allclose(
        encoder.encode_documents(DOCUMENTS).values.astype(np.float32), np.concatenate(model.encode_document(DOCUMENTS)), rtol=0, atol=1e-3
    )


def test_a_maxsim_checkpoint_has_no_folder_for_its_scorer(source: Encoder, tmp_path: Path) -> None:
    source.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "scorer").exists()


def test_the_gate_of_a_saved_checkpoint_is_kept(source: Encoder, tmp_path: Path) -> None:
    encoder = source.with_scorer("trial", TrialConfig(gate="sigmoid"))
    encoder.save(tmp_path / "saved")
    loaded = Encoder.load(EncoderConfig(checkpoint=str(tmp_path / "saved")))
    np.testing.assert_allclose(loaded.encode_queries(DOCUMENTS).weights, encoder.encode_queries(DOCUMENTS).weights, rtol=0, atol=0.01)
    assert (loaded.encode_queries(DOCUMENTS).weights < 1).all()


def test_scorer_files_have_the_documented_names_and_shapes(source: Encoder, tmp_path: Path) -> None:
    source.with_scorer("trial", SETTINGS["trial"]).save(tmp_path / "saved")
    folder = tmp_path / "saved" / "scorer"
    assert json.loads((folder / "config.json").read_text()) == {"scorer": "trial", "relation_weight": 0.1, "alignment": "combined"}
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(folder / "model.safetensors").items()}
    dim = source.contract.dim
    assert shapes == {
        "relation.inner.weight": (dim, 2 * dim),
        "relation.inner.bias": (dim,),
        "relation.norm.weight": (dim,),
        "relation.norm.bias": (dim,),
        "relation.outer.weight": (dim, dim),
        "relation.outer.bias": (dim,),
        "gate.inner.weight": (dim, dim),
        "gate.inner.bias": (dim,),
        "gate.norm.weight": (dim,),
        "gate.norm.bias": (dim,),
        "gate.outer.weight": (1, dim),
        "gate.outer.bias": (1,),
    }


@pytest.mark.parametrize(
    ("name", "settings"), [("attention", AttentionConfig(delta_length=99)), ("trial", TrialConfig(alignment="cosine"))]
)
def test_settings_that_change_scores_change_the_fingerprint(name: str, settings: Config, source: Encoder) -> None:
    torch.manual_seed(0)
    one = source.with_scorer(name)
    torch.manual_seed(0)
    other = source.with_scorer(name, settings)
    torch.manual_seed(0)
    again = source.with_scorer(name)
    assert len({source.contract.fingerprint, one.contract.fingerprint, other.contract.fingerprint}) == 3
    assert again.contract.fingerprint == one.contract.fingerprint


def test_heads_compute_in_float32_whatever_the_encoders_precision(source: Encoder, tmp_path: Path) -> None:
    source.with_scorer("trial").save(tmp_path / "saved")
    exact, rounded = load(tmp_path / "saved"), load(tmp_path / "saved", precision="bfloat16")
    assert {parameter.dtype for parameter in rounded.model.scorer.parameters()} == {torch.float32}
    assert rounded.contract.fingerprint == exact.contract.fingerprint
    np.testing.assert_allclose(
        rounded.encode_queries(QUERIES).weights, exact.encode_queries(QUERIES).weights, rtol=0, atol=0.03
    )  # bfloat16 has 8 bits: 0.009 measured


def test_weights_of_documents_are_written_beside_their_vectors(source: Encoder, tmp_path: Path) -> None:
    source.with_scorer("attention").save(tmp_path / "saved")
    rows = [json.dumps({"_id": f"d{number}", "text": text}) for number, text in enumerate(DOCUMENTS)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    config = EncoderConfig(checkpoint=str(tmp_path / "saved"), precision="float32")
    manifest = encode_corpus(str(tmp_path / "corpus.jsonl"), str(tmp_path / "out"), config).manifest
    assert manifest.contract.scorer == "attention"
    blocks = [block for part in manifest.parts for block in read_blocks(str(tmp_path / "out" / part.name))]
    expected = load(tmp_path / "saved").encode_documents(DOCUMENTS)
    np.testing.assert_allclose(np.concatenate([block.embeddings.weights for block in blocks]), expected.weights, rtol=1e-5)


@pytest.mark.parametrize("name", ["trial", "attention"])
def test_a_texts_weights_do_not_depend_on_other_texts_of_the_batch(name: str, source: Encoder) -> None:
    encoder = source.with_scorer(name)
    together = encoder.encode_queries(QUERIES)
    for number, text in enumerate(QUERIES):
        weights = together.weights[together.offsets[number] : together.offsets[number + 1]]
        np.testing.assert_allclose(weights, encoder.encode_queries([text]).weights, rtol=0, atol=1e-5)


def test_a_checkpoint_of_another_scorer_is_refused(source: Encoder) -> None:
    with pytest.raises(ConfigError, match="was trained for scorer trial; train it with --scorer trial, or start from a maxsim checkpoint"):
        source.with_scorer("trial").with_scorer("xtr")
    kept = source.with_scorer("trial")
    again = kept.with_scorer("trial", TrialConfig(relation_weight=0.9))
    assert torch.equal(again.model.scorer.gate.inner.weight, kept.model.scorer.gate.inner.weight)
    assert again.model.scorer.settings.relation_weight == 0.9


def test_an_index_refuses_a_checkpoint_of_another_scorer(source: Encoder, tmp_path: Path) -> None:
    contract = source.with_scorer("xtr").contract
    with pytest.raises(IncompatibleError, match="is for scorer maxsim, but scorer xtr is required"):
        Encoder.for_contract(contract)


def test_a_projection_for_an_encoder_with_scorer_heads_is_refused(source: Encoder) -> None:
    with pytest.raises(ConfigError, match="fit the projection before training them"):
        fit_projection(source.with_scorer("trial"), DOCUMENTS, "pca:8")


@pytest.mark.parametrize("damage", ["unknown", "missing", "cut", "shape", "settings", "text"])
def test_damaged_heads_are_a_one_line_error_with_the_fix(damage: str, source: Encoder, tmp_path: Path) -> None:
    source.with_scorer("trial").save(tmp_path / "saved")
    folder = tmp_path / "saved" / "scorer"
    weights, config = folder / "model.safetensors", folder / "config.json"
    if damage == "unknown":
        config.write_text('{"scorer": "colpali"}')
    elif damage == "settings":
        config.write_text('{"scorer": "trial", "relation_weight": -1}')
    elif damage == "text":
        config.write_text("trial")
    elif damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        save_file({"gate.inner.bias": torch.zeros(3)}, weights)
    with pytest.raises(ConfigError, match="cannot load the scorer in .*; copy the checkpoint again, or upgrade ray_lir") as error:
        load(tmp_path / "saved")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("maxsim", {}),
        ("xtr", {}),
        ("trial", {}),
        ("trial", {"sides": "both", "first_match": "first_token"}),
        ("trial", {"sides": "none"}),
        ("attention", {}),
    ],
)
def test_an_encoded_corpus_is_indexed_and_searched_with_its_scorer(name: str, changes: dict, source: Encoder, tmp_path: Path) -> None:
    """Search gives the scorer's scores up to compression, and refuses queries of another scorer."""
    torch.manual_seed(0)
    encoder = source.with_scorer(name, SETTINGS[name].model_copy(update=changes) if name in SETTINGS else None)
    if changes.get("sides") == "both":  # compression can change which of two similar tokens matches, so their weights must be similar
        encoder.model.scorer.document_gate.outer.weight.data *= 0.05
    encoder.save(tmp_path / "checkpoint")
    rows = [{"_id": f"d{i}", "text": f"{text} {i}"} for i, text in enumerate(list(DOCUMENTS) * 8)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = EncoderConfig(checkpoint=str(tmp_path / "checkpoint"), precision="float32")
    encode_corpus(str(tmp_path / "corpus.jsonl"), str(tmp_path / "embeddings"), config)
    index = IndexConfig(num_shards=2, codec=CodecConfig(nbits=8), clustering=ClusteringConfig(num_centroids=16))
    manifest = build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), index)
    weighed = {"both": (True, True), "none": ()}.get(changes.get("sides", ""), WEIGHED.get(name, ()))
    assert manifest.contract.weighs == tuple(side for side, has in zip(("queries", "documents"), weighed, strict=False) if has)
    assert (manifest.relation is not None) == (name == "trial")
    encoder = Encoder.for_contract(manifest.contract)
    searcher = Searcher.open(str(tmp_path / "index"), kernels="reference", verify=True)
    with torch.inference_mode():
        documents = encoder.embed_documents(encoder.batch_documents([row["text"] for row in rows]))
        expected = encoder.model.scorer(encoder.embed_queries(encoder.batch_queries(QUERIES)), documents).numpy()
    for top, scores in zip(searcher.search(encoder.encode_queries(QUERIES), 5, "exact"), expected, strict=True):
        numbers = [int(doc_id[1:]) for doc_id in searcher.doc_ids(top.documents)]
        np.testing.assert_allclose(top.scores, scores[numbers], atol=5e-3 * np.abs(scores).max())
    scores = encoder.scores(encoder.encode_queries(QUERIES), encoder.encode_documents([row["text"] for row in rows]))
    np.testing.assert_allclose(scores, expected, atol=1e-3 * np.abs(expected).max())
    with pytest.raises(IncompatibleError, match=f"is for scorer {name}, but scorer trained is required"):
        other = manifest.contract.model_copy(update={"scorer": "trained"})
        Encoder.for_contract(other, EncoderConfig(checkpoint=str(tmp_path / "checkpoint")))
    if name == "trial" and "queries" in manifest.contract.weighs:
        with pytest.raises(IncompatibleError, match="the queries have no token weights, but scorer trial needs"):
            searcher.search(source.encode_queries(QUERIES), 5)


def test_training_that_adds_a_gate_keeps_the_other_heads(source: Encoder) -> None:
    encoder = source.with_scorer("trial")
    both = encoder.with_scorer("trial", TrialConfig(sides="both")).model.scorer.state_dict()
    kept = encoder.model.scorer.state_dict()
    assert all(torch.equal(both[name], tensor) for name, tensor in kept.items())
    assert {name.split(".")[0] for name in both.keys() - kept.keys()} == {"document_gate"}


def test_documents_without_tokens_score_lowest_also_with_weights(source: Encoder) -> None:
    encoder = source.with_scorer("attention")
    queries, documents = encoder.encode_queries(QUERIES[:2]), encoder.encode_documents(DOCUMENTS[:2])
    assert encoder.scores(queries, documents).shape == (2, 2)
    with pytest.raises(IncompatibleError, match="the documents have no token weights, but scorer attention needs"):
        encoder.scores(queries, source.encode_documents(DOCUMENTS[:2]))
    empty = TokenEmbeddings(np.zeros((0, documents.dim), np.float16), np.zeros(3, np.int64), ["a", "b"], weights=np.zeros(0, np.float32))
    assert encoder.scores(queries, empty).tolist() == [[-np.inf] * 2] * 2
    mixed = concatenate([empty, documents])
    assert np.isneginf(encoder.scores(queries, mixed)[:, :2]).all() and np.isfinite(encoder.scores(queries, mixed)[:, 2:]).all()
