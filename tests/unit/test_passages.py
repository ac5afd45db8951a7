"""Windows as passages: hits are grouped by document, and changes of the index concern whole documents."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from jobs.export_files import index_blocks
from ray_lir import Index
from ray_lir.base.config import EncoderConfig, IndexConfig, WindowsConfig
from ray_lir.engines import ENGINES
from ray_lir.engines.plan import TopK
from ray_lir.search.grouping import best_of_documents, by_document
from serving.http.routes import routes
from tests.fixtures.tiny import bert
from tests.support.local_service import local_service
from tests.unit.test_long_documents import DOCUMENTS, LENGTH

QUERY = "the bridge on the river of the city"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> EncoderConfig:
    folder = tmp_path_factory.mktemp("passages") / "checkpoint"
    bert(folder)
    return EncoderConfig(checkpoint=str(folder), windows=WindowsConfig(length=LENGTH, stride=24), passages=True)


@pytest.fixture(scope="module")
def index(settings: EncoderConfig, tmp_path_factory: pytest.TempPathFactory) -> Index:
    documents = [{**document, "metadata": {"row": row}} for row, document in enumerate(DOCUMENTS)]
    return Index.create(tmp_path_factory.mktemp("index") / "index", documents, settings, IndexConfig(num_shards=2, lexical=True))


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[TestClient]:
    service, _ = local_service(Path(index.path), num_groups=2)
    with TestClient(routes(service)) as client:
        yield client


def expected(index: Index, query: str = QUERY) -> list[tuple[str, float]]:
    """The documents by the exact score of their best passage, from every passage's score."""
    embedded = index.encoder.encode_queries([query])
    [top] = index.searcher._ranked(embedded, index.manifest.num_docs, "exact", "exact", None)
    best: dict[str, float] = {}
    for doc_id, score in zip(index.searcher.doc_ids(top.documents), top.scores.tolist(), strict=True):
        best.setdefault(doc_id, score)
    return list(best.items())


@pytest.mark.parametrize("k", [1, 2, 3, 5, 10])
@pytest.mark.parametrize("engine", ["exact", "scan"])
def test_a_search_returns_the_best_passage_of_each_document(index: Index, engine: str, k: int):
    hits = index.search(QUERY, k, engine=engine)
    assert [(hit.doc_id, hit.score) for hit in hits] == expected(index)[:k]
    for hit in hits:
        whole = index.get(hit.doc_id)
        assert whole is not None and hit.passage is not None
        assert whole["text"][hit.passage.start : hit.passage.end] == hit.text and hit.text in whole["text"]
        assert all(hit.text[mark.start : mark.end].isalpha() for mark in hit.highlights if mark.field == "text" and mark.strength)
        assert all(
            hit.text[match.start : match.end].lower() == match.token
            for match in hit.matches
            if match.field == "text" and match.similarity > 0.99
        )
    assert index.search(QUERY, k, engine=engine, matches=False)[0].passage == hits[0].passage


def test_every_engine_returns_each_document_once(index: Index):
    for engine in ENGINES:
        found = [hit.doc_id for hit in index.search(QUERY, 4, engine=engine, matches=False)]
        assert len(found) == len(set(found)) >= 1


def test_grouping_deepens_until_there_are_enough_documents():
    asked = []

    def search(depth: int) -> list[TopK]:
        asked.append(depth)
        numbers = np.arange(min(depth, 40))
        return [TopK(-numbers.astype(np.float32), numbers)]

    [top] = by_document(search, lambda answer: [min(number // 10, 2) for number in answer.documents.tolist()], 3)
    assert top.documents.tolist() == [0, 10, 20] and asked == [6, 24]
    [top] = by_document(search, lambda answer: [0] * len(answer.documents), 3)
    assert top.documents.tolist() == [0] and asked[2:] == [6, 24, 96]
    assert best_of_documents(top, [7], 1).scores.tolist() == [0]


def test_a_document_is_one_document_for_counts_filters_and_explanations(index: Index):
    assert len(index) == 5 and index.manifest.num_docs > 20 and repr(index).endswith("5 documents, version 1)")
    assert [shard.windows[0, 1] for shard in index.searcher.shards if shard.windows is not None] == [0, 0]
    assert [hit.doc_id for hit in index.search(QUERY, where="row >= 3")] == [
        doc_id for doc_id, _ in expected(index) if doc_id in ("d3", "d4")
    ]
    assert [hit.doc_id for hit in index.search(QUERY, where={"doc_id": "d1"})] == ["d1"]
    for rank, (doc_id, score) in enumerate(expected(index), 1):
        trace = index.explain(QUERY, doc_id, k=5, engine="exact")
        assert trace.rank == rank and trace.score == pytest.approx(score)
    assert index.explain(QUERY, expected(index)[-1][0], k=2, engine="exact").rank is None
    assert [index.get(document["_id"])["text"] for document in DOCUMENTS] == [document["text"] for document in DOCUMENTS]


def test_changes_concern_all_passages_of_a_document(settings: EncoderConfig, tmp_path: Path):
    index = Index.create(tmp_path / "index", DOCUMENTS, settings)
    update = index.add([{**DOCUMENTS[3], "_id": "d1"}, {"_id": "new", "text": "The sea."}])
    assert (update.change.num_added, update.change.num_replaced, len(index)) == (2, 1, 6)
    assert index.get("d1")["text"] == DOCUMENTS[3]["text"]
    assert index.delete(["d3", "unknown"]).change.num_deleted == 1 and len(index) == 5
    before = expected(index)
    assert "d3" not in dict(before) and len(before) == 5
    index.compact(2)
    assert len(index) == 5 and [shard.parents[0] for shard in index.searcher.shards] == [0, 0]
    assert [(doc_id, pytest.approx(score)) for doc_id, score in expected(index)] == before
    assert index.get("d1")["text"] == DOCUMENTS[3]["text"] and index.get("new")["text"] == "The sea."
    blocks = list(index_blocks(index.path, index.manifest, 2))
    assert sorted(doc_id for block in blocks for doc_id in block.embeddings.doc_ids) == ["d0", "d1", "d2", "d4", "new"]
    assert sum(block.embeddings.num_tokens for block in blocks) == index.manifest.num_tokens
    assert {row["text"] for block in blocks for row in block.texts.to_pylist()} >= {DOCUMENTS[3]["text"], "The sea."}


def test_the_service_groups_as_the_library_does(client: TestClient, index: Index):
    [hits] = client.post("/search", json={"query": QUERY, "k": 3, "engine": "exact", "highlight": True, "explain": True}).json()["results"]
    [plain] = client.post("/search", json={"query": QUERY, "k": 3, "engine": "exact"}).json()["results"]
    for hit, short, other in zip(hits, plain, index.search(QUERY, 3, engine="exact"), strict=True):
        assert (hit["doc_id"], hit["score"], hit["text"]) == (other.doc_id, other.score, other.text)
        assert other.passage is not None and hit["passage"] == short["passage"] == other.passage.model_dump()
        assert [(match["start"], match["end"]) for match in hit["matches"]] == [(match.start, match.end) for match in other.matches]
    assert client.get("/index").json()["num_docs"] == 5
    assert client.get("/documents", params={"id": "d3"}).json()["text"] == DOCUMENTS[3]["text"]


def test_the_service_explains_and_reranks_documents(client: TestClient, index: Index):
    for rank, (doc_id, score) in enumerate(expected(index), 1):
        reply = client.post("/explain", json={"query": QUERY, "doc_id": doc_id, "k": 5, "engine": "exact"}).json()
        whole = index.get(doc_id)
        assert whole is not None and reply["rank"] == rank and reply["score"] == pytest.approx(score)
        assert reply["document"]["text"] == whole["text"]
        [hit] = [hit for hit in index.search(QUERY, engine="exact") if hit.doc_id == doc_id]
        shift = hit.passage.start if hit.passage else 0
        places = [(match.field, match.start + shift) for match in hit.matches if match.field == "text" and match.start is not None]
        assert [(match["field"], match["start"]) for match in reply["matches"] if match.get("field") == "text"] == places
    ids = [document["_id"] for document in DOCUMENTS]
    results = client.post("/rerank", json={"query": QUERY, "doc_ids": ids}).json()["results"]
    assert [(each["doc_id"], pytest.approx(each["score"])) for each in results] == expected(index)
