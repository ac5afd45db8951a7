"""The reference kernels against numbers by hand, golden vectors and definitions."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_lir.base.errors import ConfigError
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import VARIABLE, select
from ray_lir.kernels.reference import REFERENCE, document_blocks
from tests.support.golden_files import golden
from tests.support.synthetic import collection, exact_scores, queries_about

ONE = [np.ones(2, np.float32)]


def tokens_of(codes: np.ndarray, doc_offsets: np.ndarray) -> IndexShard:
    """Return a shard for kernels that read only codes."""
    none = np.zeros(0)
    return IndexShard(0, doc_offsets, codes, none, none, pa.table({}), int(codes.max(initial=0)) + 1)


def test_maxsim_by_hand():
    query = np.array([[1, 0], [0, 1]], np.float32)
    tokens = np.array([[1, 0], [0.6, 0.8], [0, -1]], np.float32)
    scores = REFERENCE.maxsim([query], ONE, tokens, np.array([0, 2, 3]))
    np.testing.assert_allclose(scores, [[1 + 0.8, 0 - 1]], atol=1e-6)


def test_an_empty_document_scores_minus_infinity_and_is_never_a_result():
    query = np.array([[1, 0], [0, 1]], np.float32)
    tokens = np.array([[0, -1.0]], np.float32)
    scores = REFERENCE.maxsim([query], ONE, tokens, np.array([0, 0, 1, 1]))[0]
    np.testing.assert_array_equal(scores, [-np.inf, -1, -np.inf])
    best, documents = REFERENCE.top_k(scores, np.arange(3), 3)
    np.testing.assert_array_equal(documents, [1])


def test_an_empty_document_with_weight_zero_does_not_score_nan():
    scores = REFERENCE.maxsim([np.ones((2, 2), np.float32)], [np.zeros(2, np.float32)], np.ones((1, 2), np.float32), np.array([0, 0, 1]))
    np.testing.assert_array_equal(scores, [[-np.inf, 0]])


def test_maxsim_matches_the_golden_vectors():
    g = golden("maxsim")
    tokens = np.concatenate([d[mask] for d, mask in zip(g["d"], g["d_mask"], strict=True)])
    offsets = np.concatenate([[0], np.cumsum(g["d_mask"].sum(axis=1))])
    queries = [q[mask] for q, mask in zip(g["q"], g["q_mask"], strict=True)]
    scores = REFERENCE.maxsim(queries, [np.ones(len(q)) for q in queries], tokens, offsets)
    np.testing.assert_allclose(scores, g["scores"], atol=2e-5)


def test_a_score_does_not_depend_on_the_documents_or_queries_beside_it():
    documents = collection(60)
    queries = [query.astype(np.float32) for query in queries_about(documents, [1, 7, 30])]
    weights = [np.ones(len(query), np.float32) for query in queries]
    tokens = documents.values.astype(np.float32)
    together = REFERENCE.maxsim(queries, weights, tokens, documents.offsets)
    for row, (query, weight) in enumerate(zip(queries, weights, strict=True)):
        for number in range(len(documents)):
            alone = REFERENCE.maxsim([query], [weight], documents[number].astype(np.float32), np.array([0, documents.lengths[number]]))
            assert alone[0, 0] == together[row, number]
        np.testing.assert_allclose(together[row], exact_scores(query, documents), atol=1e-5)


def test_query_weights_scale_the_contribution_of_a_token():
    documents = collection(10)
    query = queries_about(documents, [3])[0].astype(np.float32)
    tokens = documents.values.astype(np.float32)

    def score(weights: list[float]) -> np.ndarray:
        return REFERENCE.maxsim([query], [np.array(weights, np.float32)], tokens, documents.offsets)[0]

    n = len(query)
    parts = [score([1.0 if j == i else 0.0 for j in range(n)]) for i in range(n)]
    np.testing.assert_allclose(score([2.0] + [1.0] * (n - 1)), 2 * parts[0] + sum(parts[1:]), atol=1e-5)


@pytest.mark.parametrize("weighted", ["", "_weighted"])
def test_centroid_interaction_matches_the_golden_vectors(weighted):
    g = golden("plaid_dagger")
    table, shard = g["centroid_scores"], tokens_of(g["codes"], g["doc_offsets"])
    weights = g["w"] if weighted else np.ones(len(g["w"]))
    full = REFERENCE.centroid_maxsim(table, weights, shard)
    pruned = REFERENCE.centroid_maxsim(table, weights, shard, float(g["t_cs"]), g["candidates"])
    np.testing.assert_allclose(full[g["candidates"]], g["full" + weighted], atol=2e-5)
    np.testing.assert_allclose(pruned, g["pruned" + weighted], atol=2e-5)


def test_top_k_gives_ties_to_the_lower_number():
    scores = np.array([1, 3, 2, 3, 3], np.float32)
    best, documents = REFERENCE.top_k(scores, np.array([9, 8, 7, 2, 5]), 2)
    np.testing.assert_array_equal(documents, [2, 5])
    np.testing.assert_array_equal(best, [3, 3])


@given(st.lists(st.integers(-3, 3), max_size=40), st.integers(1, 50))
def test_top_k_is_a_sort_by_score_then_number(values, k):
    scores = np.array(values, np.float32)
    best, documents = REFERENCE.top_k(scores, np.arange(len(scores)), k)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert documents.tolist() == expected
    assert best.tolist() == [values[i] for i in expected]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=30), st.integers(1, 12))
def test_document_blocks_cover_every_document_once(lengths, block_tokens):
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    blocks = document_blocks(offsets, block_tokens)
    assert [start for start, *_ in blocks] == [0, *(stop for _, stop, *_ in blocks[:-1])] and blocks[-1][1] == len(lengths)
    for start, stop, first, last in blocks:
        assert (first, last) == (offsets[start], offsets[stop])
        assert last - first <= block_tokens or stop == start + 1


def test_unavailable_kernels_are_refused_with_the_fix():
    assert select("reference").name == "reference"
    for name in ("fastest", "reference:avx2", "cuda:0", ""):
        with pytest.raises(ConfigError, match="use auto, native, native:SET, cuda or reference"):
            select(name)


def test_a_changed_environment_variable_changes_what_auto_selects(monkeypatch):
    monkeypatch.delenv(VARIABLE, raising=False)
    default = select()
    monkeypatch.setenv(VARIABLE, "reference")
    assert select().name == "reference"
    for empty in ("", "  "):
        monkeypatch.setenv(VARIABLE, empty)
        assert select() == default
    monkeypatch.setenv(VARIABLE, "fastest")
    with pytest.raises(ConfigError, match=f"{VARIABLE} is 'fastest': unknown kernels"):
        select()
    assert select("reference").name == "reference"


def test_assignment_by_hand_scales_vectors_to_length_one():
    """The vector (0.1, 0) is nearest to (0.2, 0), but its direction (1, 0) is nearest to (1, 0)."""
    vectors, centroids = np.array([[0.1, 0], [0, 0]], np.float32), np.array([[0.2, 0], [1, 0]], np.float32)
    codes, nearness = REFERENCE.assign(vectors, centroids, euclidean=True)
    np.testing.assert_array_equal(codes, [1, 0])
    np.testing.assert_allclose(nearness, [1 * 1 - 1 / 2, 0 - 0.04 / 2], rtol=1e-6)
    np.testing.assert_array_equal(REFERENCE.nearest_cells(vectors, centroids, 2), [[1, 0], [0, 1]])
    np.testing.assert_array_equal(REFERENCE.assign_in_cells(vectors, centroids, np.array([0, 1, 2]), np.array([[0, 1], [0, 1]])), codes)
