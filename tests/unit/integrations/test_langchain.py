"""The retriever for LangChain: LangChain's own standard tests, filters, metadata and asyncio."""

import asyncio
from typing import Any

import pytest
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.structured_query import Comparator as C
from langchain_core.structured_query import Comparison, Operation, Operator
from langchain_tests.integration_tests import RetrieversIntegrationTests

from ray_lir import ConfigError, Index
from ray_lir.integrations.langchain import RayLirRetriever, filters_of
from tests.unit.integrations.conftest import DOCUMENTS, QUERY


class TestStandard(RetrieversIntegrationTests):
    pytestmark = pytest.mark.anyio

    @pytest.fixture(autouse=True)
    def _at(self, place: str) -> None:
        self.place = place

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @property
    def retriever_constructor(self) -> type[RayLirRetriever]:
        return RayLirRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"source": self.place}

    @property
    def retriever_query_example(self) -> str:
        return QUERY


def found(retriever: RayLirRetriever, **options: Any) -> set[str]:
    return {document.id for document in retriever.invoke(QUERY, **options)}


def test_documents_carry_text_and_metadata(index: Index, place: str):
    [document] = RayLirRetriever(source=place, k=1, where={"year": 2019}).invoke(QUERY)
    assert (document.id, document.page_content) == ("atp", DOCUMENTS[0]["text"])
    assert document.metadata.items() >= {"doc_id": "atp", "title": "Cells", "year": 2019, "lang": "en"}.items()
    assert document.metadata["score"] == next(hit.score for hit in index.search(QUERY) if hit.doc_id == "atp")
    assert {mark["word"] for mark in document.metadata["highlights"]} and document.metadata["snippet"] == DOCUMENTS[0]["text"]
    [bare] = RayLirRetriever(source=place, k=1, highlight=False).invoke(QUERY)
    assert "highlights" not in bare.metadata


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("year >= 2021", {"zinc", "sea"}),
        ({"year": {"$gte": 2021}}, {"zinc", "sea"}),
        ({"$and": [{"year": {"$gt": 2019}}, {"$or": [{"lang": {"$eq": "en"}}, {"year": {"$lt": 2021}}]}]}, {"zinc", "river"}),
        ({"lang": {"$nin": ["en"]}, "year": {"$ne": 2024}}, {"river"}),
        ({"$not": {"lang": "en"}}, {"sea", "river"}),
        ({"tags": {"$contains": "dna"}}, {"zinc"}),
        ({"tags": {"$exists": True}}, {"zinc", "river"}),
        (Comparison(C.GTE, "year", 2021), {"zinc", "sea"}),
        (Operation(Operator.AND, [Comparison(C.LT, "year", 2024), Comparison(C.NE, "lang", "en")]), {"river"}),
        (Operation(Operator.OR, [Comparison(C.EQ, "year", 2024), Comparison(C.LTE, "year", 2019)]), {"sea", "atp"}),
        (Operation(Operator.NOT, [Comparison(C.IN, "lang", ["en", "fr"])]), {"sea", "river"}),
        (Operation(Operator.AND, [Comparison(C.NIN, "lang", ["de"]), Comparison(C.GT, "year", 2019)]), {"zinc"}),
        (Comparison(C.CONTAIN, "tags", "city"), {"river"}),
        (Comparison(C.LIKE, "text", "%bridge%"), {"river"}),
        (Comparison(C.LIKE, "text", "The sea%"), {"sea"}),
        (None, {"atp", "zinc", "sea", "river"}),
    ],
)
def test_filters_are_mapped(index: Index, where: Any, expected: set[str]):
    assert found(RayLirRetriever(source=index, where=where)) == expected
    assert found(RayLirRetriever(source=index), where=where) == expected
    assert found(RayLirRetriever(source=index), filter=where) == expected


@pytest.mark.parametrize("where", [{"year": {"$near": 3}}, Comparison(C.LIKE, "text", "a%b"), {"year": {}}, "year >"])
def test_a_filter_without_counterpart_is_an_error(where: Any):
    with pytest.raises(ConfigError):
        filters_of(where)


def test_a_date_of_the_query_constructor_is_compared_as_text():
    where = filters_of(Comparison(C.GT, "day", {"date": "2024-05-31", "type": "date"}))
    assert where is not None and where.where is not None and where.where.value == "2024-05-31"


def test_asyncio_takes_the_same_options(place: str):
    [document] = asyncio.run(RayLirRetriever(source=place).ainvoke(QUERY, k=1, where="year = 2024"))
    assert document.id == "sea"


def test_a_chain_answers_from_the_documents(index: Index):
    retriever = RayLirRetriever(source=index, k=2)
    context = retriever | (lambda documents: " / ".join(document.page_content for document in documents))
    prompt = RunnableLambda(lambda parts: f"{parts['question']}: {parts['context']}")
    chain = {"context": context, "question": RunnablePassthrough()} | prompt | StrOutputParser()
    texts = [document.page_content for document in retriever.invoke(QUERY)]
    assert chain.invoke(QUERY) == f"{QUERY}: {' / '.join(texts)}"


@pytest.mark.parametrize("wrong", [{"quality": "best"}, {"where": "year >"}, {"source": 7}])
def test_a_wrong_field_is_reported_when_the_retriever_is_made(index: Index, wrong: dict[str, Any]):
    with pytest.raises(ConfigError):
        RayLirRetriever(**{"source": index, **wrong})
    with pytest.raises(ValueError, match="topk"):
        RayLirRetriever(source=index, topk=3)
