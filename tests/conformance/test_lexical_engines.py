"""Engines bm25 and hybrid against bm25s and a ranking computed document by document."""

import dataclasses
import math

import bm25s
import numpy as np
import pytest

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.corpus.analysis import Analyzer
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.bm25 import Bm25Params
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.hybrid import HybridParams
from ray_lir.engines.plan import TopK, merge
from ray_lir.engines.stages import StageLoop, run_stage, run_stages
from ray_lir.kernels import select
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from tests.support.hits import assert_same_hits
from tests.support.synthetic import collection, queries_about

NUM_DOCS = 240
DOCUMENTS = collection(NUM_DOCS, seed=3)
RNG = np.random.default_rng(11)
WORDS = [f"w{number}" for number in range(80)]
FREQUENCIES = 1 / np.arange(1, len(WORDS) + 1)
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(1, 25), p=FREQUENCIES / FREQUENCIES.sum())) for _ in range(NUM_DOCS)]
QUERY_TEXTS = ["w3 w40 w70", "w1", "w9 w9 w30 unknown", "unknown", "w0 w2 w4 w6 w8", ""]
QUERIES = dataclasses.replace(queries_about(DOCUMENTS, [3, 41, 99, 150, 201, 7]), texts=QUERY_TEXTS)
PARAMS = {
    "bm25": Bm25Params(),
    "robertson": Bm25Params(method="robertson", k1=0.9, b=0.4),
    "weighted": HybridParams(ncandidates=15, candidates="scan"),
    "rrf": HybridParams(fusion="rrf", ncandidates=15, candidates="scan", lexical_weight=0.7, rrf_k=10),
    "rescore": HybridParams(fusion="rescore", ncandidates=15),
    "plaid": HybridParams(ncandidates=15, candidates="plaid"),
    "warp": HybridParams(ncandidates=15, candidates="warp"),
    "exact": HybridParams(ncandidates=15, candidates="exact"),
    "defaults": HybridParams(),
}
HYBRIDS = [name for name, params in PARAMS.items() if params.engine == "hybrid"]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hybrid")

    def open_index(num_shards: int = 1) -> Searcher:
        path = folder / str(num_shards)
        if not path.exists():
            config = IndexConfig(num_shards=num_shards, clustering=ClusteringConfig(num_centroids=64), lexical=True)
            build_index(DOCUMENTS, path, config, texts=TEXTS)
        return Searcher.open(path)

    return open_index


def same(a: list[TopK], b: list[TopK]) -> None:
    assert_same_hits(a, b)
    for left, right in zip(a, b, strict=True):
        assert (left.sides is None) == (right.sides is None)
        if left.sides and right.sides:
            for name in ("lexical", "vectors", "by_terms", "by_vectors"):
                np.testing.assert_array_equal(getattr(left.sides, name), getattr(right.sides, name))


@pytest.mark.parametrize(
    ("method", "k1", "b"), [("lucene", 1.2, 0.75), ("lucene", 0.9, 0.4), ("robertson", 1.5, 1.0), ("robertson", 0.5, 0.0)]
)
def test_scores_equal_those_of_bm25s(index, method, k1, b):
    analyzer = Analyzer("english")
    peer = bm25s.BM25(method=method, k1=k1, b=b)
    peer.index([analyzer.terms(text) for text in TEXTS], show_progress=False)
    found = index(3).search(QUERIES, NUM_DOCS, Bm25Params(method=method, k1=k1, b=b))
    for text, top in zip(QUERY_TEXTS, found, strict=True):
        terms = [term for term in analyzer.terms(text) if term in peer.vocab_dict]
        expected = peer.get_scores(terms) if terms else np.zeros(NUM_DOCS)
        scores = np.zeros(NUM_DOCS)
        scores[top.documents] = top.scores
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
        assert len(top.documents) == sum(bool(set(terms) & set(analyzer.terms(each))) for each in TEXTS)


def test_a_hand_computed_bm25_score(tmp_path):
    vectors = TokenEmbeddings.of([np.eye(16, dtype=np.float32)[:2]] * 3)
    build_index(
        vectors, tmp_path / "i", IndexConfig(lexical=True, clustering=ClusteringConfig(num_centroids=2)), texts=["a a b", "b", "c d"]
    )
    query = TokenEmbeddings.of([np.eye(16, dtype=np.float32)[:1]], texts=["a b"])
    [top] = Searcher.open(tmp_path / "i").search(query, 3, Bm25Params(k1=1.2, b=0.75))
    norm = 1.2 * (0.25 + 0.75 * 3 / 2)  # 3 terms; the mean is 2
    a, b = math.log(1 + 2.5 / 1.5), math.log(1 + 1.5 / 2.5)
    assert top.documents.tolist() == [0, 1]
    assert top.scores.tolist() == pytest.approx([a * 2 / (2 + norm) + b / (1 + norm), b / (1 + 1.2 * (0.25 + 0.75 / 2))], rel=1e-6)


@pytest.mark.parametrize("name", PARAMS)
def test_sharded_equals_unsharded(index, name):
    for num_shards in (2, 7):
        for k in (4, 30):
            same(index(1).search(QUERIES, k, PARAMS[name]), index(num_shards).search(QUERIES, k, PARAMS[name]))


def fused(searcher: Searcher, params: HybridParams, k: int, allowed: np.ndarray) -> list[list[tuple[float, int]]]:
    """The hybrid ranking of each query, document by document, from the complete rankings of both sides."""
    whole = len(TEXTS)
    lexical = searcher.search(QUERIES, whole, Bm25Params(), only=allowed)
    exact = searcher.search(QUERIES, whole, ExactParams(), only=allowed)
    rankings = []
    for by_terms, by_vectors in zip(lexical, exact, strict=True):
        terms = dict(zip(by_terms.documents.tolist(), by_terms.scores.astype(float).tolist(), strict=True))
        vectors = dict(zip(by_vectors.documents.tolist(), by_vectors.scores.astype(float).tolist(), strict=True))
        count = params.ncandidates
        union = set(by_terms.documents[:count].tolist())
        if params.fusion != "rescore":
            union |= set(by_vectors.documents[:count].tolist())
        highest, weight = max((terms.get(number, 0.0) for number in union), default=0.0), params.lexical_weight
        low, high = (least(vectors[number] for number in union) if union else 0.0 for least in (min, max))
        scores = {}
        for number in union:
            mine = terms.get(number, 0.0)
            if params.fusion == "rescore":
                scores[number] = vectors[number]
            elif params.fusion == "weighted":
                scores[number] = weight * (mine / highest if highest else 0) + (1 - weight) * (vectors[number] - low) / (high - low)
            else:
                ranks = [1 + sum(values.get(other, 0.0) > values.get(number, 0.0) for other in union) for values in (terms, vectors)]
                scores[number] = 2 * weight / (params.rrf_k + ranks[0]) * (mine > 0) + 2 * (1 - weight) / (params.rrf_k + ranks[1])
        rankings.append(sorted(((score, number) for number, score in scores.items()), key=lambda each: (-np.float32(each[0]), each[1]))[:k])
    return rankings


@pytest.mark.parametrize("filtered", [False, True])
@pytest.mark.parametrize("fusion", ["weighted", "rrf", "rescore"])
def test_the_best_of_both_sides_are_united_before_the_cut_and_fused(index, fusion, filtered):
    params = HybridParams(fusion=fusion, lexical_weight=0.4, candidates="exact", ncandidates=12)
    allowed = np.flatnonzero(RNG.random(NUM_DOCS) < 0.5) if filtered else np.arange(NUM_DOCS)
    searcher = index(7)
    found = searcher.search(QUERIES, 8, params, only=allowed if filtered else None)
    for top, expected in zip(found, fused(index(1), params, 8, allowed), strict=True):
        assert top.documents.tolist() == [number for _, number in expected]
        np.testing.assert_allclose(top.scores, [score for score, _ in expected], rtol=2e-6)


def test_sides_say_which_side_found_a_hit_and_hold_both_scores(index):
    searcher, params = index(3), HybridParams(candidates="exact", ncandidates=60, lexical_weight=0.6)
    lexical = searcher.search(QUERIES, NUM_DOCS, "bm25")
    exact = searcher.search(QUERIES, NUM_DOCS, "exact")
    kinds = set()
    for top, terms, vectors in zip(searcher.search(QUERIES, 60, params), lexical, exact, strict=True):
        by_terms = dict(zip(terms.documents.tolist(), terms.scores.tolist(), strict=True))
        by_vectors = dict(zip(vectors.documents.tolist(), vectors.scores.tolist(), strict=True))
        for row, number in enumerate(top.documents.tolist()):
            assert top.sides.lexical[row] == by_terms.get(number, 0)
            assert top.sides.vectors[row] == by_vectors[number]
            assert top.sides.by_terms[row] == (number in terms.documents[:60])
            assert top.sides.by_vectors[row] == (number in vectors.documents[:60])
            kinds.add((bool(top.sides.by_terms[row]), bool(top.sides.by_vectors[row])))
    assert kinds == {(True, True), (True, False), (False, True)}


def test_a_weight_of_0_ranks_by_vectors_and_of_1_by_terms(index):
    searcher = index(3)
    for fusion in ("weighted", "rrf"):
        vectors = searcher.search(QUERIES, 10, HybridParams(fusion=fusion, lexical_weight=0, candidates="exact"))
        for top, expected in zip(vectors, searcher.search(QUERIES, 10, "exact"), strict=True):
            np.testing.assert_array_equal(top.documents, expected.documents)
        terms = searcher.search(QUERIES, 10, HybridParams(fusion=fusion, lexical_weight=1, candidates="exact"))
        for top, expected in zip(terms, searcher.search(QUERIES, 10, "bm25"), strict=True):
            count = len(expected.documents)
            np.testing.assert_array_equal(top.sides.lexical[:count], expected.scores)


@pytest.mark.parametrize("name", PARAMS)
def test_deleted_documents_are_left_out_before_any_cut(index, name):
    searcher = index(7)
    gone = np.flatnonzero(np.random.default_rng(5).random(NUM_DOCS) < 0.4)
    shards = []
    for shard in searcher.shards:
        deleted = gone[(gone >= shard.first_document) & (gone < shard.first_document + shard.num_docs)] - shard.first_document
        shards.append(dataclasses.replace(shard, deleted=deleted.astype(np.uint32)))
    after = dataclasses.replace(searcher, shards=tuple(shards))
    left = np.setdiff1d(np.arange(NUM_DOCS), gone)
    same(searcher.search(QUERIES, 6, PARAMS[name], only=left), after.search(QUERIES, 6, PARAMS[name]))


@pytest.mark.parametrize("name", PARAMS)
def test_groups_of_shards_cut_like_the_whole_index(index, name):
    searcher = index(7)
    plans = searcher.planner.plan(QUERIES, 4, PARAMS[name])
    codec, kernels, allowed = searcher.planner.codec, searcher.kernels, [None] * len(plans)
    whole = run_stages(plans, searcher.shards, codec, kernels, allowed)
    loop = StageLoop(plans, allowed)
    for call in loop:
        groups = [run_stage(call, shards, codec, kernels) for shards in (searcher.shards[:2], searcher.shards[2:])]
        loop.cut([[group[plan] for group in groups] for plan in range(len(plans))], kernels)
    for kept, expected in zip(loop.kept, whole.kept, strict=True):
        same(kept, expected)


@pytest.mark.parametrize("name", PARAMS)
def test_queries_together_and_alone_and_with_every_kernel_set_agree(index, name):
    searcher = index(2)
    together = searcher.search(QUERIES, 9, PARAMS[name])
    same(together, [searcher.search(QUERIES.slice(row, row + 1), 9, PARAMS[name])[0] for row in range(len(QUERIES))])
    reference = dataclasses.replace(searcher, kernels=select("reference"))
    for top, other in zip(together, reference.search(QUERIES, 9, PARAMS[name]), strict=True):
        np.testing.assert_allclose(top.scores, other.scores, atol=2e-2)


@pytest.mark.parametrize("name", PARAMS)
def test_an_explanation_traces_both_sides_and_the_fusion(index, name):
    searcher, params = index(3), PARAMS[name]
    [answer] = searcher.search(QUERIES.slice(0, 1), 5, params)
    for rank, (number, score) in enumerate(zip(answer.documents.tolist(), answer.scores.tolist(), strict=True), 1):
        trace, _ = explain(searcher, QUERIES.slice(0, 1), number, 5, params)
        assert (trace.rank, trace.dropped_at, trace.score) == (rank, None, score)
    names = [stage.name for stage in trace.stages]
    if params.engine == "bm25":
        assert names == ["score_terms"]
        return
    assert names == ["candidates_by_terms", "candidates_by_vectors", "bm25", "rescore", "fuse"]
    assert trace.stages[2].score == answer.sides.lexical[-1] and trace.stages[3].score == answer.sides.vectors[-1]
    if params.ncandidates:
        plans = searcher.planner.plan(QUERIES.slice(0, 1), 5, params)
        [candidates] = run_stages(plans, searcher.shards, searcher.planner.codec, searcher.kernels, [None]).kept[0]
        dropped = next(number for number in range(NUM_DOCS) if number not in candidates.documents)
        trace, _ = explain(searcher, QUERIES.slice(0, 1), dropped, 5, params)
        assert trace.rank is None and trace.dropped_at == "candidates_by_terms" and not any(stage.survived for stage in trace.stages)
        assert trace.reason.count("candidates_by") == 2


@pytest.mark.parametrize("name", PARAMS)
def test_a_search_among_no_documents_finds_none(index, name):
    for top in index(3).search(QUERIES, 5, PARAMS[name], only=[]):
        assert len(top.scores) == len(top.documents) == 0


def test_missing_postings_and_missing_texts_give_one_line_with_the_fix(index, tmp_path):
    build_index(DOCUMENTS, tmp_path / "plain", IndexConfig(clustering=ClusteringConfig(num_centroids=64)), texts=TEXTS)
    plain = Searcher.open(tmp_path / "plain")
    for engine in ("bm25", "hybrid"):
        with pytest.raises(ConfigError, match=f"engine {engine} needs lexical postings, and this index has none; build it with --lexical"):
            plain.search(QUERIES, 5, engine)
        with pytest.raises(ConfigError, match=f"engine {engine} needs the text of each query, .*encode_queries"):
            index(1).search(dataclasses.replace(QUERIES, texts=None), 5, engine)
    assert len(index(1).search(dataclasses.replace(QUERIES, texts=None), 5, "scan")) == len(QUERIES)


def test_the_cut_of_several_columns_keeps_the_best_of_each():
    never = -np.inf
    parts = [
        TopK(np.array([[3, never], [1, 5]], np.float32), np.array([4, 7])),
        TopK(np.array([[2, 9], [2, 1], [never, never]], np.float32), np.array([2, 1, 9])),
    ]
    top = merge(parts, 2, select("reference"))
    assert top.documents.tolist() == [2, 4, 1, 7]  # ranks (2, 0), (0, -), (1, -), (-, 1)
    assert top.scores.tolist() == [[never, 9], [3, never], [2, never], [never, 5]]
