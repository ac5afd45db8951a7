"""Explanations: contributions sum to the score, spans are words, and dropped documents have a stage and reason."""

from dataclasses import replace

import numpy as np
import pytest

from ray_lir.base.errors import ConfigError
from ray_lir.corpus.records import document_text
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines import ENGINES, VECTOR_ENGINES
from ray_lir.index.filters import Filters
from ray_lir.search.explain import explain, in_fields
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import DOCUMENTS
from tests.fixtures.tiny import QUERIES as TINY_QUERIES
from tests.support.repository import FIXTURES
from tests.support.served_index import QUERIES, make_index


@pytest.fixture(scope="module")
def searcher(tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return Searcher.open(str(make_index(tmp_path_factory.mktemp("explained"), num_docs=150, num_shards=3)))


@pytest.fixture(scope="module")
def queries(searcher: Searcher) -> TokenEmbeddings:
    return Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)


@pytest.mark.parametrize("engine", VECTOR_ENGINES)
def test_contributions_of_every_hit_add_up_to_its_score(searcher, queries, engine):
    for number in range(len(queries)):
        query = queries.slice(number, number + 1)
        [answer] = searcher.search(query, 5, engine)
        for rank, (score, document) in enumerate(zip(answer.scores.tolist(), answer.documents.tolist(), strict=True), 1):
            explanation, matches = explain(searcher, query, document, 5, engine)
            assert (explanation.rank, explanation.dropped_at, explanation.score) == (rank, None, score)
            assert all(stage.survived for stage in explanation.stages)
            assert matches.contributions.sum() == pytest.approx(score, rel=2e-3)
            assert len(matches.tokens) == query.num_tokens


def test_query_weights_scale_contributions(searcher, queries):
    weights = np.linspace(0, 2, queries.num_tokens, dtype=np.float32)
    query = TokenEmbeddings(queries.values, queries.offsets, queries.doc_ids, None, weights).slice(0, 1)
    [answer] = searcher.search(query, 1, "exact")
    _, matches = explain(searcher, query, int(answer.documents[0]), 1, "exact")
    assert matches.contributions.sum() == pytest.approx(float(answer.scores[0]), rel=1e-3)
    np.testing.assert_allclose(matches.contributions, weights[: query.num_tokens] * matches.similarities, rtol=1e-6)


def test_explain_reports_a_filtered_or_deleted_document(searcher, queries):
    query = queries.slice(1, 2)
    filters = Filters.model_validate({"where": {"op": "ge", "field": "row", "value": 60}})
    [answer] = searcher.search(query, 5, "exact", filters=filters)
    explanation, _ = explain(searcher, query, int(answer.documents[2]), 5, "exact", filters)
    assert (explanation.rank, explanation.dropped_at) == (3, None)
    explanation, matches = explain(searcher, query, 59, 5, "scan", filters)
    assert (explanation.rank, explanation.dropped_at, explanation.reason) == (None, "filters", "left out by the filter")
    assert explanation.score == pytest.approx(matches.contributions.sum(), rel=1e-3)
    first, *others = searcher.shards
    after = replace(searcher, shards=(replace(first, deleted=np.array([7], np.uint32)), *others))
    explanation, _ = explain(after, query, 7, 5, "exact")
    assert (explanation.rank, explanation.dropped_at, explanation.reason) == (None, "deleted", "the document is deleted")


@pytest.mark.parametrize(
    ("engine", "params", "stages"),
    [
        ("exact", {}, ["score_all"]),
        ("scan", {"ncandidates": 10}, ["score_codes", "rescore"]),
        ("scan", {"ncandidates": 20, "rescore": 8}, ["score_codes", "refine", "rescore"]),
        ("plaid", {"nprobe": 1, "ncandidates": 40}, ["probe", "interact", "rescore"]),
        ("plaid", {"nprobe": 1, "rescore": 10}, ["probe_all_codes", "rescore"]),
        ("warp", {"nprobe": 1, "rescore": 10}, ["score_postings", "rescore"]),
    ],
)
def test_every_missing_document_has_a_stage_and_a_reason(searcher, queries, engine, params, stages):
    params = ENGINES[engine].params(**params)
    query = queries.slice(1, 2)
    [answer] = searcher.search(query, 5, params)
    [exact] = searcher.search(query, 150, "exact")
    exact_scores = dict(zip(exact.documents.tolist(), exact.scores.tolist(), strict=True))
    reasons = set()
    for number in range(0, 150, 7):
        explanation, _ = explain(searcher, query, number, 5, params)
        assert [stage.name for stage in explanation.stages] == stages
        assert explanation.stages[-1].score == exact_scores[number]
        assert (explanation.rank is None) == (number not in answer.documents)
        if explanation.rank is None:
            assert explanation.dropped_at in stages
            dropped = explanation.stages[stages.index(explanation.dropped_at)]
            assert dropped.score is None or dropped.score <= dropped.cut
            assert explanation.reason.startswith(explanation.dropped_at)
            reasons.add(explanation.dropped_at)
    assert reasons


def test_explain_reports_a_document_without_a_token_in_a_probed_cluster(searcher, queries):
    params = ENGINES["plaid"].params(nprobe=1)
    explanation = [explain(searcher, queries.slice(3, 4), number, 5, params)[0] for number in range(150)]
    unprobed = [each for each in explanation if each.stages[0].score is None]
    assert unprobed and all("probe did not score it; it scores: " in each.reason for each in unprobed)


def test_explaining_an_invalid_request_is_refused(searcher, queries):
    with pytest.raises(ConfigError, match="one query is explained at a time"):
        explain(searcher, queries, 0)
    with pytest.raises(ConfigError, match="no document number 150"):
        explain(searcher, queries.slice(0, 1), 150)


def checkpoints() -> list[str]:
    """Complete checkpoints of every layout; other checkpoints of a layout hold only the files that differ."""
    return ["pylate/expansion", "stanford/default", "xtr/checkpoint", "sentence_transformers/fixed"]


@pytest.mark.parametrize("checkpoint", checkpoints())
def test_every_vector_has_its_span_for_every_layout(checkpoint):
    encoder = Encoder.load(str(FIXTURES / checkpoint))
    for texts, embeddings, spans_of in (
        (DOCUMENTS, encoder.encode_documents(DOCUMENTS), encoder.tokenizer.document_spans),
        (TINY_QUERIES, encoder.encode_queries(TINY_QUERIES), encoder.tokenizer.query_spans),
    ):
        for text, length in zip(texts, embeddings.lengths.tolist(), strict=True):
            found = spans_of(text)
            assert len(found.pieces) == len(found.spans) == length
            inside = found.spans[found.spans[:, 0] >= 0]
            assert (inside[:, 0] < inside[:, 1]).all() and (inside[:, 1] <= len(text)).all()
            assert (np.diff(inside[:, 0]) >= 0).all()


def test_spans_point_into_the_original_text():
    encoder = Encoder.load(str(FIXTURES / "stanford/default"))
    text = "  The Drug, was given to the King "
    found = encoder.tokenizer.document_spans(text)
    words = {piece: text[first:end] for piece, (first, end) in zip(found.pieces, found.spans.tolist(), strict=True) if first >= 0}
    assert words["drug"] == "Drug" and words["king"] == "King" and words["the"] == "the"
    assert all(found.spans[found.pieces.index(special)].tolist() == [-1, -1] for special in ("[CLS]", "[SEP]"))


def test_letters_that_grow_in_lower_case_shift_no_spans():
    encoder = Encoder.load(str(FIXTURES / "xtr/checkpoint"))
    assert encoder.contract.lower_case
    text = "İİİ the king"
    found = encoder.tokenizer.document_spans(text)
    spans = [text[first:end].strip() for first, end in found.spans.tolist() if first >= 0]
    assert "".join(spans).endswith("theking")


@pytest.mark.parametrize(("title", "text"), [("A title", "the text"), ("", "the text"), ("A title", ""), ("  A title ", " the text ")])
def test_spans_of_title_and_text_point_into_their_own_field(title, text):
    joined = document_text(title, text)
    for word in ("title", "text"):
        if word in joined:
            first = joined.index(word)
            field, start, end = in_fields(np.array([[first, first + len(word)]]), title, text)[0]
            assert {"title": title, "text": text}[field][start:end] == word
    assert in_fields(np.array([[-1, -1]]), title, text) == [None]
