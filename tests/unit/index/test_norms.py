"""Vectors of any length: scores are MaxSim of the given vectors, and zero vectors are not tokens."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.export_files import index_blocks
from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.update import update_index
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines import VECTOR_ENGINES, choose
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.engines.xtr import XtrParams
from ray_lir.evaluation.oracle import exact_run, read_embeddings
from ray_lir.index.norms import LARGEST_NORM, directions, kept_norms, without_zero_rows
from ray_lir.index.versions import read_version
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from tests.support.checkpoints import put_together
from tests.support.synthetic import collection, exact_scores, queries_about, unit

EVERYTHING = {
    "exact": "exact",
    "scan": ScanParams(ncandidates=10_000),
    "plaid": PlaidParams(nprobe=10_000, ncandidates=10_000),
    "warp": WarpParams(nprobe=10_000, rescore=10_000),
    "xtr": XtrParams(k_prime=100_000, rescore=10_000),
}


def stretched(low: float, high: float, num_docs: int = 250, per_token: bool = True, seed: int = 3) -> TokenEmbeddings:
    """Return documents near topics; each token (or document) has its own length, up to `octaves` powers of two above or below 1."""
    rng = np.random.default_rng(seed)
    matrices = [doc.astype(np.float64) for doc in collection(num_docs)]
    return TokenEmbeddings.of([doc * np.exp(rng.uniform(np.log(low), np.log(high), (len(doc) if per_token else 1, 1))) for doc in matrices])


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Return documents with token lengths from .2 to 3, and their index."""
    documents = stretched(0.2, 3)
    root = str(tmp_path_factory.mktemp("norms") / "index")
    build_index(documents, root, IndexConfig(num_shards=3, codec=CodecConfig(nbits=8)))
    return root, documents


def queries_of(documents: TokenEmbeddings) -> TokenEmbeddings:
    rng = np.random.default_rng(8)
    return TokenEmbeddings.of(
        [query.astype(np.float64) * rng.uniform(0.1, 9, (len(query), 1)) for query in queries_about(documents, [3, 77, 200])]
    )


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_every_engine_scores_maxsim_of_the_vectors_given(index, engine, kernels):
    root, documents = index
    queries = queries_of(documents)
    for query, top in zip(queries, Searcher.open(root, kernels=kernels).search(queries, 20, EVERYTHING[engine]), strict=True):
        expected = exact_scores(query, documents)
        np.testing.assert_allclose(top.scores, expected[top.documents], rtol=0.01, atol=0.01 * expected.max())
        assert set(top.documents[:5].tolist()) <= set(np.argsort(-expected)[:8].tolist())


@pytest.mark.parametrize(("low", "high"), [(1e-3, 1e-2), (1e-3, 1e4), (50, 1e4)])
def test_lengths_from_a_thousandth_to_ten_thousand_keep_their_scores(tmp_path, low, high):
    documents = stretched(low, high, per_token=False)
    build_index(documents, str(tmp_path / "index"), IndexConfig(codec=CodecConfig(nbits=8)))
    searcher = Searcher.open(str(tmp_path / "index"))
    queries = queries_about(documents, [5, 60])
    lengths = np.array([np.linalg.norm(doc.astype(np.float64), axis=1).mean() for doc in documents])
    for query, top in zip(queries, searcher.search(queries, 250, "exact"), strict=True):
        expected = exact_scores(query, documents)
        norms = np.linalg.norm(query.astype(np.float64), axis=1).sum()
        assert len(top.documents) == 250 and np.isfinite(top.scores).all()
        assert (np.abs(top.scores - expected[top.documents]) <= 0.02 * norms * lengths[top.documents]).all()


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_scores_grow_with_the_norms_of_query_and_document_vectors(index, engine):
    root, documents = index
    searcher, queries = Searcher.open(root), queries_of(documents)
    once = searcher.search(queries, 10, engine)
    for factor in (1 / 64, 32):
        scaled = TokenEmbeddings.of([factor * query.astype(np.float64) for query in queries])
        for one, other in zip(once, searcher.search(scaled, 10, engine), strict=True):
            np.testing.assert_allclose(other.scores, factor * one.scores, rtol=1e-6)  # factors are powers of two


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_sharded_equals_unsharded(index, tmp_path, engine):
    root, documents = index
    build_index(documents, str(tmp_path / "one"), IndexConfig(num_shards=1, codec=CodecConfig(nbits=8)))
    queries = queries_of(documents)
    params = {"scan": ScanParams(ncandidates=12), "plaid": PlaidParams(ncandidates=16), "warp": WarpParams(rescore=12)}.get(engine, engine)
    for one, three in zip(
        Searcher.open(str(tmp_path / "one")).search(queries, 7, params), Searcher.open(root).search(queries, 7, params), strict=True
    ):
        np.testing.assert_array_equal(one.documents, three.documents)
        np.testing.assert_array_equal(one.scores, three.scores)


def test_candidates_use_vector_lengths_and_auto_keeps_its_recall(tmp_path):
    """Random documents of very different lengths: directions alone would not make the best documents candidates."""
    rng = np.random.default_rng(0)
    documents = TokenEmbeddings.of([rng.normal(size=(10, 64)) * rng.uniform(0.2, 3) for _ in range(3000)])
    queries = TokenEmbeddings.of([rng.normal(size=(8, 64)) for _ in range(20)])
    build_index(documents, str(tmp_path / "index"))
    searcher = Searcher.open(str(tmp_path / "index"))
    exact = [set(top.documents.tolist()) for top in searcher.search(queries, 10, "exact")]

    def recall(engine) -> float:
        found = [set(top.documents.tolist()) for top in searcher.search(queries, 10, engine)]
        return float(np.mean([len(expected & hits) / 10 for expected, hits in zip(exact, found, strict=True)]))

    assert recall("auto") == 1
    assert recall("scan") >= 0.9 and recall("warp") >= 0.9
    params, reason = choose(searcher.planner.statistics, searcher.kernels.name)
    assert params.engine == "exact" and "length" in reason


def test_warp_scores_are_decoded_dot_products_if_every_cluster_is_probed(index):
    root, documents = index
    searcher, queries = Searcher.open(root), queries_of(documents)
    for exact, warp in zip(
        searcher.search(queries, 250, "exact"), searcher.search(queries, 250, WarpParams(nprobe=10_000, rescore=0)), strict=True
    ):
        by_number = dict(zip(exact.documents.tolist(), exact.scores.tolist(), strict=True))
        expected = np.array([by_number[number] for number in warp.documents.tolist()])
        # the lengths of cells' centroids are rounded to a quarter of an octave
        np.testing.assert_allclose(warp.scores, expected, rtol=0.12, atol=0.05 * np.abs(expected).max())


def test_explained_matches_and_exported_vectors_keep_their_lengths(index):
    root, documents = index
    searcher, queries = Searcher.open(root), queries_of(documents)
    query = queries.slice(1, 2)
    [top] = searcher.search(query, 3, "exact")
    number = int(top.documents[0])
    trace, matches = explain(searcher, query, number, 3, "exact")
    products = query[0].astype(np.float64) @ documents[number].astype(np.float64).T
    np.testing.assert_allclose(matches.similarities, products.max(axis=1), rtol=5e-3, atol=5e-3)
    np.testing.assert_allclose(matches.contributions, matches.similarities, rtol=1e-5)
    assert matches.contributions.sum() == pytest.approx(float(top.scores[0]), rel=1e-3) == trace.score
    exported = np.concatenate([block.embeddings.values for block in index_blocks(root, searcher.manifest)]).astype(np.float32)
    vectors = documents.values.astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(exported, axis=1), np.linalg.norm(vectors, axis=1), rtol=5e-3)
    assert np.mean(np.linalg.norm(exported - vectors, axis=1) / np.linalg.norm(vectors, axis=1)) < 0.02


def test_rounded_unit_vectors_store_no_norms(tmp_path):
    """Their index equals that of format version 1 to the byte: scales hold no norms, and the manifest has no new field."""
    manifest = build_index(collection(60), str(tmp_path / "index"))
    assert manifest.unit_norms
    written = json.loads((tmp_path / "index" / "versions" / "1" / "manifest.json").read_text())
    assert not {"unit_norms", "num_zero_rows"} & set(written)
    values = unit(np.random.default_rng(0).normal(size=(500, 128))).astype(np.float16)
    assert (kept_norms(values) == 1).all() and directions(values, kept_norms(values)) is values


def test_an_update_with_longer_vectors_is_found_by_every_engine(tmp_path):
    root = str(tmp_path / "index")
    documents = collection(200)
    build_index(documents, root)
    long = TokenEmbeddings.of([7 * documents[4].astype(np.float64)], ["long"])
    manifest = update_index(root, long).manifest
    assert not manifest.unit_norms and read_version(root, 1).unit_norms
    assert not compact_index(root).manifest.unit_norms
    searcher = Searcher.open(root)
    for engine in VECTOR_ENGINES:
        [top] = searcher.search(TokenEmbeddings.of([documents[4]]), 2, engine)
        assert searcher.doc_ids(top.documents[:1]) == ["long"]


def test_an_encoder_without_normalisation_can_be_indexed_and_searched(tmp_path):
    folder = put_together("sentence_transformers", "fixed", tmp_path / "checkpoint")
    modules = json.loads((tmp_path / "checkpoint" / "modules.json").read_text())
    (tmp_path / "checkpoint" / "modules.json").write_text(json.dumps([each for each in modules if not each["type"].endswith("Normalize")]))
    shutil.rmtree(tmp_path / "checkpoint" / "3_Normalize")
    encoder = Encoder.load(folder)
    texts = ["a star and a wave", "the bridge on the river", "trade by ship", "the church tower", "heart and brain of a mouse"]
    documents = encoder.encode_documents([f"{text} {number}" for number in range(4) for text in texts])
    queries = encoder.encode_queries(["bridge on a river", "what is a brain?"])
    assert np.abs(np.linalg.norm(documents.values.astype(np.float32), axis=1) - 1).max() > 0.1
    manifest = build_index(documents, str(tmp_path / "index"), IndexConfig(codec=CodecConfig(nbits=8)), contract=encoder.contract)
    assert not manifest.unit_norms
    searcher = Searcher.open(str(tmp_path / "index"))
    for query, top in zip(queries, searcher.search(queries, 5), strict=True):
        expected = exact_scores(query, documents)
        np.testing.assert_allclose(top.scores, expected[top.documents], rtol=2e-3)
        assert top.documents[0] in np.argsort(-expected)[:2]


def test_pooled_vectors_keep_their_length():
    rng = np.random.default_rng(0)
    vector = unit(rng.normal(size=(1, 32)))
    other = unit(rng.normal(size=(1, 32)))
    [pooled] = pool_tokens(TokenEmbeddings.of([np.concatenate([other, 2 * vector, 4 * vector])]), 2)
    np.testing.assert_allclose(pooled, np.concatenate([other, 3 * vector]), atol=5e-3)


def padded(documents: TokenEmbeddings, chosen: list[int], rows: int = 2) -> TokenEmbeddings:
    zeros = np.zeros((rows, documents.dim), np.float16)
    return TokenEmbeddings.of(
        [np.vstack([zeros[:1], doc, zeros]) if i in chosen else doc for i, doc in enumerate(documents)], documents.doc_ids
    )


@pytest.mark.parametrize("way", ["memory", "folder", "token_aware"])
def test_rows_of_zeros_are_left_out_of_documents_and_counted(tmp_path, way, caplog):
    documents = collection(120)
    with_zeros = padded(documents, [0, 7, 119])
    config = IndexConfig(num_shards=3)
    if way == "token_aware":
        config = IndexConfig(clustering=ClusteringConfig(method="token_aware", num_centroids=64))
        ids = [np.random.default_rng(2).integers(0, 9, batch.num_tokens).astype(np.int32) for batch in (documents, with_zeros)]
        ids[1][without_rows(with_zeros)] = ids[0]
        documents = TokenEmbeddings(documents.values, documents.offsets, documents.doc_ids, token_ids=ids[0])
        with_zeros = TokenEmbeddings(with_zeros.values, with_zeros.offsets, with_zeros.doc_ids, token_ids=ids[1])
    if way == "folder":
        for name, batch in (("plain", documents), ("zeros", with_zeros)):
            save_embeddings(str(tmp_path / f"e-{name}"), batch)
        plain, found = (build_index(str(tmp_path / f"e-{name}"), str(tmp_path / name), config) for name in ("plain", "zeros"))
    else:
        plain = build_index(documents, str(tmp_path / "plain"), config)
        found = build_index(with_zeros, str(tmp_path / "zeros"), config)
    assert found.num_zero_rows == 9 and plain.num_zero_rows == 0
    assert "9 rows of zeros" in caplog.text
    assert found.num_tokens == documents.num_tokens == sum(shard.num_tokens for shard in found.shards)
    queries = queries_about(documents, [0, 7, 60])
    for engine in VECTOR_ENGINES:
        tops = Searcher.open(str(tmp_path / "zeros")).search(queries, 5, EVERYTHING[engine])
        assert [top.documents[0] for top in tops] == [0, 7, 60]
        assert all(np.isfinite(top.scores).all() for top in tops)
    scales = np.concatenate([shard.scales for shard in Searcher.open(str(tmp_path / "zeros")).shards])
    assert np.isfinite(scales).all()


def without_rows(embeddings: TokenEmbeddings) -> np.ndarray:
    return np.flatnonzero(embeddings.values.any(axis=1))


def test_a_document_with_only_zero_vectors_has_no_tokens_and_is_counted(tmp_path, caplog):
    documents = TokenEmbeddings.of([*collection(50), np.zeros((4, 32)), np.full((2, 32), 1e-9)])
    manifest = build_index(documents, str(tmp_path / "index"))
    assert manifest.num_docs == 52 and manifest.num_zero_rows == 6
    assert "2 documents have no other rows" in caplog.text
    searcher = Searcher.open(str(tmp_path / "index"))
    for params in EVERYTHING.values():
        [top] = searcher.search(TokenEmbeddings.of([documents[3]]), 100, params)
        assert sorted(top.documents.tolist()) == list(range(50))
    assert searcher.doc_ids([50, 51]) == ["50", "51"]


def test_an_index_of_only_zero_vectors_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds only rows of zeros"):
        build_index(TokenEmbeddings.of([np.zeros((3, 32))] * 3), str(tmp_path / "index"))


def test_added_zero_vectors_are_left_out_and_counted_also_after_compaction(tmp_path):
    documents = collection(100)
    root = str(tmp_path / "index")
    build_index(padded(documents.slice(0, 60), [1]), root)
    added = padded(documents.slice(60, 100), [0, 39], rows=4)
    added = TokenEmbeddings.of([*added, np.zeros((2, 32))], [*added.doc_ids, "zeros"])
    update = update_index(root, added)
    assert update.change.num_zero_rows == 12 and update.manifest.num_zero_rows == 15
    assert update.change.added_tokens == documents.slice(60, 100).num_tokens
    compact = compact_index(root).manifest
    assert compact.num_tokens == documents.num_tokens and compact.num_zero_rows == 15
    only_zeros = update_index(root, TokenEmbeddings.of([np.zeros((2, 32))], ["more"]))
    assert only_zeros.change.mean_residual_norm is None
    for version in (2, 3, 4):
        searcher = Searcher.open(root, version)
        for engine in VECTOR_ENGINES:
            tops = searcher.search(queries_about(documents, [60, 99]), 3, engine)
            assert [searcher.doc_ids(top.documents[:1]) for top in tops] == [["doc-60"], ["doc-99"]]


def test_the_oracle_leaves_out_zero_vectors(tmp_path):
    documents = TokenEmbeddings.of([-np.eye(8)[:2], np.zeros((1, 8))])
    manifest = save_embeddings(str(tmp_path), documents)
    run = exact_run(read_embeddings(str(tmp_path), manifest), TokenEmbeddings.of([np.eye(8)[:1]]), 5)
    padded_run = exact_run([without_zero_rows(padded(documents, [0]))], TokenEmbeddings.of([np.eye(8)[:1]]), 5)
    assert run == padded_run == {"0": [("0", 0.0)]}


def test_a_vector_too_long_for_the_scales_is_refused_by_name(tmp_path):
    documents = collection(20)
    long = TokenEmbeddings.of([*documents, np.full((2, 32), 60000.0)], [*documents.doc_ids, "long"])
    with pytest.raises(ConfigError, match=f"'long' has length .* up to {LARGEST_NORM:g}"):
        build_index(long, str(tmp_path / "index"))
    assert not (tmp_path / "index" / "LATEST").exists()


FINE = np.eye(4)[:2]


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.ones(4), r"'b' must be a matrix \[tokens, dim\], not of shape \(4,\)"),
        (np.ones((2, 2, 4)), "'b' must be a matrix"),
        (np.zeros((0,)), "'b' must be a matrix"),
        ([], "'b' must be a matrix"),
        (np.zeros((2, 0)), "'b' must be a matrix"),
        (np.ones((2, 4), int), "'b' must be floats, not int64"),
        (np.ones((2, 4), complex), "'b' must be floats, not complex128"),
        ([["x", "y"]], "'b' must be floats"),
        ([[1.0, 2.0], [1.0]], "'b' are not a matrix"),
        (np.ones((2, 5)), "'b' have 5 dimensions and those of 'a' 4"),
        (np.full((2, 4), 1e6), "'b' hold values up to 1e.06, but the largest float16 is 65504"),
        (np.full((2, 4), -1e300), "'b' hold values up to 1e.300"),
        (np.full((2, 4), np.nan), "'b' hold NaN or infinite"),
        (np.full((2, 4), np.inf), "'b' hold NaN or infinite"),
    ],
)
def test_an_invalid_matrix_is_refused_by_the_id_of_its_text(matrix, message, recwarn):
    with pytest.raises(ConfigError, match=message) as caught:
        TokenEmbeddings.of([FINE, matrix], ["a", "b"])
    assert "\n" not in str(caught.value) and not recwarn.list


def test_wrong_arguments_of_token_embeddings_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match=r"use \[matrix\]"):
        TokenEmbeddings.of(FINE)
    with pytest.raises(ConfigError, match="1 doc_ids for 2 matrices"):
        TokenEmbeddings.of([FINE, FINE], ["a"])
    with pytest.raises(ConfigError, match="at least one"):
        TokenEmbeddings.of(np.zeros((0, 2, 4)))
    assert len(TokenEmbeddings.of(np.ones((3, 2, 4), np.float32))) == 3
    values = np.ones((3, 4), np.float16)
    values[2, 1] = np.nan
    with pytest.raises(ConfigError, match="'second' hold NaN"):
        TokenEmbeddings(values, np.array([0, 2, 3]), ["first", "second"])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-3.5, 3.5), min_size=1, max_size=12), st.integers(0, 99))
def test_directions_times_norms_equal_the_vectors(exponents, seed):
    vectors = unit(np.random.default_rng(seed).normal(size=(len(exponents), 16))) * 10.0 ** np.array(exponents)[:, None]
    vectors = vectors.astype(np.float16)
    norms = kept_norms(vectors)
    np.testing.assert_allclose(directions(vectors, norms) * norms[:, None], vectors.astype(np.float32), rtol=1e-5)
    lengths = np.linalg.norm(directions(vectors, norms).astype(np.float64), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=6e-3)
