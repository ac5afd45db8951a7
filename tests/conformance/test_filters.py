"""Filters: they keep the documents that a plain definition keeps, and no part of them becomes SQL."""

import dataclasses
import json
import operator
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from ray_lir.base.errors import FormatError
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.plan import TopK
from ray_lir.index import filter_evaluation
from ray_lir.index.filter_evaluation import FilteredDocuments
from ray_lir.index.filters import MAX_DEPTH, Filters
from ray_lir.search.searcher import Searcher
from tests.conformance.test_engines import EVERYTHING
from tests.support.served_index import QUERIES, make_index

COMPARES = {"eq": operator.eq, "lt": operator.lt, "le": operator.le, "ge": operator.ge, "gt": operator.gt}
MISSING = object()
KEYS = ("a", "b", "a.b", "c/d", "~", "0", 'q"', "é")


def table(*metadata: Any) -> pa.Table:
    texts = [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in metadata]
    ids = [f"doc-{number}" for number in range(len(texts))]
    return pa.table({"doc_id": ids, "title": ids, "text": ids, "metadata": pa.array(texts, pa.string())})


def rows(documents: pa.Table, where: Any = None, live: np.ndarray | None = None, **ids: Any) -> list[int]:
    return FilteredDocuments(documents, live).rows(Filters.model_validate({"where": where, "ids": ids})).tolist()


def value_at(metadata: Any, field: str | list[str]) -> Any:
    for key in field.split(".") if isinstance(field, str) else field:
        if isinstance(metadata, dict) and key in metadata:
            metadata = metadata[key]
        elif isinstance(metadata, list) and key == "0" and metadata:
            metadata = metadata[0]
        else:
            return MISSING
    return metadata


def kind(value: Any) -> str:
    return "number" if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value).__name__


def holds(metadata: Any, condition: dict[str, Any]) -> bool:
    """The plain definition of a condition."""
    op = condition["op"]
    if op in ("and", "or"):
        return (all if op == "and" else any)(holds(metadata, part) for part in condition["filters"])
    if op == "not":
        return not holds(metadata, condition["filter"])
    found, value = value_at(metadata, condition["field"]), condition.get("value")
    if op == "exists":
        return found is not MISSING and found is not None
    if op == "in":
        return any(kind(found) == kind(each) and found == each for each in condition["values"])
    if op == "prefix":
        return isinstance(found, str) and found.startswith(value)
    if op == "contains":
        in_text = isinstance(found, str) and isinstance(value, str) and value in found
        return in_text or (isinstance(found, list) and any(kind(each) == kind(value) and each == value for each in found))
    return kind(found) == kind(value) and kind(found) != "dict" and COMPARES[op](found, value)


WORDS = st.text(st.sampled_from("ab0.é'\"\\% 😀"), max_size=3)
INTEGERS = st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, -(2**63)])
NUMBERS = INTEGERS | st.floats(-3, 3).map(lambda number: round(number, 1))
SCALARS = st.booleans() | NUMBERS | WORDS
JSON = st.recursive(
    st.none() | SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3), max_leaves=6
)
METADATA = st.dictionaries(st.sampled_from(KEYS), JSON, max_size=4)
FIELDS = st.sampled_from(["a", "b", "a.b", "a.0", "0", "é"]) | st.lists(st.sampled_from(KEYS), min_size=1, max_size=2)
LEAVES = (
    st.fixed_dictionaries({"op": st.just("eq"), "field": FIELDS, "value": SCALARS})
    | st.fixed_dictionaries({"op": st.just("in"), "field": FIELDS, "values": st.lists(SCALARS, max_size=4)})
    | st.fixed_dictionaries({"op": st.sampled_from(["lt", "le", "ge", "gt"]), "field": FIELDS, "value": NUMBERS | WORDS})
    | st.fixed_dictionaries({"op": st.just("exists"), "field": FIELDS})
    | st.fixed_dictionaries({"op": st.just("prefix"), "field": FIELDS, "value": WORDS})
    | st.fixed_dictionaries({"op": st.just("contains"), "field": FIELDS, "value": SCALARS})
)
CONDITIONS = st.recursive(
    LEAVES,
    lambda inner: (
        st.fixed_dictionaries({"op": st.sampled_from(["and", "or"]), "filters": st.lists(inner, min_size=1, max_size=3)})
        | st.fixed_dictionaries({"op": st.just("not"), "filter": inner})
    ),
    max_leaves=5,
)


@given(metadata=st.lists(METADATA, min_size=1, max_size=8), where=CONDITIONS)
@settings(max_examples=400)
def test_a_filter_keeps_the_rows_of_its_plain_definition(metadata, where):
    assert rows(table(*metadata), where) == [number for number, each in enumerate(metadata) if holds(each, where)]


def test_filters_by_hand():
    documents = table(
        {"year": 1999, "lang": "en", "tags": ["old", "short"], "author": {"name": "Ada"}},
        {"year": 2024, "lang": "de", "tags": [], "author": {"name": "Alan"}},
        {"year": 2024.5, "lang": None},
        {"year": "2024", "lang": "english"},
        {},
    )
    assert rows(documents, {"op": "ge", "field": "year", "value": 2000}) == [1, 2]
    assert rows(documents, {"op": "ge", "field": "year", "value": "2000"}) == [3]
    assert rows(documents, {"op": "eq", "field": "year", "value": 2024.0}) == [1]
    assert rows(documents, {"op": "prefix", "field": "lang", "value": "en"}) == [0, 3]
    assert rows(documents, {"op": "exists", "field": "lang"}) == [0, 1, 3]
    assert rows(documents, {"op": "not", "filter": {"op": "exists", "field": "lang"}}) == [2, 4]
    assert rows(documents, {"op": "in", "field": "author.name", "values": ["Ada", "Grace"]}) == [0]
    assert rows(documents, {"op": "contains", "field": "tags", "value": "old"}) == [0]
    assert rows(documents, {"op": "contains", "field": "author.name", "value": "la"}) == [1]
    assert rows(documents, {"op": "lt", "field": "year", "value": 3000}, include=["doc-0", "doc-2", "doc-9"]) == [0, 2]
    assert rows(documents, None, exclude=["doc-1", "doc-9"]) == [0, 2, 3, 4]
    assert rows(documents, None, include=[]) == []
    assert rows(documents) == [0, 1, 2, 3, 4]


def test_integers_of_64_bits_are_compared_exactly():
    documents = table({"n": 2**53}, {"n": 2**53 + 1}, {"n": 2**64 - 1}, {"n": 10**30})
    assert rows(documents, {"op": "eq", "field": "n", "value": 2**53 + 1}) == [1]
    assert rows(documents, {"op": "gt", "field": "n", "value": 2**53}) == [1, 2, 3]
    assert rows(documents, {"op": "gt", "field": "n", "value": 2**80}) == [3]


def test_filters_never_return_deleted_documents():
    documents = table({"a": 1}, {"a": 1}, {"a": 2})
    live = np.array([1, 2])
    assert rows(documents, {"op": "eq", "field": "a", "value": 1}, live) == [1]
    assert rows(documents, None, live, include=["doc-0", "doc-2"]) == [2]


@pytest.mark.parametrize("text", ["' OR true --", "$v0", "x'; DROP TABLE documents; --", "/etc/passwd", '"', "\\"])
def test_quoted_filter_values_are_text(text):
    documents = table({"a": "b"}, {"a": text, text: 1})
    assert rows(documents, {"op": "eq", "field": "a", "value": text}) == [1]
    assert rows(documents, {"op": "exists", "field": [text]}) == [1]
    assert rows(documents, None, include=[text]) == []


@pytest.mark.parametrize(
    ("filters", "where"),
    [
        ({"where": {"op": "eq", "field": "a"}}, "where.eq.value"),
        ({"where": {"op": "eq", "field": "a", "value": None}}, "where.eq.value"),
        ({"where": {"op": "lt", "field": "a", "value": True}}, "where.lt.value"),
        ({"where": {"op": "lt", "field": "a", "value": float("nan")}}, "where.lt.value"),
        ({"where": {"op": "like", "field": "a", "value": "b"}}, "where"),
        ({"where": {"op": "and", "filters": [{"op": "exists", "field": "a"}, {"op": "exists"}]}}, "where.and.filters.1.exists.field"),
        ({"where": {"op": "exists", "field": []}}, "where.exists.field"),
        ({"ids": {"include": [1.5]}}, "ids.include.0"),
        ({"id": []}, "id"),
    ],
)
def test_filter_errors_name_the_wrong_part(filters, where):
    with pytest.raises(ValidationError) as raised:
        Filters.model_validate(filters)
    assert ".".join(map(str, raised.value.errors()[0]["loc"])).startswith(where)


def nested(depth: int) -> dict[str, Any]:
    condition: dict[str, Any] = {"op": "exists", "field": "a"}
    for _ in range(depth):
        condition = {"op": "not", "filter": condition}
    return condition


def test_a_filter_that_is_too_large_is_refused():
    assert rows(table({"a": 1}, {}), nested(MAX_DEPTH - 1)) == [1]
    for depth in (MAX_DEPTH, 100, 900):
        with pytest.raises(ValidationError):
            Filters.model_validate({"where": nested(depth)})
    wide = {"op": "or", "filters": [{"op": "or", "filters": [nested(0)] * 40}] * 2}
    with pytest.raises(ValidationError, match="83 conditions"):
        Filters.model_validate({"where": wide})


def test_stored_metadata_that_is_not_json_is_reported_as_damage():
    with pytest.raises(FormatError, match="JSON"):
        rows(table({"a": 1}, "{nonsense"), {"op": "exists", "field": "a"})


def test_the_cache_keeps_the_most_recent_results(monkeypatch):
    evaluated = []
    monkeypatch.setattr(
        filter_evaluation, "_matching", lambda _, condition: evaluated.append(condition.value) or np.array([condition.value])
    )
    documents = FilteredDocuments(table(*[{}] * 40), None)

    def ask(value: int) -> None:
        assert documents.rows(Filters.model_validate({"where": {"value": value, "field": "a", "op": "eq"}})).tolist() == [value]

    for value in (*range(filter_evaluation.KEPT_RESULTS), 0, filter_evaluation.KEPT_RESULTS, 0, 1):
        ask(value)
    assert evaluated == [*range(filter_evaluation.KEPT_RESULTS), filter_evaluation.KEPT_RESULTS, 1]


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("filtered"), num_docs=200, num_shards=4)


WHERE = {"op": "and", "filters": [{"op": "ge", "field": "row", "value": 20}, {"op": "lt", "field": "row", "value": 180.5}]}


def tombstoned(searcher: Searcher) -> Iterator[Any]:
    for shard in searcher.shards:
        yield dataclasses.replace(shard, deleted=np.arange(0, shard.num_docs, 7, dtype=np.uint32))


@pytest.mark.parametrize("deleted", [False, True], ids=["whole", "deleted"])
@pytest.mark.parametrize("engine", list(VECTOR_ENGINES))
def test_a_filtered_search_is_the_full_exact_ranking_filtered(index, engine, deleted):
    searcher = Searcher.open(str(index))
    if deleted:
        searcher = dataclasses.replace(searcher, shards=tuple(tombstoned(searcher)))
    queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
    filters = Filters.model_validate({"where": WHERE, "ids": {"exclude": ["doc-30", "doc-31", "doc-100"]}})
    allowed = [number for number in range(20, 181) if number not in (30, 31, 100)]
    everything = searcher.search(queries, 200, "exact")
    found = searcher.search(queries, 8, EVERYTHING[engine], filters=filters)
    for top, full in zip(found, everything, strict=True):
        kept = np.isin(full.documents, allowed)
        expected = TopK(full.scores[kept][:8], full.documents[kept][:8])
        assert top.documents.tolist() == expected.documents.tolist()
        assert top.scores.tolist() == expected.scores.tolist()
    some = np.array([5, 40, 41, 42, 170, 190])
    [top, *_] = searcher.search(queries, 8, "exact", only=some[~np.isin(some, range(0, 200, 7))] if deleted else some, filters=filters)
    assert set(top.documents.tolist()) <= {40, 41, 42, 170}
