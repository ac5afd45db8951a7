"""Documents in windows through the service: the same matches, highlights and passages as in the library."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ray_lir import Index
from ray_lir.base.config import EncoderConfig, IndexConfig, WindowsConfig
from serving.http.routes import routes
from tests.fixtures.tiny import bert
from tests.support.local_service import local_service
from tests.unit.test_long_documents import DOCUMENTS, LENGTH

QUERY = "the bridge on the river of the city"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("served")
    bert(folder / "checkpoint")
    encoder = EncoderConfig(checkpoint=str(folder / "checkpoint"), windows=WindowsConfig(length=LENGTH, stride=24))
    return Index.create(folder / "index", DOCUMENTS, encoder, IndexConfig(num_shards=2))


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[TestClient]:
    service, _ = local_service(Path(index.path), num_groups=2)
    with TestClient(routes(service)) as client:
        yield client


def test_the_service_shows_what_the_library_shows(client: TestClient, index: Index):
    [hits] = client.post("/search", json={"query": QUERY, "explain": True, "highlight": True, "engine": "exact"}).json()["results"]
    expected = index.search(QUERY, engine="exact")
    assert [hit["doc_id"] for hit in hits] == [hit.doc_id for hit in expected] and len(hits) == 5
    for hit, other in zip(hits, expected, strict=True):
        assert other.passage is not None and other.snippet is not None
        assert hit["passage"] == other.passage.model_dump() and hit["snippet"] == other.snippet.model_dump()
        assert [(match["start"], match["end"]) for match in hit["matches"]] == [(match.start, match.end) for match in other.matches]
        assert hit["highlights"] == [mark.model_dump() for mark in other.highlights]


def test_a_document_is_explained_with_the_characters_of_the_whole_text(client: TestClient, index: Index):
    reply = client.post("/explain", json={"query": QUERY, "doc_id": "d3", "engine": "exact"}).json()
    [hit] = [hit for hit in index.search(QUERY, engine="exact") if hit.doc_id == "d3"]
    assert [(match["start"], match["end"]) for match in reply["matches"]] == [(match.start, match.end) for match in hit.matches]
    assert "truncation" not in reply
