"""Fixed-dimensional encodings: their dot products approximate MaxSim; and the comparison of their candidates with scan's."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench.comparison import collection as bench_collection
from bench.comparison import fde, muvera
from bench.comparison.fde import FixedDimensionalEncoding
from bench.peers import inputs
from bench.peers.inputs import Texts
from ray_lir.embeddings.folder import save_embeddings
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from tests.support.synthetic import collection, exact_scores, queries_about


def texts(*each: list[list[float]]) -> Texts:
    return Texts(np.array([token for text in each for token in text], np.float32), np.cumsum([0, *(len(text) for text in each)]))


def unit_texts(num_texts: int, num_tokens: int, dim: int, seed: int = 0) -> Texts:
    values = np.random.default_rng(seed).normal(size=(num_texts * num_tokens, dim)).astype(np.float32)
    return Texts(values / np.linalg.norm(values, axis=1, keepdims=True), np.arange(num_texts + 1) * num_tokens)


ONE_PLANE = FixedDimensionalEncoding(np.array([[1.0], [0.0]], np.float32), None, 1, None, None, 4)
"""Two partitions: the first coordinate is negative, or positive."""


def test_a_small_case_by_hand() -> None:
    query = texts([[1, 0], [0.8, 0.6], [-0.6, 0.8]])
    documents = texts([[0.6, 0.8], [0.8, -0.6]], [[-1, 0], [0, 1], [0.6, -0.8]])
    # sums of the query: (-.6, .8) on the negative side, (1.8, .6) on the positive
    assert ONE_PLANE.encode_queries(query)[0] == pytest.approx([-0.6, 0.8, 1.8, 0.6])
    # the first document has no token on the negative side: the first of its two tokens, which differ in one sign each, fills it
    first, second = ONE_PLANE.encode_documents(documents)
    assert first == pytest.approx([0.6, 0.8, 0.7, 0.1])
    # 0 is not positive
    assert second == pytest.approx([-0.5, 0.5, 0.6, -0.8])
    assert (ONE_PLANE.encode_documents(documents) @ ONE_PLANE.encode_queries(query)[0]).tolist() == pytest.approx([1.6, 1.3])


def test_an_empty_partition_gets_the_token_with_the_fewest_other_signs() -> None:
    planes = replace(ONE_PLANE, planes_DH=np.eye(2, dtype=np.float32), final_dim=8)
    (encoded,) = planes.encode_documents(texts([[-0.6, -0.8], [0.8, 0.6]]))
    # partitions: 0 both negative, 1 first positive, 2 second positive, 3 both; 1 and 2 are as near to one token as to the other
    assert encoded == pytest.approx([-0.6, -0.8] * 3 + [0.8, 0.6])
    (encoded,) = planes.encode_documents(texts([[-0.6, -0.8], [0.8, -0.6]]))
    assert encoded == pytest.approx([-0.6, -0.8, 0.8, -0.6] * 2)


def test_the_dot_product_is_maxsim_if_no_two_tokens_share_a_partition() -> None:
    documents = unit_texts(3, 4, 16)
    encoding = FixedDimensionalEncoding.random(16, 3, 10)
    query = Texts(documents[1][:3], np.array([0, 3]))
    assert encoding.encode_documents(documents)[1] @ encoding.encode_queries(query)[0] == pytest.approx(3, abs=1e-4)


def test_texts_are_encoded_alone_as_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fde, "BLOCK_TEXTS", 4)
    many = unit_texts(10, 5, 16)
    encoding = FixedDimensionalEncoding.random(16, 3, 2, 8)
    together = encoding.encode_documents(many)
    assert together.shape == (10, encoding.final_dim) == (10, 3 * 4 * 8)
    for number, row in enumerate(together):
        assert encoding.encode_documents(Texts(many[number], np.array([0, 5])))[0] == pytest.approx(row, abs=1e-6)


def test_projections_keep_dot_products_on_average() -> None:
    query, documents = unit_texts(1, 8, 32, seed=1), unit_texts(20, 12, 32)
    whole = FixedDimensionalEncoding.random(32, 200, 2)
    exact = whole.encode_documents(documents) @ whole.encode_queries(query)[0]
    inner = replace(whole, projection_DRP=FixedDimensionalEncoding.random(32, 200, 2, 8).projection_DRP, final_dim=200 * 4 * 8)
    assert np.corrcoef(inner.encode_documents(documents) @ inner.encode_queries(query)[0], exact)[0, 1] > 0.9
    last = FixedDimensionalEncoding.random(32, 200, 2, final_dim=10_000)
    assert np.array_equal(last.planes_DH, whole.planes_DH)
    assert np.allclose(last.final_projection(whole.encode_documents(documents)), last.encode_documents(documents), atol=1e-6)
    assert last.encode_documents(documents).shape == (20, 10_000)
    assert np.corrcoef(last.encode_documents(documents) @ last.encode_queries(query)[0], exact)[0, 1] > 0.9


def test_a_common_vector_gives_the_mean_cosine() -> None:
    vectors = unit_texts(1, 2000, 32).values
    assert muvera.cosine_of(vectors) == pytest.approx(0, abs=0.01)
    pair = np.array([[1, 0], [0.6, 0.8]])
    assert muvera.cosine_of(pair) == pytest.approx(0.6)
    moved = muvera.add_common(vectors, muvera.common_vector(vectors, 0.7))
    assert muvera.cosine_of(moved.astype(np.float32)) == pytest.approx(0.7, abs=0.005)
    assert np.linalg.norm(moved.astype(np.float32), axis=1) == pytest.approx(1, abs=2e-3)


def test_candidates_are_found_in_any_order() -> None:
    assert muvera.found(np.array([[4, 2, 1], [9, -1, -1]]), np.array([[1, 2, 3], [8, 9, 7]]), 2) == pytest.approx((1 + 1 / 2) / 2)


def test_all_documents_as_candidates_give_the_answer_of_exact_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    documents = collection(num_docs=60, max_tokens=12)
    queries = queries_about(documents, [3, 8, 13])
    inputs.save(tmp_path / "small", "queries", Texts(queries.values, queries.offsets))
    doc_ids = bench_collection.write_copies(documents, 1, save_embeddings(str(tmp_path / "source"), documents), tmp_path / "small")
    about = {"doc_ids": doc_ids, "query_ids": ["a", "b", "c"], "qrels": None}
    (tmp_path / "small" / "about.json").write_text(json.dumps(about))
    for name, value in {"K": 10, "CANDIDATES": (12, 60), "ENCODINGS": {"few": (4, 2, 4, None)}, "STORED_QUERIES": 2}.items():
        monkeypatch.setattr(muvera, name, value)
    changed = muvera.open_variant(tmp_path, ".9")
    assert muvera.mean_cosine(changed.folder) == pytest.approx(0.9, abs=0.01)
    assert len(inputs.load(changed.folder, "queries")) == 2
    assert muvera.open_variant(tmp_path, ".9").query_ids == ["a", "b"]
    for variant in (muvera.RAW, ".9"):
        case = muvera.open_variant(tmp_path, variant)
        muvera.prepare(case, ["few"])
        rows = muvera.measure(case, 2, ["few"])
        exact = next(row for row in rows if row["method"] == "exact")
        whole = [row for row in rows if row.get("candidates") == 60 and row.get("backend") != "IVF 8-bit"]
        assert {row["method"] for row in whole} == {"scan", "muvera"}
        for row in whole:
            assert (row["recall@10"], row["found@10"]) == (exact["recall@10"], 1), row
        muvera.write(tmp_path, variant, {"mean_cosine": 0.1, "queries": 2, "rows": rows})
    assert set(json.loads((tmp_path / "muvera.json").read_text())["variants"]) == {muvera.RAW, ".9"}


def test_methods_are_compared_at_equal_times() -> None:
    def row(method: str, ms: float, first: float, second: float) -> dict:
        about = {"encoding": "5,120", "backend": "flat 8-bit"} if method == "muvera" else {}
        return {"method": method, **about, "candidates": 128, "cpu_ms": {"p50": ms}, "recall@10": first, "recall@100": second}

    scan, fast, slow = row("scan", 3, 0.9, 0.8), row("muvera", 2, 0.7, 0.6), row("muvera", 9, 0.897, 0.9)
    (line,) = muvera.equal_times([scan, fast, slow])
    assert line == "128 | 3.0 | 0.900 | 0.800 | 0.700 | 0.600 | 9.0 | MUVERA 5,120, flat 8-bit, 128 |"
    (line,) = muvera.equal_times([row("scan", 1, 0.95, 0.8), fast, slow])
    assert line == "128 | 1.0 | 0.950 | 0.800 | none | none | not reached |  |"
    assert muvera.frontier([(3, 0.5), (1, 0.4), (2, 0.3), (4, 0.9)]) == [(1, 0.4), (3, 0.5), (4, 0.9)]


def test_a_candidate_generator_with_many_repetitions_ranks_like_maxsim() -> None:
    documents = collection(num_docs=60, max_tokens=12)
    encoding = FixedDimensionalEncoding.random(documents.dim, 100, 4)
    encoded = encoding.encode_documents(Texts(documents.values, documents.offsets))
    sources = list(range(0, 60, 6))
    queries: TokenEmbeddings = queries_about(documents, sources)
    for number, row in enumerate(encoding.encode_queries(Texts(queries.values, queries.offsets)) @ encoded.T):
        exact = exact_scores(queries.values[queries.offsets[number] : queries.offsets[number + 1]], documents)
        assert int(exact.argmax()) in np.argsort(-row)[:6]
