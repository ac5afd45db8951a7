"""The retriever component for Haystack: filters, metadata, pipelines and serialization."""

import asyncio
from typing import Any

import pytest
from haystack import Document, Pipeline
from haystack.components.builders import PromptBuilder
from haystack.utils import Secret
from haystack.utils.filters import document_matches_filter

from ray_lir import ConfigError, FormatError, Index
from ray_lir.integrations.haystack import RayLirRetriever, filters_of
from tests.unit.integrations.conftest import DOCUMENTS, QUERY


def test_documents_carry_content_score_and_meta(index: Index, place: str):
    [document] = RayLirRetriever(place, top_k=1, filters="year = 2019").run(QUERY)["documents"]
    assert isinstance(document, Document) and (document.id, document.content) == ("atp", DOCUMENTS[0]["text"])
    assert document.score == next(hit.score for hit in index.search(QUERY) if hit.doc_id == "atp")
    assert document.meta.items() >= {"title": "Cells", "year": 2019, "lang": "en"}.items()
    assert document.meta["highlights"] and document.meta["snippet"] == DOCUMENTS[0]["text"]
    found = asyncio.run(RayLirRetriever(place, highlight=False).run_async(QUERY, filters={"year": 2024}, top_k=1))["documents"]
    assert [each.id for each in found] == ["sea"] and "snippet" not in found[0].meta


def condition(field: str, operator: str, value: Any) -> dict[str, Any]:
    return {"field": field, "operator": operator, "value": value}


@pytest.mark.parametrize(
    "filters",
    [
        condition("meta.year", ">=", 2021),
        condition("meta.year", ">", 2021),
        condition("meta.year", "<", 2020),
        condition("year", "<=", 2020),
        condition("meta.lang", "==", "en"),
        condition("meta.lang", "!=", "en"),
        condition("meta.lang", "in", ["en", "fr"]),
        condition("meta.lang", "not in", ["en"]),
        condition("meta.tags", "==", None),
        condition("meta.tags", "!=", None),
        condition("id", "==", "sea"),
        condition("content", "==", DOCUMENTS[1]["text"]),
        {"operator": "AND", "conditions": [condition("meta.lang", "==", "de"), condition("meta.year", ">", 2020)]},
        {"operator": "OR", "conditions": [condition("meta.year", "<", 2020), condition("meta.year", ">", 2023)]},
        {"operator": "NOT", "conditions": [condition("meta.lang", "==", "en"), condition("meta.year", ">", 2020)]},
    ],
)
def test_filters_select_the_documents_that_haystack_selects(index: Index, filters: dict[str, Any]):
    documents = [Document(id=each["_id"], content=each["text"], meta=each["metadata"]) for each in DOCUMENTS]
    expected = {document.id for document in documents if document_matches_filter(filters, document)}
    assert expected and {each.id for each in RayLirRetriever(index, filters=filters).run(QUERY)["documents"]} == expected


@pytest.mark.parametrize("filters", [condition("year", "~", 1), {"operator": "AND"}, {"operator": "==", "value": 1}, "year >"])
def test_a_filter_without_counterpart_is_an_error(filters: Any):
    with pytest.raises(ConfigError):
        filters_of(filters)


def test_a_pipeline_runs_is_saved_and_is_loaded(index: Index):
    pipeline = Pipeline()
    pipeline.add_component("retriever", RayLirRetriever(index.path, top_k=2, filters=condition("meta.lang", "==", "en")))
    template = "{% for document in documents %}{{ document.content }} {% endfor %}{{ question }}"
    pipeline.add_component("prompt", PromptBuilder(template, required_variables="*"))
    pipeline.connect("retriever.documents", "prompt.documents")
    question = {"retriever": {"query": QUERY}, "prompt": {"question": QUERY}}
    expected = " ".join(hit.text for hit in index.search(QUERY, k=2, where="lang = en"))
    assert pipeline.run(question)["prompt"]["prompt"] == f"{expected} {QUERY}"
    loaded = Pipeline.loads(pipeline.dumps(), allowed_modules=["ray_lir.integrations.haystack"])
    assert loaded.run(question)["prompt"]["prompt"] == f"{expected} {QUERY}"


def test_errors_of_saving_and_opening_are_one_line(index: Index, tmp_path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ConfigError, match="only a retriever over a folder or an address"):
        RayLirRetriever(index).to_dict()
    with pytest.raises(FormatError, match="no LATEST file"):
        RayLirRetriever(str(tmp_path)).warm_up()
    with pytest.raises(ConfigError, match="quality"):
        RayLirRetriever(index, quality="best")
    monkeypatch.setenv("SECRET", "0123456789abcdef")
    saved = RayLirRetriever("http://127.0.0.1:9", token=Secret.from_env_var("SECRET")).to_dict()
    assert RayLirRetriever.from_dict(saved).token.resolve_value() == "0123456789abcdef"
