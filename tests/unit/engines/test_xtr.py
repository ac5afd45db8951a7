"""xtr against the golden vectors: retrieved tokens, imputed scores and document scores."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.engines import SERVED, choose, resolve
from ray_lir.engines.choice import engine_params
from ray_lir.engines.plan import IndexStatistics, Query
from ray_lir.engines.stages import run_stages
from ray_lir.engines.token_index import token_index
from ray_lir.engines.xtr import ENGINE, XtrParams, impute
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import select
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from tests.support.golden_files import golden
from tests.support.hits import assert_same_hits
from tests.support.synthetic import collection, queries_about

IMPUTATIONS = ("min", "mean", "p10", "power_law", "zero")
KERNELS = select("reference")


def golden_index(weights: np.ndarray | None = None) -> tuple[IndexShard, ResidualCodec]:
    """Return an index in which every token is its own centroid, without residuals."""
    g = golden("xtr_retrieval")
    codec = ResidualCodec(g["tokens"], np.zeros(1), np.zeros(2, np.float32))
    num_tokens = len(g["tokens"])
    offsets = np.searchsorted(g["doc_of_token"], np.arange(g["doc_of_token"].max() + 2))
    codes, residuals = np.arange(num_tokens, dtype=np.uint16), np.zeros((num_tokens, codec.dim // 8), np.uint8)
    shard = IndexShard(0, offsets, codes, residuals, np.ones((num_tokens, 2), np.float16), pa.table({}), num_tokens, weights=weights)
    return shard, codec


def run(params: XtrParams, query_weights: np.ndarray | None = None, weights: np.ndarray | None = None):
    g = golden("xtr_retrieval")
    shard, codec = golden_index(weights)
    query = Query(g["q"].astype(np.float32), np.ones(len(g["q"]), np.float32) if query_weights is None else query_weights)
    statistics = IndexStatistics(shard.num_docs, len(shard.codes), np.ones(len(shard.codes), np.int64), codec.dim)
    made = ENGINE.plan(query, codec, statistics, params, 50, KERNELS)
    loop = run_stages([made], [shard], codec, KERNELS, [None])
    return g, loop.plans[0], loop.kept[0][0]


@pytest.mark.parametrize("how", IMPUTATIONS)
def test_xtr_retrieves_imputes_and_scores_like_the_golden_vectors(how):
    g, made, top = run(XtrParams(k_prime=int(golden("xtr_retrieval")["k_prime"]), imputation=how))
    np.testing.assert_array_equal(made.hits.documents.reshape(g["retrieved"].shape), g["doc_of_token"][g["retrieved"]])
    np.testing.assert_allclose(made.hits.scores.reshape(g["retrieved"].shape), g["retrieved_scores"], atol=2e-5)
    np.testing.assert_allclose(made.imputed, g[f"imputed_{how}"], atol=2e-5)
    expected = g[f"scores_{how}"]
    numbers = g["candidates"]
    found = dict(zip(top.documents.tolist(), top.scores.tolist(), strict=True))
    assert sorted(found) == numbers.tolist()
    np.testing.assert_allclose([found[number] for number in numbers.tolist()], expected, atol=2e-5)


def test_with_all_tokens_retrieved_xtr_scores_equal_maxsim():
    for how in IMPUTATIONS:
        g, _, top = run(XtrParams(k_prime=10_000, imputation=how))
        scores = top.scores[np.argsort(top.documents)]
        assert len(scores) == g["doc_of_token"].max() + 1
        np.testing.assert_allclose(scores[g["candidates"]], g["scores_maxsim"], atol=2e-5)


def test_query_weights_scale_retrieved_and_imputed_scores():
    g = golden("xtr_retrieval")
    weights = np.linspace(0, 2, len(g["q"])).astype(np.float32)
    _, made, top = run(XtrParams(k_prime=12), weights)
    assert made.active.tolist() == list(range(1, len(weights)))
    seen = np.tile(g["imputed_min"][:, None], (1, g["doc_of_token"].max() + 1))
    for i, (tokens, scores) in enumerate(zip(g["retrieved"], g["retrieved_scores"], strict=True)):
        for token, score in reversed(list(zip(tokens, scores, strict=True))):
            seen[i, g["doc_of_token"][token]] = score
    np.testing.assert_allclose(top.scores, (weights @ seen)[top.documents], atol=2e-5)


def test_token_weights_scale_retrieved_but_not_imputed_scores():
    doubled = np.ones(len(golden("xtr_retrieval")["tokens"]), np.float16)  # a stored weight is weight - 1, so every token weighs 2
    _, plain, once = run(XtrParams(k_prime=12, imputation="zero"))
    _, _, twice = run(XtrParams(k_prime=12, imputation="zero"), weights=doubled)
    np.testing.assert_array_equal(once.documents, twice.documents)
    np.testing.assert_allclose(twice.scores, 2 * once.scores, rtol=1e-6)


def test_imputed_scores_by_hand():
    scores = np.array([0.9, 0.5, 0.3, 0.1], np.float32)
    assert [round(impute(scores, how, 4), 4) for how in ("min", "mean", "zero")] == [0.1, 0.45, 0]
    assert impute(scores, "p10", 4) == pytest.approx(0.1 + 0.3 * 0.2)
    assert 0 <= impute(scores, "power_law", 4) <= 0.1
    assert impute(np.array([0.5, -0.2]), "power_law", 2) == -0.2  # one positive score fits no line
    assert all(impute(scores[:0], how, 4) == 0 for how in IMPUTATIONS)


def test_ties_at_the_cut_go_to_the_lower_token_number_however_the_index_is_sharded(tmp_path):
    """The corpus holds every document four times, so that scores at the cut are equal."""
    documents = collection(30, seed=5)
    values = np.concatenate([documents.values] * 4)
    offsets = np.concatenate([[0], np.cumsum(np.tile(documents.lengths, 4))])
    copies = dataclasses.replace(documents, values=values, offsets=offsets, doc_ids=[str(i) for i in range(120)])
    answers = []
    for num_shards in (1, 3, 7):
        path = str(tmp_path / str(num_shards))
        build_index(copies, path, IndexConfig(num_shards=num_shards, clustering=ClusteringConfig(num_centroids=32)))
        answers.append(Searcher.open(path).search(queries_about(documents, [1, 9]), 50, XtrParams(k_prime=70)))
    for other in answers[1:]:
        assert_same_hits(answers[0], other)


def test_faiss_finds_the_tokens_of_an_exhaustive_comparison(tmp_path):
    build_index(collection(300), str(tmp_path / "index"), IndexConfig(clustering=ClusteringConfig(num_centroids=64)))
    searcher = Searcher.open(str(tmp_path / "index"))
    shard, codec = searcher.shards[0], searcher.planner.codec
    queries = codec.rotate(queries_about(collection(300), [3, 50]).values, KERNELS)
    index = token_index(shard, codec)
    rows, tokens, scores = index.search(shard, queries, 40, None, None)
    _, everything, all_scores = index.search(shard, queries, len(shard.codes), None, None)
    for row in range(len(queries)):
        of_query = slice(row * len(shard.codes), (row + 1) * len(shard.codes))
        np.testing.assert_array_equal(tokens[rows == row], everything[of_query][:40])
        np.testing.assert_array_equal(scores[rows == row], all_scores[of_query][:40])
    assert token_index(shard, codec) is index


def test_an_explanation_follows_a_document_through_both_stages(tmp_path):
    build_index(collection(80), str(tmp_path / "index"), IndexConfig(num_shards=3, clustering=ClusteringConfig(num_centroids=32)))
    searcher, query = Searcher.open(str(tmp_path / "index")), queries_about(collection(80), [5])
    params = XtrParams(k_prime=20, rescore=6)
    top = searcher.search(query, 4, params)[0]
    trace, matches = explain(searcher, query, int(top.documents[0]), 4, params)
    assert trace.rank == 1 and trace.score == top.scores[0] and [stage.name for stage in trace.stages] == ["add_up", "rescore"]
    assert matches.contributions.sum() == pytest.approx(trace.score, abs=1e-4)
    unseen = np.setdiff1d(np.arange(80), searcher.search(query, 80, XtrParams(k_prime=20))[0].documents)
    lost, _ = explain(searcher, query, int(unseen[0]), 4, params)
    assert lost.dropped_at == "add_up" and lost.reason.startswith("add_up did not score it; it scores: XTR's score")


def test_auto_never_chooses_xtr_and_a_service_refuses_it():
    for power in range(1, 9):
        statistics = IndexStatistics(10**power, 70 * 10**power, np.ones(2**power))
        assert choose(statistics, "native:avx2")[0].engine != "xtr"
    assert resolve("xtr", statistics).engine == "xtr" and "xtr" not in SERVED
    with pytest.raises(ConfigError, match="needs all shards in one process.*exact, scan, plaid, warp, .*or use Searcher"):
        engine_params("xtr", {})
