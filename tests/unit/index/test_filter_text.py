"""Filters as users write them: text, short dicts and JSON; fields of documents, and unknown fields."""

import json
import logging
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from jobs.cli import parse as parse_flags
from jobs.search import SearchJob
from ray_lir.api.search import SearchRequest
from ray_lir.base.config import IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.filter_text import MAX_NESTING, parse
from ray_lir.index.filters import Filters
from ray_lir.search.explain import explain
from ray_lir.search.searcher import Searcher, common_unknown_fields
from tests.support.synthetic import collection, queries_about

METADATA: list[dict[str, Any]] = [
    {"year": 2019, "tags": ["news", "old"], "lang": "en", "author": {"name": "Ada Lovelace"}, "price": Decimal("9.5")},
    {"year": 2020, "tags": ["news"], "lang": "de", "draft": True, "rate": np.float32(0.1), "day": "2024-05-31"},
    {"year": "2021", "tags": [], "lang": "en", "a.b": 1, "title": "in metadata", "number": 7},
    {"year": 2022, "lang": "en; de", "author": {"name": "Alan (T.)"}, "words": "rock and roll"},
]
TITLES = ["Energy", "Light", "Energy and light", ""]


@pytest.fixture(scope="module")
def searcher(tmp_path_factory) -> Searcher:
    folder = tmp_path_factory.mktemp("filters") / "index"
    documents = TokenEmbeddings.of(list(collection(4)), ["a", "b", "c", "d"])
    build_index(documents, folder, IndexConfig(num_shards=2), titles=TITLES, texts=["one", "two", "three", "four"], metadata=METADATA)
    return Searcher.open(folder)


FOUND = [
    ("year >= 2020", [1, 3]),
    ("year>=2020,tags~news", [1]),
    ("year = 2021", [2]),
    ('year = "2021"', [2]),
    ("year != 2020", [0, 2, 3]),
    ("year < 2020 or year > 2021", [0, 3]),
    ("YEAR exists or lang = de AND year = 2020", [1]),
    ("lang = en or lang = de and year = 2019", [0, 2]),
    ("(lang = en or lang = de) and year <= 2020", [0, 1]),
    ("not (lang = en or lang = de)", [3]),
    ("lang in [en, de]", [0, 1, 2]),
    ("lang not in (en, 'en; de')", [1]),
    ("year in [2019, 2021]", [0, 2]),
    ("author.name = Ada Lovelace", [0]),
    ("author.name ~ Alan (T.)", [3]),
    ("metadata.author.name ^= Al", [3]),
    ("draft = true", [1]),
    ("draft exists", [1]),
    ("not draft exists, lang = en", [0, 2]),
    ("draft = null, lang = en", [0, 2]),
    ("exists(author)", [0, 3]),
    ("author not exists", [1, 2]),
    ("rate = 0.1", [1]),
    ("price >= 9.5", [0]),
    ("day >= 2024-05-01", [1]),
    ("tags !~ old", [1, 2, 3]),
    ('words = "rock and roll"', [3]),
    ("words = 'rock and roll'", [3]),
    ('"a.b" = 1', [2]),
    ("title = Energy", [0]),
    ("title ~ light", [2]),
    ("title exists", [0, 1, 2]),
    ("metadata.title exists", [2]),
    ("doc_id in [a, d]", [0, 3]),
    ("doc_id > b", [2, 3]),
    ("text ^= t", [1, 2]),
    ("number ~ 7", []),
    ('{"year": {">=": 2020}}', [1, 3]),
    ('{"where": {"op": "ge", "field": "year", "value": 2020}, "ids": {"exclude": ["d"]}}', [1]),
    ({"year": {">=": 2020, "<": 2022}}, [1]),
    ({"year": {"gte": np.int64(2020)}, "tags": {"~": "news"}}, [1]),
    ({"lang": "en"}, [0, 2]),
    ({"lang": ["en", "de"], "not": {"year": 2019}}, [1, 2]),
    ({"lang": {"in": {"en"}}}, [0, 2]),
    ({"or": [{"year": 2019}, {"op": "exists", "field": "draft"}]}, [0, 1]),
    ({"draft": {"exists": False}, "title": {"^=": "Energy"}}, [0, 2]),
    ({"rate": np.float32(0.1)}, [1]),
    ({"op": "lt", "field": "year", "value": Decimal(2020)}, [0]),
    ({"where": "year >= 2020", "ids": {"include": ["b"]}}, [1]),
    ({"where": {"year": 2020}}, [1]),
    ({}, [0, 1, 2, 3]),
]


@pytest.mark.parametrize(("filters", "found"), FOUND, ids=[str(each) for each, _ in FOUND])
def test_every_filter_spelling_finds_the_same_documents(searcher, filters, found):
    assert searcher.matching(filters).tolist() == found
    [top] = searcher.search(queries_about(collection(4), [0]), 10, "exact", filters=filters)
    assert sorted(top.documents.tolist()) == found
    assert SearchRequest(query="q", filters=filters).filters == Filters.of(filters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the filter ends"),
        ("year", "after the field, but the filter ends"),
        ("year >=", "expected a value"),
        ("year >= 2020 tags ~ news", "found '~ news' at character 19"),
        ("year >= 2020, ", "name of a field"),
        ("year = 1)", r"found '\)' at character 9"),
        ("(year = 1", r'expected "\)"'),
        ("lang in en", 'expected "\\["'),
        ("lang in [en", "the filter ends"),
        ("lang = 'en", "closing '"),
        ("= 3", "found '= 3' at character 1"),
        ("(" * 1000 + "a = 1", "nested"),
        ("not " * 1000 + "a = 1", "nested"),
        (" or ".join(["a = 1"] * 100), "at most 64"),
        ("a = 1" + " " * 200_000, "characters"),
        ("{nonsense", "JSON"),
    ],
)
def test_a_malformed_filter_text_is_a_one_line_error_with_the_position(text, message):
    with pytest.raises(ConfigError, match=message) as raised:
        Filters.parse(text)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "wrong", [5, ["year"], {"year": {"?": 1}}, {"year": None}, {"a": {"in": "x"}}, {"or": ["a"]}, {"a": {"exists": 1}}]
)
def test_an_invalid_filter_is_refused(searcher, wrong):
    for call in (searcher.matching, lambda filters: searcher.search(queries_about(collection(4), [0]), filters=filters)):
        with pytest.raises(ConfigError, match="filters"):
            call(wrong)
    short: dict[str, Any] = {"a": 1}
    for _ in range(MAX_NESTING + 1):
        short = {"not": short}
    with pytest.raises(ConfigError, match="deep"):
        Filters.of(short)


def test_an_unquoted_filter_value_may_hold_punctuation():
    assert parse("title ~ C++ (2nd), url = http://x?a=b") == {
        "op": "and",
        "filters": [
            {"op": "contains", "field": "title", "value": "C++ (2nd)"},
            {"op": "eq", "field": "url", "value": "http://x?a=b"},
        ],
    }


def test_unknown_filter_fields_are_named_with_the_nearest_names(searcher, caplog):
    with caplog.at_level(logging.WARNING):
        for filters in ("yeer >= 2020", "not (yeer = 1)", {"author.nam": "x"}, {"zzz": 1}):
            searcher.search(queries_about(collection(4), [0]), filters=filters)
    warnings = [record.getMessage() for record in caplog.records]
    assert warnings[0] == warnings[1] == "no document has the field 'yeer' of the filter; did you mean year?"
    assert "did you mean author.name" in warnings[2]
    assert "there are a.b, author, author.name" in warnings[3]
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        searcher.matching("draft = false or price > 100 or title = x")  # each field is in only one shard
        explain(searcher, queries_about(collection(4), [0]), 0, filters="year = 1")
    assert not caplog.records


def test_a_count_is_unknown_only_if_it_is_missing_in_every_part():
    parts = [{"x": frozenset("a"), "y": frozenset("a")}, {"y": frozenset("b")}]
    assert common_unknown_fields(parts) == {"y": frozenset("ab")}
    assert common_unknown_fields([]) == {}


def test_the_command_line_takes_every_spelling(tmp_path):
    expected = Filters.parse("year >= 2020, title = 'a: b'")
    for flag in ("--filters", "--where", "--filter"):
        for text in ("year >= 2020, title = 'a: b'", json.dumps({"where": expected.model_dump(mode="json")["where"]})):
            assert parse_flags(SearchJob, ["--index", "i", "--query", "q", flag, text]).filters == expected
    (tmp_path / "recipe.yaml").write_text('index: i\nquery: q\nwhere: "year >= 2020"\n')
    assert parse_flags(SearchJob, ["--recipe", str(tmp_path / "recipe.yaml")]).filters == Filters.parse("year >= 2020")
    old = parse_flags(SearchJob, ["--index", "i", "--query", "q", "--filters", "{where: {op: ge, field: year, value: 2020}}"])
    assert old.filters == Filters.parse("year >= 2020")
    with pytest.raises(ConfigError, match="expected a value"):
        parse_flags(SearchJob, ["--index", "i", "--query", "q", "--where", "year >"])
