"""The retriever and the vector store for LlamaIndex: filters, metadata, asyncio and a query engine."""

import asyncio
from typing import Any

import pytest
from llama_index.core import MockEmbedding, VectorStoreIndex
from llama_index.core.llms import MockLLM
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import MetadataMode
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.types import VectorStoreQuery

from ray_lir import ConfigError, Index
from ray_lir.integrations.llama_index import RayLirRetriever, RayLirVectorStore, filters_of
from tests.unit.integrations.conftest import DOCUMENTS, QUERY

Op = FilterOperator


def one(key: str, operator: FilterOperator, value: Any) -> MetadataFilters:
    return MetadataFilters(filters=[MetadataFilter(key=key, operator=operator, value=value)])


def several(condition: FilterCondition, *parts: Any) -> MetadataFilters:
    return MetadataFilters(filters=list(parts), condition=condition)


NEW_GERMAN = one("lang", Op.EQ, "de"), one("year", Op.GT, 2021)


def test_nodes_carry_text_score_and_metadata(index: Index, place: str):
    [found] = RayLirRetriever(place, similarity_top_k=1, filters="year = 2019").retrieve(QUERY)
    assert (found.node.node_id, found.text) == ("atp", DOCUMENTS[0]["text"])
    assert found.score == next(hit.score for hit in index.search(QUERY) if hit.doc_id == "atp") == found.metadata["score"]
    assert found.metadata.items() >= {"title": "Cells", "year": 2019, "lang": "en", "doc_id": "atp"}.items()
    assert found.metadata["highlights"] and found.metadata["snippet"] == DOCUMENTS[0]["text"]
    shown = found.node.get_content(MetadataMode.LLM)
    assert "Cells" in shown and "highlights" not in shown
    assert [each.node.node_id for each in asyncio.run(RayLirRetriever(place).aretrieve(QUERY))] == [
        hit.doc_id for hit in index.search(QUERY)
    ]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ("year >= 2021", {"zinc", "sea"}),
        (one("year", Op.GTE, 2021), {"zinc", "sea"}),
        (one("year", Op.GT, 2021), {"sea"}),
        (one("year", Op.LT, 2020), {"atp"}),
        (one("year", Op.LTE, 2020), {"atp", "river"}),
        (one("lang", Op.EQ, "en"), {"atp", "zinc"}),
        (one("lang", Op.NE, "en"), {"sea", "river"}),
        (one("lang", Op.IN, ["en", "fr"]), {"atp", "zinc"}),
        (one("lang", Op.NIN, ["en"]), {"sea", "river"}),
        (one("tags", Op.CONTAINS, "city"), {"river"}),
        (one("tags", Op.ANY, ["city", "metal"]), {"river", "zinc"}),
        (one("tags", Op.ALL, ["dna", "metal"]), {"zinc"}),
        (one("tags", Op.IS_EMPTY, None), {"atp", "sea"}),
        (one("text", Op.TEXT_MATCH, "bridge"), {"river"}),
        (several(FilterCondition.NOT, MetadataFilter(key="lang", value="en")), {"sea", "river"}),
        (several(FilterCondition.OR, one("year", Op.LT, 2020), several(FilterCondition.AND, *NEW_GERMAN)), {"atp", "sea"}),
        (MetadataFilters(filters=[]), {"atp", "zinc", "sea", "river"}),
    ],
)
def test_filters_are_mapped(index: Index, filters: Any, expected: set[str]):
    assert {each.node.node_id for each in RayLirRetriever(index, filters=filters).retrieve(QUERY)} == expected


def test_a_filter_without_counterpart_is_an_error():
    with pytest.raises(ConfigError, match="text_match_insensitive has no counterpart"):
        filters_of(one("text", Op.TEXT_MATCH_INSENSITIVE, "sea"))


def test_the_vector_store_answers_by_text(index: Index, place: str):
    store = RayLirVectorStore(source=place)
    found = store.query(VectorStoreQuery(query_str=QUERY, similarity_top_k=2, filters=one("lang", Op.EQ, "de")))
    assert set(found.ids) == {"sea", "river"} and found.similarities == sorted(found.similarities, reverse=True)
    [only] = store.query(VectorStoreQuery(query_str=QUERY, similarity_top_k=4, node_ids=["zinc", "sea"], doc_ids=["sea", "atp"])).ids
    assert only == "sea"
    assert [node.get_content() for node in store.get_nodes(["sea", "nothing", "atp"])] == [DOCUMENTS[2]["text"], DOCUMENTS[0]["text"]]
    changes = (lambda: store.add([]), lambda: store.delete("sea"))
    for refused in (*changes, lambda: store.query(VectorStoreQuery([1.0])), lambda: store.get_nodes()):
        with pytest.raises(ConfigError):
            refused()


def test_an_index_of_llama_index_and_a_query_engine_use_it(index: Index):
    vectors = VectorStoreIndex.from_vector_store(RayLirVectorStore(source=index), embed_model=MockEmbedding(1))
    nodes = vectors.as_retriever(similarity_top_k=2).retrieve(QUERY)
    assert [each.node.node_id for each in nodes] == [hit.doc_id for hit in index.search(QUERY, k=2)]
    synthesizer = get_response_synthesizer(llm=MockLLM(), response_mode="compact")
    answer = RetrieverQueryEngine(RayLirRetriever(index, similarity_top_k=2), synthesizer).query(QUERY)
    assert nodes[0].text in answer.response and [each.node.node_id for each in answer.source_nodes] == [each.node.node_id for each in nodes]
