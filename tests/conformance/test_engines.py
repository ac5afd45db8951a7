"""Properties that every engine and every index must have: conformance over the registry."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lir.base.config import ClusteringConfig, CodecConfig, IndexConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.plan import TopK, merge
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.engines.xtr import XtrParams
from ray_lir.kernels import select
from ray_lir.search.searcher import Searcher
from tests.support.hits import assert_same_hits
from tests.support.synthetic import collection, exact_scores, queries_about, unit

DOCUMENTS = collection(300)
ASKED = [0, 5, 41, 99, 150, 222, 299]
QUERIES = queries_about(DOCUMENTS, ASKED)
EVERYTHING = {
    "exact": "exact",
    "scan": ScanParams(ncandidates=300),
    "plaid": PlaidParams(nprobe=10_000, centroid_score_threshold=-1.0, ncandidates=1200),
    "warp": WarpParams(nprobe=10_000, rescore=300),
    "xtr": XtrParams(k_prime=100_000, rescore=300),
}
"""Each engine with parameters that leave nothing out."""
TIGHT = {
    "scan": ScanParams(ncandidates=12),
    "plaid": PlaidParams(nprobe=2, ncandidates=16),
    "warp": WarpParams(nprobe=2, rescore=12),
    "xtr": XtrParams(k_prime=30, nprobe=9, imputation="p10"),
}
"""Each engine with parameters that cut many documents."""


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """Build (once for each configuration) and open an index of the documents."""
    folder = tmp_path_factory.mktemp("indexes")

    def open_index(num_shards: int = 1, nbits: int = 4, documents: TokenEmbeddings = DOCUMENTS, name: str = "") -> Searcher:
        path = folder / f"{name}{num_shards}-{nbits}"
        if not path.exists():
            config = IndexConfig(num_shards=num_shards, codec=CodecConfig(nbits=nbits), clustering=ClusteringConfig(num_centroids=128))
            build_index(documents, str(path), config, texts=[f"text of {doc_id}" for doc_id in documents.doc_ids])
        return Searcher.open(str(path), verify=True)

    return open_index


def test_every_engine_is_in_the_conformance_suite():
    assert set(EVERYTHING) == set(VECTOR_ENGINES)


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_sharded_equals_unsharded(index, engine):
    for num_shards in (2, 7):
        assert_same_hits(index(1).search(QUERIES, 20, engine), index(num_shards).search(QUERIES, 20, engine))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_a_cut_smaller_than_the_candidates_is_made_over_all_shards(index, engine):
    params = TIGHT.get(engine, engine)
    assert_same_hits(index(1).search(QUERIES, 4, params), index(7).search(QUERIES, 4, params))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_exhaustive_probing_is_exact(index, engine):
    assert_same_hits(index(1).search(QUERIES, 20, "exact"), index(1).search(QUERIES, 20, EVERYTHING[engine]))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
@pytest.mark.parametrize("share", [0.0, 0.03, 0.3, 0.9])
def test_filters_apply_before_top_k(index, engine, share):
    searcher = index(7)
    only = np.flatnonzero(np.random.default_rng(4).random(300) < share)
    everything = index(1).search(QUERIES, 300, "exact")
    allowed = [np.isin(top.documents, only) for top in everything]
    expected = [TopK(top.scores[kept][:9], top.documents[kept][:9]) for top, kept in zip(everything, allowed, strict=True)]
    assert_same_hits(expected, searcher.search(QUERIES, 9, EVERYTHING[engine], only=only))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_deleted_documents_are_filtered_out_of_every_search(index, engine):
    searcher = index(7)
    gone = np.flatnonzero(np.random.default_rng(5).random(300) < 0.4)
    deleted = [gone[(gone >= s.first_document) & (gone < s.first_document + s.num_docs)] - s.first_document for s in searcher.shards]
    shards = tuple(
        dataclasses.replace(shard, deleted=numbers.astype(np.uint32) if len(numbers) else None)
        for shard, numbers in zip(searcher.shards, deleted, strict=True)
    )
    left = np.setdiff1d(np.arange(300), gone)
    after = dataclasses.replace(searcher, shards=shards)
    for params in (engine, TIGHT.get(engine, engine)):
        assert_same_hits(searcher.search(QUERIES, 4, params, only=left), after.search(QUERIES, 4, params))
    ids = searcher.doc_ids([gone[0], left[0]])
    assert searcher.find(ids) == {ids[0]: gone[0], ids[1]: left[0]}
    assert after.find(ids) == {ids[1]: left[0]}


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_a_query_about_a_document_finds_it(index, engine):
    assert [top.documents[0] for top in index(1).search(QUERIES, 5, engine)] == ASKED


def test_exact_at_eight_bits_ranks_as_the_uncompressed_embeddings(index):
    for query, top in zip(QUERIES, index(1, nbits=8).search(QUERIES, 10, "exact"), strict=True):
        expected = exact_scores(query, DOCUMENTS)
        np.testing.assert_allclose(top.scores, expected[top.documents], atol=0.02)
        assert set(top.documents[:3].tolist()) <= set(np.argsort(-expected)[:5].tolist())


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_permuting_documents_only_renumbers(tmp_path, engine):
    """One codec: the same vectors in another order."""
    searcher = _with_codec_of(tmp_path, np.arange(300))
    order = np.random.default_rng(3).permutation(300)
    permuted = _with_codec_of(tmp_path, order)
    for left, right in zip(searcher.search(QUERIES, 15, engine), permuted.search(QUERIES, 15, engine), strict=True):
        assert dict(zip(left.documents.tolist(), left.scores.tolist(), strict=True)) == dict(
            zip(order[right.documents].tolist(), right.scores.tolist(), strict=True)
        )


def _with_codec_of(tmp_path, order: np.ndarray) -> Searcher:
    """Open an index with the documents in another order and the codec of the usual order."""
    path = tmp_path / "usual"
    if not path.exists():
        build_index(DOCUMENTS, str(path), IndexConfig(clustering=ClusteringConfig(num_centroids=128)))
    usual = Searcher.open(str(path))
    shard = usual.shards[0]
    tokens, offsets = shard.tokens(order)
    arrays = {name: getattr(shard, name)[tokens] for name in ("codes", "residuals", "scales")}
    return dataclasses.replace(usual, shards=(dataclasses.replace(shard, doc_offsets=offsets, **arrays),))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_queries_searched_together_and_alone_have_equal_hits(index, engine):
    together = index(2).search(QUERIES, 10, engine)
    for number in range(len(QUERIES)):
        assert_same_hits([together[number]], index(2).search(QUERIES.slice(number, number + 1), 10, engine))


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_padding_never_wins_over_negative_similarity(index, engine):
    """Zero vectors in a query are masked tokens: they change nothing."""
    padded = TokenEmbeddings.of([np.concatenate([query, np.zeros((5, 32), np.float16)]) for query in QUERIES])
    assert_same_hits(index(1).search(QUERIES, 10, engine), index(1).search(padded, 10, engine))
    opposite = TokenEmbeddings.of([-DOCUMENTS[5][:1]])
    worst = index(1).search(opposite, 300, "exact")[0]
    assert worst.scores.min() < 0 and len(worst.documents) == 300


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
@pytest.mark.parametrize("num_tokens", [1, 4096])
def test_very_short_and_very_long_queries_are_answered(index, engine, num_tokens):
    query = TokenEmbeddings.of([np.tile(DOCUMENTS[5][:2], (num_tokens, 1))[:num_tokens]])
    params = XtrParams(k_prime=50, rescore=3) if engine == "xtr" else engine
    top = index(2).search(query, 3, params)[0]
    expected = exact_scores(query[0], DOCUMENTS)
    assert top.documents[0] == expected.argmax() and top.scores[0] == pytest.approx(expected.max(), rel=5e-3)


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_a_shard_without_tokens_returns_no_hits(tmp_path, engine):
    documents = TokenEmbeddings.of([*DOCUMENTS, *[np.zeros((0, 32))] * 5])
    folder = tmp_path / "index"
    build_index(documents, str(folder), IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=32)))
    whole = Searcher.open(str(folder))
    empty = dataclasses.replace(whole.shards[1], **_without_tokens(whole.shards[1]))
    top = dataclasses.replace(whole, shards=(whole.shards[0], empty)).search(QUERIES, 300, engine)
    assert all((answer.documents < empty.first_document).all() and len(answer.documents) for answer in top)


def _without_tokens(shard) -> dict[str, np.ndarray]:
    """Return the arrays of a shard with only empty documents."""
    kept = {name: getattr(shard, name)[:0] for name in ("codes", "residuals", "scales")}
    return kept | {"doc_offsets": shard.doc_offsets * 0}


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_k_above_the_number_of_documents_returns_all_documents(index, engine):
    top = index(2).search(QUERIES.slice(0, 1), 5_000, EVERYTHING[engine])[0]
    assert len(top.documents) == 300 == len(np.unique(top.documents))
    assert (np.diff(top.scores) <= 0).all()


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 999),
    lengths=st.lists(st.integers(0, 9), min_size=4, max_size=30),
    num_shards=st.integers(1, 3),
    k=st.integers(1, 40),
    spread=st.sampled_from([0.0, 0.5, 1.0]),
    data=st.data(),
)
def test_an_engine_returns_as_many_documents_as_it_found(tmp_path_factory, seed, lengths, num_shards, k, spread, data):
    """An engine returns min(k, documents found): each stage fills its limit."""
    rng = np.random.default_rng(seed)
    lengths = [1, *lengths]
    documents = TokenEmbeddings.of([unit(rng.normal(size=(n, 16)) + 3 * spread) for n in lengths])
    root = str(tmp_path_factory.mktemp("counts") / "index")
    build_index(documents, root, IndexConfig(num_shards=num_shards))
    searcher = Searcher.open(root)
    queries = TokenEmbeddings.of([unit(rng.normal(size=(4, 16)) - spread), unit(rng.normal(size=(1, 16)))])
    drawn = data.draw(st.none() | st.sets(st.integers(0, len(lengths) - 1)))
    only = None if drawn is None else np.array(sorted(drawn), int)
    there = np.flatnonzero(np.array(lengths) > 0)
    there = there if only is None else np.intersect1d(there, only)
    for params in ("exact", ScanParams(), ScanParams(ncandidates=1), *EVERYTHING.values(), XtrParams(), XtrParams(rescore=1)):
        for top in searcher.search(queries, k, params, only=only):
            assert len(top.documents) == min(k, len(there)), params
    for params in ("plaid", "warp", PlaidParams(ncandidates=1), PlaidParams(centroid_score_threshold=9.0), WarpParams(rescore=1)):
        plans = searcher.planner.plan(queries, k, params)
        for plan, top in zip(plans, searcher.search(queries, k, params, only=only), strict=True):
            cells = np.unique(plan.clusters)
            found = np.concatenate([shard.first_document + searcher.kernels.candidates(cells, shard) for shard in searcher.shards])
            assert len(top.documents) == min(k, len(np.intersect1d(found, there))), params


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_queries_of_one_and_of_a_thousand_tokens_are_answered(index, engine):
    rng = np.random.default_rng(0)
    queries = TokenEmbeddings.of([DOCUMENTS[7][:1], rng.normal(size=(1000, 32)).astype(np.float16)])
    for top in index(2).search(queries, 3, engine):
        assert len(top.documents) == 3 and np.isfinite(top.scores).all()


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_a_query_without_tokens_scores_zero_everywhere(index, engine):
    top = index(1).search(TokenEmbeddings.of([np.zeros((4, 32))]), 5, engine)[0]
    assert not (top.scores != 0).any()


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_query_weights_of_one_change_nothing_and_zero_masks_a_token(index, engine):
    ones = TokenEmbeddings(QUERIES.values, QUERIES.offsets, QUERIES.doc_ids, weights=np.ones(QUERIES.num_tokens, np.float32))
    assert_same_hits(index(1).search(QUERIES, 10, engine), index(1).search(ones, 10, engine))
    weights = np.ones(6, np.float32)
    weights[3:] = 0
    silenced = TokenEmbeddings(QUERIES.values[:6], np.array([0, 6]), ["q"], weights=weights)
    shorter = TokenEmbeddings(QUERIES.values[:3], np.array([0, 3]), ["q"])
    assert_same_hits(index(1).search(shorter, 10, engine), index(1).search(silenced, 10, engine))


def test_documents_without_tokens_are_never_found_and_shift_no_numbers(tmp_path):
    matrices = [DOCUMENTS[i] if i % 3 else np.zeros((0, 32), np.float16) for i in range(60)]
    documents = TokenEmbeddings.of(matrices)
    build_index(documents, str(tmp_path / "index"), IndexConfig(num_shards=3))
    searcher = Searcher.open(str(tmp_path / "index"))
    for engine in VECTOR_ENGINES:
        top = searcher.search(queries_about(DOCUMENTS, [41]), 60, engine)[0]
        assert top.documents[0] == 41 and (top.documents % 3 != 0).all()


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_resolved_parameters_are_returned_and_the_searcher_does_not_change(index, engine):
    searcher = index(1)
    before = searcher.search(QUERIES, 10, engine)
    params = before[0].params.model_dump()
    assert params["engine"] == engine and None not in params.values()
    searcher.search(QUERIES, 3, EVERYTHING[engine])
    assert_same_hits(before, searcher.search(QUERIES, 10, before[0].params))


def test_documents_come_in_the_order_asked_for_over_all_shards(index):
    for num_shards in (1, 7):
        searcher = index(num_shards)
        assert searcher.doc_ids([299, 0, 150, 0]) == ["doc-299", "doc-0", "doc-150", "doc-0"]
        assert [row["text"] for row in searcher.documents([12, 3])] == ["text of doc-12", "text of doc-3"]
    with pytest.raises(ConfigError, match="0 to 299"):
        searcher.doc_ids([300])


def test_queries_of_other_dimensions_or_types_are_refused_with_the_fix(index):
    searcher = index(1)
    with pytest.raises(ConfigError, match="16 dimensions and the index 32"):
        searcher.search(TokenEmbeddings.of([np.ones((2, 16))]))
    for k in (0, 10**9):
        with pytest.raises(ConfigError, match="k must be between"):
            searcher.search(QUERIES, k)
    with pytest.raises(ConfigError, match="weights must be at least 0"):
        searcher.search(TokenEmbeddings(QUERIES.values[:1], np.array([0, 1]), ["q"], weights=np.array([-1.0])))
    assert searcher.search(QUERIES.slice(0, 0)) == []


@st.composite
def answers_of_parts(draw) -> list[TopK]:
    """Hits of three shards with distinct documents, in order, with many ties."""
    numbers = draw(st.lists(st.integers(0, 40), unique=True, max_size=30))
    shards = draw(st.lists(st.integers(0, 2), min_size=len(numbers), max_size=len(numbers)))
    scores = draw(st.lists(st.sampled_from([-1.5, 0.0, 0.25, 2.0]), min_size=len(numbers), max_size=len(numbers)))
    parts = []
    for shard in range(3):
        best = sorted((-score, number) for number, score, of in zip(numbers, scores, shards, strict=True) if of == shard)
        parts.append(TopK(np.array([-score for score, _ in best], np.float32), np.array([number for _, number in best], np.int64)))
    return parts


@given(parts=answers_of_parts(), k=st.integers(1, 12))
def test_merging_hits_is_associative_and_commutative_with_ties_to_the_lower_number(parts: list[TopK], k: int):
    kernels = select("reference")
    a, b, c = parts
    rows = [(-score, number) for part in parts for score, number in zip(part.scores.tolist(), part.documents.tolist(), strict=True)]
    expected = sorted(rows)[:k]
    for merged in (
        merge([a, b, c], k, kernels),
        merge([merge([a, b], k, kernels), c], k, kernels),
        merge([a, merge([b, c], k, kernels)], k, kernels),
        merge([c, a, b], k, kernels),
    ):
        assert list(zip((-merged.scores).tolist(), merged.documents.tolist(), strict=True)) == expected


def test_a_missing_truncated_or_changed_file_is_named_on_opening(tmp_path):
    path = tmp_path / "index"
    build_index(collection(30), str(path))
    residuals = next(path.glob("shards/*/residuals.npy"))
    good = residuals.read_bytes()
    residuals.write_bytes(good[:-7])
    with pytest.raises(FormatError, match=r"residuals\.npy.*truncated or altered"):
        Searcher.open(str(path))
    residuals.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    Searcher.open(str(path))
    with pytest.raises(FormatError, match=r"residuals\.npy.*sha256"):
        Searcher.open(str(path), verify=True)
    residuals.unlink()
    with pytest.raises(FormatError, match="no such file"):
        Searcher.open(str(path))


def test_a_newer_or_foreign_manifest_is_refused(tmp_path):
    path = tmp_path / "index"
    build_index(collection(30), str(path))
    manifest = path / "versions" / "1" / "manifest.json"
    value = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(value | {"format_version": 99}))
    with pytest.raises(FormatError, match="upgrade ray_lir"):
        Searcher.open(str(path))
    manifest.write_text(json.dumps(value | {"kind": "embeddings"}))
    with pytest.raises(FormatError, match="jobs.build_index"):
        Searcher.open(str(path))
    manifest.write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        Searcher.open(str(path))
    with pytest.raises(FormatError, match="check the path"):
        Searcher.open(str(tmp_path / "nothing"))
    with pytest.raises(FormatError, match="no such file"):
        Searcher.open(str(path), version=7)
