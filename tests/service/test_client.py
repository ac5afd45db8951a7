"""The typed client, `ray-lir ask` and `ray-lir search`, with the whole service in this process."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from jobs import ask, search, update
from jobs.cli import main
from ray_lir.api.client import AsyncClient, Client
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.base.errors import (
    ConfigError,
    Forbidden,
    FormatError,
    NotFound,
    Overloaded,
    ServiceUnavailable,
    ShardUnavailable,
    Unauthenticated,
)
from ray_lir.base.ids import check_lookup_id
from ray_lir.building.build import build_index
from ray_lir.building.update import update_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.search.searcher import Searcher
from serving.http.access import Access, read_tokens
from serving.service import Service
from tests.support.corpora import write_rows
from tests.support.local_service import LocalTransport, local_service, raising, served
from tests.support.served_index import QUERIES, make_index

READ, ADMIN = "read-0123456789abcdef", "admin-0123456789abcdef"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def service(index: Path) -> tuple[Service, LocalTransport]:
    return local_service(index, 2)


@pytest.fixture(scope="module")
def url(service: tuple[Service, LocalTransport], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    tokens = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    tokens.write_text(f"read: [{READ}]\nadmin: [{ADMIN}]\n")
    with served(service[0], Access(grants=read_tokens(str(tokens)))) as url:
        yield url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, READ) as client:
        yield client


def test_proxies_of_the_environment_are_not_used_for_localhost(url, monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens there
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for address in (url, url.replace("127.0.0.1", "localhost")):
        with Client(address, READ) as client:
            assert client.index().num_docs

    async def request() -> int:
        async with AsyncClient(url, READ) as client:
            return (await client.index()).num_docs

    assert asyncio.run(request())
    with Client("http://service.invalid") as client, pytest.raises(ServiceUnavailable, match="onnect"):  # this request goes to the proxy
        client.health()


def test_every_route_has_its_method_and_its_types(client, index):
    searcher = Searcher.open(str(index))
    encoder = Encoder.for_contract(searcher.manifest.contract)
    [expected] = searcher.search(encoder.encode_queries(QUERIES[:1]), 3, "plaid")
    response = client.search(QUERIES[0], k=3, engine="plaid", explain=True)
    [hits] = response.results
    assert [hit.number for hit in hits] == expected.documents.tolist()
    assert [hit.score for hit in hits] == expected.scores.tolist()
    assert response.query_tokens and hits[0].matches and len(hits[0].matches) == len(response.query_tokens[0])
    assert len(client.search(QUERIES, k=2).results) == len(QUERIES)
    assert np.array_equal(client.encode(QUERIES).values, encoder.encode_queries(QUERIES).values)
    assert np.array_equal(client.encode(QUERIES, "document").values, encoder.encode_documents(QUERIES).values)
    assert client.rerank("king", doc_ids=["doc-1", "doc-2"]).results[0].doc_id in ("doc-1", "doc-2")
    assert client.explain("king", "doc-1").document.doc_id == "doc-1"
    assert client.document("doc-5").metadata == {"row": 5}
    assert client.index().fingerprint == searcher.manifest.contract.fingerprint
    assert client.health().ready


def test_the_asynchronous_client_gives_the_same_answers(url, client):
    async def both() -> list:
        async with AsyncClient(url, READ) as there:
            return await asyncio.gather(
                there.search(QUERIES[0], k=3),
                there.search(QUERIES[1], k=3),
                there.encode(QUERIES),
                there.rerank("king", texts=["king", "mouse"]),
                there.explain("king", "doc-1"),
                there.document("doc-5"),
                there.index(),
                there.health(),
            )

    first, second, embeddings, reranked, explanation, document, facts, health = asyncio.run(both())
    assert [hit.doc_id for hit in first.results[0]] == [hit.doc_id for hit in client.search(QUERIES[0], k=3).results[0]]
    assert [hit.doc_id for hit in second.results[0]] == [hit.doc_id for hit in client.search(QUERIES[1], k=3).results[0]]
    assert np.array_equal(embeddings.values, client.encode(QUERIES).values)
    alone = client.rerank("king", texts=["king", "mouse"])  # encoding a query in a batch may change its last bits
    assert [hit.position for hit in reranked.results] == [hit.position for hit in alone.results]
    assert [hit.score for hit in reranked.results] == pytest.approx([hit.score for hit in alone.results], abs=0.01)
    assert (explanation.document.number, document, facts, health.ready) == (1, client.document("doc-5"), client.index(), True)


def test_the_client_raises_the_services_errors_by_kind(url, client, service):
    running, calls = service
    with pytest.raises(ConfigError, match="unknown engine 'fast'"):
        client.search("king", engine="fast")
    with pytest.raises(NotFound, match="there is no document 'a/b c'"):
        client.document("a/b c")
    with pytest.raises(Unauthenticated), Client(url) as stranger:
        stranger.search("king")
    with pytest.raises(Forbidden):
        client.roll_back()
    calls.faults["ShardGroup-1"] = raising(ShardUnavailable("ShardGroup-1 is gone"))
    with pytest.raises(ShardUnavailable, match="ShardGroup-1 is gone"):
        client.search("king")
    assert client.search("king", min_coverage=0.4).missing == {"ShardGroup-1": "ShardGroup-1 is gone"}
    assert not client.health().ready
    calls.faults.clear()
    running.admission.running = running.admission.limit
    with pytest.raises(Overloaded, match="try again later") as refused:
        client.search("king")
    assert refused.value.retry_after_s >= 1
    running.admission.running = 0


def test_a_malformed_request_is_not_sent(service):
    with Client("http://127.0.0.1:9") as nobody, pytest.raises(ConfigError, match="unknown field top; the fields are query"):
        nobody.search("king", top=3)


def test_an_unreachable_service_and_a_foreign_service_have_different_errors(url):
    with pytest.raises(ServiceUnavailable, match="no answer from http://127.0.0.1:9"), Client("http://127.0.0.1:9") as client:
        client.index()
    with pytest.raises(FormatError, match="a response of a ray_lir service"), Client(f"{url}/ui/app.js?", READ) as client:
        client.index()


@pytest.mark.parametrize("address", ["nonsense", "ftp://a", "http://[::1", "http://127.0.0.1:99999", "", "http://"])
def test_an_invalid_service_address_is_refused(address):
    with pytest.raises(ConfigError, match="is not an address of a service; write one such as http://127.0.0.1:8000"):
        Client(address)
    with pytest.raises(ConfigError, match="is not an address of a service"):
        AsyncClient(address)


def test_an_unusable_token_or_proxy_is_refused(monkeypatch):
    with pytest.raises(ConfigError, match="check the token"):
        Client("http://127.0.0.1:9", "tok\u00e9n\u20ac")
    monkeypatch.setenv("HTTP_PROXY", "nonsense://x")
    with pytest.raises(ConfigError, match="the proxies in the environment"):
        Client("http://example.invalid")


def last_line(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def test_ask_and_search_find_the_same_hits_and_print_json_last(url, index, capsys, monkeypatch):
    monkeypatch.setenv(ask.TOKEN, READ)
    main(ask.AskJob, ask.run, ["--url", url, "--query", QUERIES[0], "--k", "3", "--engine", "scan", "--params", "{ncandidates: 50}"])
    printed_by_ask = capsys.readouterr().out
    main(
        search.SearchJob,
        search.run,
        ["--index", str(index), "--query", QUERIES[0], "--k", "3", "--engine", "scan", "--params", "{ncandidates: 50}"],
    )
    printed_by_search = capsys.readouterr().out
    assert [hit["doc_id"] for hit in last_line(printed_by_ask)["results"][0]] == [
        hit["doc_id"] for hit in last_line(printed_by_search)["hits"]
    ]
    assert (
        last_line(printed_by_search)["params"]
        == last_line(printed_by_ask)["params"][0]
        == {"engine": "scan", "ncandidates": 50, "candidate_fraction": 1.0}
    )
    only = json.dumps({"where": {"op": "lt", "field": "row", "value": 20}})
    main(ask.AskJob, ask.run, ["--url", url, "--query", QUERIES[0], "--k", "30", "--engine", "exact", "--filters", only])
    rows = [hit["metadata"]["row"] for hit in last_line(capsys.readouterr().out)["results"][0]]
    assert sorted(rows) == list(range(20))
    main(search.SearchJob, search.run, ["--index", str(index), "--query", QUERIES[0], "--k", "30", "--engine", "exact", "--filters", only])
    assert [hit["doc_id"] for hit in last_line(capsys.readouterr().out)["hits"]] == [f"doc-{row}" for row in rows]
    for flag in ("--filters", "--where"):
        main(ask.AskJob, ask.run, ["--url", url, "--query", QUERIES[0], "--k", "30", "--engine", "exact", flag, "row < 20"])
        assert [hit["metadata"]["row"] for hit in last_line(capsys.readouterr().out)["results"][0]] == rows
    main(ask.AskJob, ask.run, ["--url", url, "--query", QUERIES[0], "--json"])
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_filter_is_text_or_a_dict_and_a_field_that_no_document_has_is_warned_of(client):
    expected = client.search(QUERIES[0], k=30, filters={"where": {"op": "lt", "field": "row", "value": 20}})
    assert expected.warnings == []
    for filters in ("row < 20", {"row": {"<": 20}}, '{"row": {"<": 20}}'):
        assert client.search(QUERIES[0], k=30, where=filters).results == expected.results
    warned = client.search(QUERIES[0], filters="rwo < 20")
    assert warned.results == [[]]
    assert warned.warnings == ["no document has the field 'rwo' of the filter; did you mean row?"]
    assert client.explain(QUERIES[0], "doc-1", filters="rwo < 20").warnings == warned.warnings
    with pytest.raises(ConfigError, match="filters: expected a value"):
        client.search(QUERIES[0], filters="row <")


def test_an_unreachable_service_is_one_line_with_exit_code_2(capsys):
    with pytest.raises(SystemExit) as exit:
        main(ask.AskJob, ask.run, ["--url", "http://127.0.0.1:9", "--query", "king"])
    assert exit.value.code == 2
    assert capsys.readouterr().err.startswith("error: no answer from http://127.0.0.1:9")


ODD_IDS = [
    "a/b",
    "/",
    "//a//",
    ".",
    "..",
    "../x",
    "a/../b",
    "%2F",
    "%2e%2e",
    "a?b=c&d",
    "#",
    "a#b",
    " ",
    " a ",
    "a b",
    "+",
    "é日本",
    "\u2028",
    "a\x85b",
]
ODD_IDS += ["\\\\", '"', "<b>", "😀" * 1024, "index", "e\u0301", "7"]


@pytest.fixture(scope="module")
def odd(index: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Yield the service of an index with unusual ids; one has a control character, which older versions allowed."""
    folder = tmp_path_factory.mktemp("odd")
    rows = [{"_id": doc_id, "text": f"the river {number}"} for number, doc_id in enumerate([*ODD_IDS, "old\nid"])]
    encoder = EncoderConfig(checkpoint=str(index.parent / "checkpoint"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_lir.corpus.records.check_id", check_lookup_id)
        encode_corpus(write_rows(folder / "corpus.jsonl", rows), str(folder / "embeddings"), encoder, map=map)
    build_index(str(folder / "embeddings"), str(folder / "index"), IndexConfig(clustering=ClusteringConfig(num_centroids=16)))
    return folder / "index"


def test_every_id_that_is_indexed_is_read_explained_reranked_filtered_and_deleted(odd: Path, tmp_path: Path):
    deployed, _ = local_service(odd, 1)
    with served(deployed) as url, Client(url) as client:
        for number, doc_id in enumerate([*ODD_IDS, "old\nid"]):
            assert (client.document(doc_id).doc_id, client.document(doc_id).text) == (doc_id, f"the river {number}")
            assert client.explain("river", doc_id).document.doc_id == doc_id
            assert [each.doc_id for each in client.rerank("river", doc_ids=[doc_id]).results] == [doc_id]
            [hits] = client.search("river", filters={"ids": {"include": [doc_id]}}).results
            assert [hit.doc_id for hit in hits] == [doc_id]
        assert client.document(7).doc_id == client.rerank("river", doc_ids=[7]).results[0].doc_id == "7"
        for wrong in ("", "\ud800", 1.5, None):
            with pytest.raises(ConfigError, match="doc_id"):
                client.document(wrong)
    lines = [doc_id.encode() for doc_id in ODD_IDS] + [b'{"_id": "old\\nid"}']
    (tmp_path / "ids").write_bytes(b"\n".join(lines).replace(b"\n \n", b'\n{"_id": " "}\n'))
    ids = update.read_ids(str(tmp_path / "ids"))
    assert ids == [*ODD_IDS, "old\nid"]
    change = update_index(str(odd), delete=ids).change
    assert (change.num_deleted, change.num_unknown) == (len(ODD_IDS) + 1, 0)
