"""Properties of search on indexes with token weights (ColBERT-Att) or relations (TRIAL)."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ray_lir import storage
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import ConfigError, FormatError, IncompatibleError
from ray_lir.building.build import build_index
from ray_lir.building.compact import compact_index
from ray_lir.building.compress import LARGEST_WEIGHT
from ray_lir.building.update import update_index
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.folder import external_contract, save_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.relation import Relation, load_relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.exact import SCORE_ALL, ExactParams
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.plan import TopK
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.scoring.terms import DEFAULT_RELATION_CANDIDATES
from ray_lir.engines.stages import run_stages
from ray_lir.engines.warp import WarpParams
from ray_lir.engines.xtr import XtrParams
from ray_lir.index.relation import mish, mish_slope
from ray_lir.index.residuals import decompress
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, read_manifest, write_manifest
from tests.conformance.test_engines import EVERYTHING, TIGHT
from tests.support.hits import assert_same_hits
from tests.support.synthetic import collection, queries_about

DIM, NUM_DOCS = 32, 150
PLAIN = collection(NUM_DOCS, seed=3)
ASKED = [0, 7, 41, 88, 149]
CONFIG = {"clustering": ClusteringConfig(num_centroids=64)}
KINDS = ("weighted", "related", "by_cosine", "both")


def with_weights(embeddings: TokenEmbeddings, low: float, high: float, seed: int = 0) -> TokenEmbeddings:
    weights = np.random.default_rng(seed).uniform(low, high, embeddings.num_tokens).astype(np.float32)
    return TokenEmbeddings(embeddings.values, embeddings.offsets, embeddings.doc_ids, weights=weights)


def relation_of(alignment: str = "combined", dim: int = DIM, weight: float = 0.5) -> Relation:
    rng = np.random.default_rng(9)
    inner, outer = rng.normal(size=(dim, 2 * dim)) / np.sqrt(dim), 0.5 * rng.normal(size=(dim, dim)) / np.sqrt(dim)
    rows = 0.1 * rng.normal(size=(3, dim)) + np.array([[0], [1], [0]])
    return Relation(inner, *rows, outer, 0.1 * rng.normal(size=dim), weight, alignment)


DOCUMENTS = with_weights(PLAIN, 1, 1.5)
QUERIES = with_weights(queries_about(PLAIN, ASKED), 0.5, 1.5)
INPUTS = {
    "weighted": (DOCUMENTS, None),
    "related": (PLAIN, relation_of()),
    "by_cosine": (PLAIN, relation_of("cosine")),
    "both": (DOCUMENTS, relation_of()),
}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Build (once for each kind and number of shards) and open an index of the documents."""
    folder = tmp_path_factory.mktemp("indexes")

    def open_index(kind: str, num_shards: int = 1, kernels: str = "auto") -> Searcher:
        path = folder / f"{kind}-{num_shards}"
        if not path.exists():
            documents, relation = INPUTS[kind]
            build_index(documents, str(path), IndexConfig(num_shards=num_shards, **CONFIG), relation=relation)
        return Searcher.open(str(path), verify=True, kernels=kernels)

    return open_index


def decoded(searcher: Searcher, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the encoder's [m, D] vectors of a document, and the weights of its tokens."""
    shard, codec = searcher.shards[0], searcher.planner.codec
    tokens, _ = shard.tokens(np.array([number]))
    vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec) @ codec.rotation.T
    return vectors.astype(np.float64), np.ones(len(tokens)) if shard.weights is None else 1 + shard.weights[tokens].astype(np.float64)


def definition(
    searcher: Searcher,
    query: np.ndarray,
    weights: np.ndarray,
    number: int,
    relation: Relation | None,
    nearest: int | None = None,
    selectors: np.ndarray | None = None,
) -> float:
    """Return a document's score by docs/algorithms.md#51-score, 5.5 and 6.1, one pair at a time, without factoring."""

    def rel(previous: np.ndarray, current: np.ndarray) -> np.ndarray:
        x = relation.inner_weight @ np.concatenate([previous, current]) + relation.inner_bias
        z = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * relation.norm_weight + relation.norm_bias
        return relation.outer_weight @ (z * np.tanh(np.log1p(np.exp(z)))) + relation.outer_bias

    document, token_weights = decoded(searcher, number)
    total, aligned = 0.0, 0
    for i, token in enumerate(query):
        cosine = document @ token
        relations = np.zeros(len(document))
        if i and relation:
            pair = rel(query[i - 1], token)
            relations = np.array([relation.weight * rel(document[aligned], other) @ pair for other in document])
        compared = np.arange(len(document))
        if i and selectors is not None:
            compared = np.argsort(-document @ selectors[i], kind="stable")[:nearest]
        best = int(min(compared, key=lambda j: (-(cosine + relations)[j], j)))
        total += weights[i] * (token_weights[best] * cosine[best] + relations[best])
        aligned = int(cosine.argmax()) if relation and relation.alignment == "cosine" else best
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_exact_search_gives_the_scores_of_the_definition(index, kind):
    searcher = index(kind, kernels="reference")
    query, weights = QUERIES[2].astype(np.float64), QUERIES.weights[QUERIES.offsets[2] : QUERIES.offsets[3]]
    top = searcher.search(QUERIES.slice(2, 3), 8, "exact")[0]
    expected = [definition(searcher, query, weights, number, INPUTS[kind][1]) for number in top.documents.tolist()]
    np.testing.assert_allclose(top.scores, expected, rtol=0, atol=1e-4)
    fast = dict(zip(*_answers(index(kind).search(QUERIES.slice(2, 3), 20, "exact")[0]), strict=True))
    rounding = 0.05 if INPUTS[kind][1] else 0.02  # five relations, each with an error of 1% of a spread of 0.4
    assert np.mean([abs(fast[number] - score) < rounding for number, score in zip(top.documents.tolist(), expected, strict=True)]) > 0.8


def _answers(top: TopK) -> tuple[list[int], list[float]]:
    return top.documents.tolist(), top.scores.tolist()


def test_weights_and_relations_change_the_scores(index):
    sums = [index(kind).search(QUERIES.slice(2, 3), NUM_DOCS, "exact")[0].scores.sum() for kind in KINDS]
    assert np.diff(np.sort(sums)).min() > 0.1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_sharded_equals_unsharded_with_tight_cuts_too(index, kind, engine):
    for params in (engine, TIGHT.get(engine, engine)):
        assert_same_hits(index(kind).search(QUERIES, 6, params), index(kind, 5).search(QUERIES, 6, params))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_exhaustive_probing_is_exact(index, kind, engine):
    assert_same_hits(index(kind).search(QUERIES, 20, "exact"), index(kind, 5).search(QUERIES, 20, EVERYTHING[engine]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_queries_searched_together_and_alone_have_equal_hits(index, kind, engine):
    together = index(kind).search(QUERIES, 10, engine)
    for number in range(len(QUERIES)):
        assert_same_hits([together[number]], index(kind).search(QUERIES.slice(number, number + 1), 10, engine))


@pytest.mark.parametrize("kind", KINDS)
def test_a_documents_score_does_not_depend_on_other_documents(index, kind):
    searcher = index(kind)
    whole = searcher.search(QUERIES, NUM_DOCS, "exact")
    for number in (3, 90):
        for top, alone in zip(whole, searcher.search(QUERIES, 1, "exact", only=np.array([number])), strict=True):
            assert alone.scores[0] == top.scores[top.documents == number][0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_filters_and_tombstones_apply_before_top_k(index, kind, engine):
    searcher = index(kind, 5)
    only = np.flatnonzero(np.random.default_rng(4).random(NUM_DOCS) < 0.4)
    everything = index(kind).search(QUERIES, NUM_DOCS, "exact")
    allowed = [np.isin(top.documents, only) for top in everything]
    expected = [TopK(top.scores[kept][:9], top.documents[kept][:9]) for top, kept in zip(everything, allowed, strict=True)]
    assert_same_hits(expected, searcher.search(QUERIES, 9, EVERYTHING[engine], only=only))
    gone = np.setdiff1d(np.arange(NUM_DOCS), only)
    shards = tuple(
        dataclasses.replace(s, deleted=(gone[(gone >= s.first_document) & (gone < s.first_document + s.num_docs)] - s.first_document))
        for s in searcher.shards
    )
    after = dataclasses.replace(searcher, shards=shards)
    for params in (engine, TIGHT.get(engine, engine)):
        assert_same_hits(searcher.search(QUERIES, 4, params, only=only), after.search(QUERIES, 4, params))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_masked_query_tokens_change_nothing_at_any_position(index, kind, engine):
    padded = []
    for number in range(len(QUERIES)):
        query = QUERIES.slice(number, number + 1)
        padded.append(_insert_zeros(query, len(query.values) // 2))
    for plain, with_padding in zip(
        index(kind).search(QUERIES, 10, engine), index(kind).search(concatenate(padded), 10, engine), strict=True
    ):
        np.testing.assert_array_equal(plain.documents, with_padding.documents)
        np.testing.assert_allclose(plain.scores, with_padding.scores, atol=1e-5)


def _insert_zeros(query: TokenEmbeddings, place: int) -> TokenEmbeddings:
    values = np.insert(query.values, [place, place], 0, axis=0)
    weights = np.insert(query.weights, [place, place], 1)
    return TokenEmbeddings(values, np.array([0, len(values)]), query.doc_ids, weights=weights)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_permuting_documents_only_renumbers(index, kind, engine):
    usual = index(kind)
    order, shard = np.random.default_rng(3).permutation(NUM_DOCS), usual.shards[0]
    tokens, offsets = shard.tokens(order)
    names = ("codes", "residuals", "scales", *(("weights",) if shard.weights is not None else ()))
    arrays = {name: getattr(shard, name)[tokens] for name in names}
    permuted = dataclasses.replace(usual, shards=(dataclasses.replace(shard, doc_offsets=offsets, **arrays),))
    for left, right in zip(usual.search(QUERIES, 15, engine), permuted.search(QUERIES, 15, engine), strict=True):
        assert dict(zip(*_answers(left), strict=True)) == dict(zip(order[right.documents].tolist(), right.scores.tolist(), strict=True))


@pytest.mark.parametrize("engine", ["scan", "plaid"])
def test_candidates_are_those_of_an_index_without_token_weights(index, engine):
    """Centroid scores leave token weights out, so the stages before rescoring keep the candidates of plain MaxSim."""
    weighted = index("weighted")
    bare = dataclasses.replace(weighted, shards=tuple(dataclasses.replace(shard, weights=None) for shard in weighted.shards))
    candidates = {"scan": ScanParams(ncandidates=9), "plaid": PlaidParams(nprobe=2, ncandidates=36)}[engine]
    for weighted_top, bare_top in zip(weighted.search(QUERIES, 9, candidates), bare.search(QUERIES, 9, candidates), strict=True):
        assert set(weighted_top.documents.tolist()) == set(bare_top.documents.tolist()) and not np.array_equal(
            weighted_top.scores, bare_top.scores
        )


@pytest.mark.parametrize("kind", KINDS)
def test_contributions_of_an_explanation_add_up_to_the_score(index, kind):
    searcher = index(kind, 5)
    query = QUERIES.slice(1, 2)
    top = searcher.search(query, 3, "plaid")[0]
    for number, score in zip(*_answers(top), strict=True):
        trace, matches = explain(searcher, query, number, 3, "plaid")
        assert trace.score == score
        assert matches.contributions.sum() == pytest.approx(score, abs=0.05)


def test_stored_weights_have_a_relative_error_of_their_difference_from_one_below_a_thousandth(index):
    stored = np.concatenate([shard.weights for shard in index("weighted", 5).shards]).astype(np.float64) + 1
    assert (np.abs(stored - DOCUMENTS.weights) <= np.abs(DOCUMENTS.weights - 1) / 2048 + 1e-7).all()


@pytest.mark.parametrize("kind", ["weighted", "both"])
def test_updates_and_compaction_keep_the_weights(tmp_path: Path, kind):
    documents, relation = INPUTS[kind]
    first, second = documents.slice(0, 100), documents.slice(100, NUM_DOCS)
    path = str(tmp_path / "index")
    build_index(first, path, IndexConfig(num_shards=2, **CONFIG), relation=relation)
    update_index(path, second, delete=["doc-3"])
    updated = Searcher.open(path, verify=True)
    assert [len(shard.weights) for shard in updated.shards] == [len(shard.codes) for shard in updated.shards]
    before = updated.search(QUERIES, 20, "exact")
    compact_index(path)
    compact = Searcher.open(path, verify=True)
    assert len(compact.shards) == 2
    for before_top, after_top in zip(before, compact.search(QUERIES, 20, "exact"), strict=True):
        assert updated.doc_ids(before_top.documents) == compact.doc_ids(after_top.documents)
        np.testing.assert_array_equal(before_top.scores, after_top.scores)


def test_an_update_without_the_weights_of_the_index_is_refused_and_changes_nothing(tmp_path: Path):
    path = str(tmp_path / "index")
    build_index(DOCUMENTS.slice(0, 50), path, IndexConfig(**CONFIG))
    with pytest.raises(IncompatibleError, match="no token weights"):
        update_index(path, PLAIN.slice(50, 60))
    assert Searcher.open(path).manifest.num_docs == 50


def contract(scorer: str, *weighs: str) -> EncoderContract:
    return external_contract(DIM).model_copy(update={"scorer": scorer, "weighs": weighs})


def test_an_index_without_its_scorers_data_is_refused_with_the_fix(tmp_path: Path):
    path = str(tmp_path / "index")
    with pytest.raises(IncompatibleError, match="lacks the relation encoder.*give build_index"):
        build_index(PLAIN, path, contract=contract("trial", "queries"))
    with pytest.raises(IncompatibleError, match="no token weights, but scorer attention needs"):
        build_index(PLAIN, path, contract=contract("attention", "documents"))
    with pytest.raises(IncompatibleError, match="uses no weights"):
        build_index(DOCUMENTS, path, contract=contract("maxsim"))
    with pytest.raises(IncompatibleError, match="lacks token weights.*encode the corpus"):
        build_index(PLAIN, path, contract=contract("attention"))
    with pytest.raises(ConfigError, match="scale the weights down"):
        build_index(with_weights(PLAIN, 0, 10 * LARGEST_WEIGHT), path)
    assert not (tmp_path / "index" / "LATEST").exists()
    build_index(PLAIN, path, IndexConfig(**CONFIG), contract=contract("trial", "queries"), relation=relation_of())
    assert len(Searcher.open(path).search(QUERIES, 5)) == len(QUERIES)
    with pytest.raises(IncompatibleError, match="the queries have no token weights, but scorer trial needs"):
        Searcher.open(path).search(queries_about(PLAIN, ASKED), 5)


def test_an_index_without_its_weights_or_relation_is_refused_on_opening(tmp_path: Path):
    path = tmp_path / "index"
    build_index(DOCUMENTS, str(path), IndexConfig(**CONFIG), relation=relation_of())
    manifest = Searcher.open(str(path)).manifest
    kept = [tuple(file for file in shard.files if not file.name.endswith("/weights.npy")) for shard in manifest.shards]
    without = tuple(shard.model_copy(update={"files": files}) for shard, files in zip(manifest.shards, kept, strict=True))
    write_manifest(str(path / "versions" / "1" / MANIFEST), manifest.model_copy(update={"shards": without}))
    with pytest.raises(IncompatibleError, match="lacks the document weights in shards/"):
        Searcher.open(str(path))
    write_manifest(str(path / "versions" / "1" / MANIFEST), manifest)
    relation = path / manifest.relation.name
    relation.write_bytes(relation.read_bytes()[:-1])
    with pytest.raises(FormatError, match="relation.*truncated or altered"):
        Searcher.open(str(path))


def test_a_relation_of_other_dimensions_or_a_damaged_one_is_refused(tmp_path: Path):
    with pytest.raises(FormatError, match="32 dimensions, found one of 16"):
        build_index(PLAIN, str(tmp_path / "index"), IndexConfig(**CONFIG), relation=relation_of(dim=16))
    for name, content in {"cut": relation_of().to_bytes()[:200], "empty": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FormatError, match="relation encoder"):
            load_relation(str(tmp_path / name), DIM)
    (tmp_path / "whole").write_bytes(relation_of("cosine").to_bytes())
    again = load_relation(str(tmp_path / "whole"), DIM)
    assert again.alignment == "cosine" and again.weight == 0.5
    np.testing.assert_allclose(again.inner_weight, relation_of().inner_weight, rtol=1e-6)


def test_weights_that_are_negative_or_not_finite_are_refused():
    for bad in (-1.0, np.nan, np.inf):
        with pytest.raises(ConfigError, match="at least 0 and finite"):
            TokenEmbeddings(PLAIN.values[:1], np.array([0, 1]), ["d"], weights=np.array([bad]))


def test_embeddings_keep_their_relation_and_the_index_has_a_copy(tmp_path: Path):
    saved = save_embeddings(str(tmp_path / "embeddings"), PLAIN, relation=relation_of())
    again = read_manifest(str(tmp_path / "embeddings" / MANIFEST), EmbeddingsManifest, "jobs.encode")
    assert again.relation == saved.relation
    index = build_index(str(tmp_path / "embeddings"), str(tmp_path / "index"), IndexConfig(**CONFIG))
    assert storage.sha256(str(tmp_path / "index" / index.relation.name)) == saved.relation.sha256


def test_a_relation_with_weight_zero_gives_maxsim(tmp_path: Path):
    for name, relation in {"plain": None, "none": relation_of(weight=0.0)}.items():
        build_index(PLAIN, str(tmp_path / name), IndexConfig(**CONFIG), relation=relation)
    assert_same_hits(*(Searcher.open(str(tmp_path / name)).search(QUERIES, 10, "exact") for name in ("plain", "none")))


@pytest.mark.parametrize("weight", [0.01, 0.1, 0.5])
@pytest.mark.parametrize("alignment", ["combined", "cosine"])
def test_skipped_relations_could_not_reach_the_top_k(tmp_path, weight, alignment):
    """Bounds skip relations of documents that cannot be among the best; the top k equals that of all exact scores, to the bit."""
    documents = collection(400, seed=5)
    build_index(documents, str(tmp_path), IndexConfig(num_shards=1, **CONFIG), relation=relation_of(alignment, weight=weight))
    for kernels in ("reference", "auto"):
        searcher = Searcher.open(str(tmp_path), kernels=kernels)
        shard, codec = searcher.shards[0], searcher.planner.codec
        for plan in searcher.planner.plan(queries_about(documents, [3, 90, 222]), 5, "exact"):
            everything = dataclasses.replace(plan, stage_limits=(400,))
            [(best, _)] = SCORE_ALL.run([plan], shard, codec, searcher.planner.kernels, [None])
            [(scores, _)] = SCORE_ALL.run([everything], shard, codec, searcher.planner.kernels, [None])
            assert np.isfinite(scores).all() and (weight > 0.01 or np.isfinite(best).sum() < 100)
            np.testing.assert_array_equal(best[np.isfinite(best)], scores[np.isfinite(best)])
            assert (scores[np.isneginf(best)] < np.sort(best)[-5]).all()


LIMITED = {
    "exact": ExactParams(relation_candidates=2, relation_documents=9),
    "scan": ScanParams(ncandidates=20, relation_candidates=2, relation_documents=9),
    "plaid": PlaidParams(nprobe=2, ncandidates=80, relation_candidates=2, relation_documents=9),
    "warp": WarpParams(nprobe=2, rescore=20, relation_candidates=2, relation_documents=9),
    "xtr": XtrParams(rescore=20, relation_candidates=2, relation_documents=9),
}


@pytest.mark.parametrize("engine", LIMITED)
def test_limited_relations_do_not_depend_on_sharding(index, engine):
    one, five = (index("related", shards).search(QUERIES, 6, LIMITED[engine]) for shards in (1, 5))
    assert_same_hits(one, five)
    assert one[0].params.relation_candidates == 2 and one[0].params.relation_documents == 9


@pytest.mark.parametrize("kind", ["related", "by_cosine", "both"])
def test_limits_above_all_tokens_and_documents_are_exact(index, kind):
    params = ExactParams(relation_candidates=10_000, relation_documents=10_000)
    assert_same_hits(index(kind).search(QUERIES, 20, "exact"), index(kind).search(QUERIES, 20, params))


def test_limited_relations_follow_the_definition(index):
    searcher = index("related", kernels="reference")
    query, weights = QUERIES[2].astype(np.float64), QUERIES.weights[QUERIES.offsets[2] : QUERIES.offsets[3]]
    [limited] = searcher.search(QUERIES.slice(2, 3), 8, ExactParams(relation_candidates=2))
    assert limited.params.relation_documents == 26
    [plan] = searcher.planner.plan(QUERIES.slice(2, 3), 8, ExactParams(relation_candidates=2))
    selectors = plan.scorer_terms.selectors.vectors @ searcher.planner.codec.rotation.T
    expected = [definition(searcher, query, weights, number, relation_of(), 2, selectors) for number in limited.documents.tolist()]
    np.testing.assert_allclose(limited.scores, expected, rtol=0, atol=1e-4)
    everything = [definition(searcher, query, weights, number, relation_of()) for number in limited.documents.tolist()]
    assert np.abs(np.subtract(everything, expected)).max() > 0.01


def test_only_the_best_documents_to_first_order_get_relations(index):
    searcher = index("related")
    codec, kernels = searcher.planner.codec, searcher.kernels
    for plan in searcher.planner.plan(QUERIES, 3, ExactParams(relation_documents=5)):
        [by_first_order], [found] = run_stages([plan], searcher.shards, codec, kernels, [None]).kept
        plain = dataclasses.replace(plan, query=plan.approximation, scorer_terms=None, approximation=None, stage_limits=(5,))
        [[best]] = run_stages([plain], searcher.shards, codec, kernels, [None]).kept
        np.testing.assert_array_equal(by_first_order.documents, best.documents)
        assert len(found.documents) == 3 and np.isin(found.documents, best.documents).all()


def test_the_slope_of_mish_is_its_derivative():
    values = np.linspace(-40, 40, 2001)
    np.testing.assert_allclose(mish_slope(values), (mish(values + 1e-4) - mish(values - 1e-4)) / 2e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["related", "by_cosine"])
def test_first_order_relations_explain_most_of_the_relations(index, kind):
    searcher = index(kind)
    shard, codec, kernels = searcher.shards[0], searcher.planner.codec, searcher.kernels
    for plan in searcher.planner.plan(QUERIES, NUM_DOCS, ExactParams(relation_documents=1)):
        whole = plan.scorer_terms.scores(plan.query, shard, codec, kernels)
        plain, linear = (
            kernels.residual_maxsim([query.vectors], [query.weights], [kernels.centroid_scores(query.vectors, codec)], shard, codec)[0]
            for query in (plan.query, plan.approximation)
        )
        assert (whole - linear).std() < 0.8 * (whole - plain).std()


def test_an_explanation_shows_that_relations_were_limited(index):
    searcher = index("related")
    [answer] = searcher.search(QUERIES.slice(2, 3), 6, LIMITED["scan"])
    number = int(answer.documents[0])
    traced, matches = explain(searcher, QUERIES.slice(2, 3), number, 6, LIMITED["scan"])
    assert [stage.name for stage in traced.stages] == ["score_codes", "rescore", "relate"]
    assert traced.score == answer.scores[0] and "relation_candidates" in traced.stages[-1].what
    assert matches.contributions.sum() == pytest.approx(traced.score, abs=0.05)
    exact, _ = explain(searcher, QUERIES.slice(2, 3), number, 6, "exact")
    assert [stage.name for stage in exact.stages] == ["score_all"]


def test_engines_without_rescoring_and_other_scorers_ignore_the_limits(index):
    for params in (WarpParams(rescore=0), XtrParams()):
        limited = params.model_copy(update={"relation_candidates": 2})
        assert_same_hits(index("related").search(QUERIES, 6, params), index("related").search(QUERIES, 6, limited))
    assert_same_hits(
        index("weighted").search(QUERIES, 6, ExactParams()), index("weighted").search(QUERIES, 6, ExactParams(relation_candidates=1))
    )


def test_auto_limits_relations_unless_the_quality_is_exact(index):
    for quality, expected in (("fast", DEFAULT_RELATION_CANDIDATES), ("balanced", DEFAULT_RELATION_CANDIDATES), ("exact", None)):
        related, plain = (index(kind).planner.plan(QUERIES, 6, "auto", quality)[0] for kind in ("related", "weighted"))
        assert related.params.relation_candidates == expected and plain.params.relation_candidates is None
    for engine in VECTOR_ENGINES:
        assert index("related").planner.plan(QUERIES, 6, engine)[0].params.relation_candidates is None
