"""Writes over HTTP, without Ray: what is accepted and refused, when searches see it, and what survives failures."""

import asyncio
import json
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi.testclient import TestClient

import ray_lir
from ray_lir.api.client import AsyncClient, Client
from ray_lir.api.writes import MAX_DOCUMENT_BYTES, WriteRequest
from ray_lir.base.errors import ConfigError, Conflict, NotFound, ShardUnavailable, WritesUnavailable
from ray_lir.building.update import update_index
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage import write_log
from serving.handlers.writes import WriteOptions, check_documents
from serving.http.access import Access, read_tokens
from serving.http.routes import routes, routes_of_many
from serving.indexes.catalog import Catalog
from serving.indexes.fair_slots import FairSlots
from serving.indexes.indexes import Indexes
from serving.indexes.local_service import LocalServices
from serving.metrics import Metrics
from serving.transport.protocol import WRITER
from serving.workers.writer import Writer
from tests.support.local_service import LocalTransport, local_service, raising
from tests.support.served_index import make_index

TOKENS = {role: f"{role}-0123456789abcdef" for role in ("read", "write", "admin")}
BRIDGE = "the bridge on the river of the city"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    (folder / "tokens.yaml").write_text(json.dumps({role: [token] for role, token in TOKENS.items()}))
    return make_index(folder, num_docs=60, num_shards=2)


@pytest.fixture
def index(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "index"))


def serving(index: Path, template: Path, **options: Any) -> tuple[TestClient, LocalTransport]:
    service, calls = local_service(index, 2, writes=WriteOptions(**{"visible_s": 0.4, **options}))
    access = Access(grants=read_tokens(str(template.parent / "tokens.yaml")))
    return TestClient(routes(service, access, service.running), headers={"Authorization": f"Bearer {TOKENS['write']}"}), calls


@pytest.fixture
def served(index: Path, template: Path) -> Iterator[tuple[TestClient, LocalTransport]]:
    client, calls = serving(index, template)
    with client:
        yield client, calls


@pytest.fixture
def client(served: tuple[TestClient, LocalTransport]) -> TestClient:
    return served[0]


def accepted(reply: Any) -> dict[str, Any]:
    assert reply.status_code == 202, reply.text
    return reply.json()


def until_visible(client: TestClient, position: int, seconds: float = 30) -> dict[str, Any]:
    """The facts of the index as soon as searches see the writes up to a position."""
    end = time.monotonic() + seconds
    while (facts := client.get("/index").json())["writes"]["log_position"] < position:
        assert time.monotonic() < end, facts["writes"]
        time.sleep(0.02)
    return facts


def documents_of(index: Path) -> dict[str, str]:
    """The text of each live document of the latest version."""
    searcher = Searcher.open(str(index))
    found = searcher.documents(range(searcher.manifest.num_numbers))
    live = searcher.find([each["doc_id"] for each in found])
    return {each["doc_id"]: each["text"] for number, each in enumerate(found) if live.get(each["doc_id"]) == number}


def test_writes_become_visible_and_the_last_one_of_a_document_counts(client, index):
    accepted(client.put("/documents/a%2Fb", json={"title": "Bridge", "text": BRIDGE, "metadata": {"year": 3}, "lang": "en"}))
    accepted(client.put("/documents", params={"id": ".."}, json={"text": "token"}))
    body = {"documents": [{"_id": "n", "text": "one"}, {"doc_id": 7, "text": "seven"}], "delete": ["doc-3", "doc-4", "n"]}
    assert accepted(client.post("/documents", json=body)) == {"accepted": 2, "deleted": 3, "refused": [], "position": 3}
    accepted(client.delete("/documents/doc-5"))
    accepted(client.delete("/documents", params={"id": "unknown"}))
    answer = accepted(client.put("/documents/n", json={"text": "two"}))
    facts = until_visible(client, answer["position"])
    assert facts["num_docs"] == 60 - 3 + 4 and facts["writes"]["unpublished"] == 0 and facts["writes"]["following"]
    assert client.get("/documents/a%2Fb").json()["metadata"] == {"year": 3, "lang": "en"}
    assert client.get("/documents/n").json()["text"] == "two" and client.get("/documents?id=..").json()["text"] == "token"
    assert client.get("/documents/doc-5").status_code == 404
    [hits] = client.post("/search", json={"query": BRIDGE, "k": 1}).json()["results"]
    assert hits[0]["doc_id"] == "a/b"
    assert documents_of(index)["7"] == "seven" and read_version(str(index)).log_position == answer["position"]


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"text": "x"}, "no id: expected a field _id, doc_id or id"),
        ({"_id": "", "text": "x"}, "_id is empty"),
        ({"_id": "a\n", "text": "x"}, "_id holds the control character U+000A ('a\\n')"),
        ({"_id": 1.5, "text": "x"}, "_id is a number with a fraction (1.5), not a string or a whole number"),
        ({"_id": "a"}, "no text"),
        ({"_id": "a", "text": None}, "no text"),
        ({"_id": "a", "text": 3}, "text is a number (3), not a string"),
        ({"_id": "a", "text": "x", "title": ["t"]}, 'title is a list (["t"]), not a string'),
        ({"_id": "a", "text": "x", "metadata": [1]}, "metadata is [1], not an object"),
        ({"_id": "a", "text": "x", "metadata": "m"}, 'metadata is "m", not an object'),
        (
            {"_id": "a", "text": "x" * MAX_DOCUMENT_BYTES},
            "too large: 1,048,600 bytes, more than 1,048,576; divide it into several documents",
        ),
        ({"_id": "a", "text": "\ud800"}, "holds half of a surrogate pair, which is not valid Unicode"),
        ("a text", 'not a JSON object but a string ("a text")'),
        (None, "not a JSON object but null"),
    ],
)
def test_a_bad_document_is_refused_with_the_reason_and_the_others_are_accepted(document, reason):
    kept, [refused] = check_documents([{"_id": "good", "text": "x"}, document])
    assert [each["_id"] for each in kept] == ["good"] and (refused.position, refused.reason) == (1, reason)


def test_refused_documents_are_in_the_answer_and_a_request_without_a_usable_one_fails(client):
    documents = [{"_id": "a", "text": "first"}, {"text": "x"}, {"_id": "a", "text": "second"}]
    answer = accepted(client.post("/documents", json={"documents": documents}))
    assert (answer["accepted"], answer["position"]) == (1, 1)
    assert answer["refused"] == [
        {"position": 0, "doc_id": "a", "reason": "a later row has the id 'a' too, and replaces this one"},
        {"position": 1, "reason": "no id: expected a field _id, doc_id or id"},
    ]
    for body in ({"documents": documents, "partial": False}, {"documents": [{"text": "x"}]}):
        reply = client.post("/documents", json=body)
        assert (reply.status_code, reply.json()["error"]["kind"]) == (422, "InvalidDocument")
        assert "document 1: no id" in reply.text or "document 0: no id" in reply.text
    reply = client.put("/documents/a", json={"_id": "b", "text": "x"})
    assert reply.status_code == 422 and "leave it out of the body" in reply.text
    assert client.put("/documents/a", json={"txt": "x"}).json()["error"]["message"] == (
        "1 document is not usable (document 0: no text); correct them or leave them out"
    )
    assert client.post("/documents", json={}).json()["error"]["message"] == "give documents to add, or ids to delete"
    until_visible(client, 1)
    assert client.get("/documents/a").json()["text"] == "second"


def test_a_repeated_request_changes_nothing_and_gets_the_first_answer(client, index):
    keyed = {"headers": {"Idempotency-Key": "key"}}
    first = accepted(client.put("/documents/a", json={"text": "one"}, **keyed))
    accepted(client.put("/documents/a", json={"text": "two"}))
    assert accepted(client.put("/documents/a", json={"text": "one"}, **keyed)) == first
    reply = client.put("/documents/a", json={"text": "three"}, **keyed)
    assert (reply.status_code, reply.json()["error"]["kind"]) == (409, "Conflict")
    assert client.delete("/documents/a", headers={"Idempotency-Key": "k" * 256}).status_code == 422
    until_visible(client, 2)
    assert documents_of(index)["a"] == "two"


def test_writing_needs_a_token_with_the_role(client, index):
    for role, status in (("read", 403), ("write", 202), ("admin", 202)):
        reply = client.put("/documents/a", json={"text": "x"}, headers={"Authorization": f"Bearer {TOKENS[role]}"})
        assert reply.status_code == status, reply.text
    assert client.post("/admin/index", json={"action": "load"}).json()["error"]["message"] == (
        "this token may only read and write; send an admin token"
    )
    reply = client.delete("/documents/a", headers={"Authorization": f"Bearer {TOKENS['read']}"})
    assert reply.json()["error"]["message"] == "this token may only read; send a write or admin token"
    without, _ = local_service(index, 2)
    assert "this service has no tokens" in TestClient(routes(without)).put("/documents/a", json={"text": "x"}).text
    with pytest.raises(Exception, match="this service accepts no writes; start it with writes set to true"):
        asyncio.run(without.write(WriteRequest(delete=["a"])))


def test_too_many_unpublished_writes_are_refused_with_a_time_to_wait(index, template):
    client, calls = serving(index, template, max_unpublished=3)
    calls.faults[WRITER] = raising(ShardUnavailable("the writer is not running"))
    with client:
        last = accepted(client.post("/documents", json={"delete": ["a", "b", "c"]}))
        reply = client.delete("/documents/d")
        assert reply.status_code == 429 and 1 <= int(reply.headers["Retry-After"]) <= 30
        assert reply.json()["error"]["message"].startswith("3 accepted writes wait for publication")
        calls.faults.clear()
        until_visible(client, last["position"])
        accepted(client.delete("/documents/d"))


def test_writes_of_a_service_that_stopped_are_published_by_the_next_one(index, template):
    client, calls = serving(index, template)
    calls.faults[WRITER] = raising(ShardUnavailable("the writer is not running"))
    with client:
        last = accepted(client.put("/documents/a", json={"text": "kept"}))
    assert latest_version(str(index)) == 1
    client, _ = serving(index, template)
    with client:
        until_visible(client, last["position"])
        assert client.get("/documents/a").json()["text"] == "kept"


def test_two_services_and_a_job_change_one_index_and_nothing_is_lost_or_applied_twice(index, template):
    (first, _), (second, _) = serving(index, template), serving(index, template)
    with first, second:
        for number in range(12):
            for name, client in (("first", first), ("second", second)):
                accepted(client.put(f"/documents/{name}-{number}", json={"text": f"token {number}"}))
                last = accepted(client.put("/documents/shared", json={"text": f"{name} {number}"}))
            if number % 4 == 0:
                for _ in range(100):
                    try:
                        update_index(str(index), delete=[f"doc-{number}"])
                        break
                    except Conflict:
                        time.sleep(0.05)
        facts = [until_visible(client, last["position"]) for client in (first, second)]
    found = documents_of(index)
    assert found["shared"] == "second 11" and {f"{name}-{number}" for name in ("first", "second") for number in range(12)} <= set(found)
    assert not {"doc-0", "doc-4", "doc-8"} & set(found) and len(found) == 60 - 3 + 24 + 1
    assert [each["num_docs"] for each in facts] == [len(found)] * 2
    added = sum(
        change.num_added - change.num_replaced
        for number in range(2, latest_version(str(index)) + 1)
        if (change := read_version(str(index), number).change)
    )
    assert added == 25


def test_a_document_that_cannot_be_encoded_becomes_a_dead_letter_and_the_others_are_published(served, index, monkeypatch):
    client, _ = served
    from ray_lir.encoder import corpus_encoder

    encode_rows = corpus_encoder.encode_rows

    def failing(rows: Any, *args: Any) -> Any:
        if any(b"poison" in row for row in rows):
            raise RuntimeError("cannot encode this")
        return encode_rows(rows, *args)

    monkeypatch.setattr(corpus_encoder, "encode_rows", failing)
    answer = accepted(client.post("/documents", json={"documents": [{"_id": "a", "text": "poison"}, {"_id": "b", "text": "good"}]}))
    until_visible(client, answer["position"])
    found = documents_of(index)
    assert "b" in found and "a" not in found
    [letters] = (index / "dead_letters").iterdir()
    assert json.loads(letters.read_text()) == {
        "reason": "RuntimeError: cannot encode this",
        "row": '{"_id": "a", "metadata": {}, "text": "poison", "title": ""}',
    }


def test_a_writer_that_was_killed_after_the_manifest_is_finished_by_the_next(index, monkeypatch):
    log = write_log.WriteLog(str(index), lambda: 0)
    write = {"body_digest": "", "answer": {}}
    log.append([write_log.LoggedWrite(documents=({"_id": "a", "title": "", "text": "token", "metadata": {}},), **write)])

    class Killed(BaseException):
        pass

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("ray_lir.building.publishing._set_latest", killed)
        with pytest.raises(Killed):
            Writer(str(index), None)._publish()
    assert latest_version(str(index)) == 1 and (index / "versions" / "2" / "manifest.json").exists()
    log.append([write_log.LoggedWrite(delete=("doc-1",), **write)])
    published = Writer(str(index), None)._publish()
    assert (published.version, published.position) == (3, 2)
    assert "a" in documents_of(index) and "doc-1" not in documents_of(index) and len(documents_of(index)) == 60
    assert Writer(str(index), None)._publish() == published  # nothing is applied again


def test_after_a_roll_back_writes_are_published_and_not_served_until_the_latest_version_is_loaded(client, index):
    admin = {"headers": {"Authorization": f"Bearer {TOKENS['admin']}"}}
    until_visible(client, accepted(client.put("/documents/a", json={"text": "one"}))["position"])
    assert client.post("/admin/index", json={"action": "roll_back"}, **admin).json()["version"] == 1
    last = accepted(client.put("/documents/b", json={"text": "two"}))
    end = time.monotonic() + 20
    while latest_version(str(index)) < 3 and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(0.5)
    facts = client.get("/index").json()
    assert (facts["version"], facts["writes"]["following"]) == (1, False)
    assert client.post("/admin/index", json={"action": "load"}, **admin).json()["version"] == 3
    assert until_visible(client, last["position"])["writes"]["following"]
    until_visible(client, accepted(client.put("/documents/c", json={"text": "three"}))["position"])


def test_a_version_that_is_published_while_another_is_loaded_does_not_stop_the_service_from_following(index):
    service, _ = local_service(index, 2, writes=WriteOptions())
    for number in (1, 2):
        update_index(str(index), delete=[f"doc-{number}"], log_position=number)

    async def scene() -> None:
        assert await service._follow(2) == 2  # version 3 is the latest already
        assert (service.versions.served.version, service.versions.served.pinned) == (3, False)

    asyncio.run(scene())


def test_a_full_disk_is_an_error_that_says_so(client, monkeypatch):
    def full(url: str, data: bytes) -> None:
        raise OSError(28, "No space left on device", url)

    with monkeypatch.context() as patch:
        patch.setattr(write_log, "create_bytes", full)
        reply = client.put("/documents/a", json={"text": "x"})
    assert (reply.status_code, reply.json()["error"]["kind"]) == (503, WritesUnavailable.__name__) and reply.headers["Retry-After"]
    assert "No space left on device" in reply.text
    accepted(client.put("/documents/a", json={"text": "x"}))


@pytest.fixture
def url(index: Path, template: Path) -> Iterator[str]:
    service, _ = local_service(index, 2, writes=WriteOptions(visible_s=0.4))
    app = routes(service, Access(grants=read_tokens(str(template.parent / "tokens.yaml"))), service.running)
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def test_the_clients_add_and_delete_what_an_index_on_this_machine_does(url, index, template, tmp_path):
    local = ray_lir.Index.open(shutil.copytree(template, tmp_path / "local"))
    (tmp_path / "corpus.jsonl").write_text('{"_id": "c1", "text": "token"}\nnot JSON\n{"_id": "c2", "text": "drug"}\n')
    more = [{"_id": f"many-{number}", "text": "token"} for number in range(1001)]
    with Client(url, TOKENS["write"]) as client:
        for each in (local, client):
            each.add([{"_id": "a", "text": BRIDGE, "year": 3}, {"id": 7, "text": "seven"}])
            each.add(str(tmp_path / "corpus.jsonl"))
            each.add(more)
            each.delete(["doc-1", "c2", "unknown"])
            with pytest.raises(ConfigError, match=r"1 documents? .* not usable \(document 1: no text"):
                each.add([{"_id": "b", "text": "x"}, {"_id": "c"}])
        local.refresh()
        assert documents_of(index) == documents_of(Path(local.path))
        refused = client.add(str(tmp_path / "corpus.jsonl")).refused
        assert [(each.position, each.reason) for each in refused] == [(1, 'not a JSON object but a string ("not JSON")')]
        first = client.add(["some text"], key="key", wait_s=0)
        assert first.accepted == 1 and client.delete(["a"], key="other").deleted == 1
        with pytest.raises(Conflict):
            client.delete(["b"], key="key")
        with pytest.raises(ConfigError, match="put one into a list"):
            client.add({"text": "x"})

    async def scene() -> None:
        async with AsyncClient(url, TOKENS["write"]) as client:
            assert (await client.add([{"_id": "async", "text": "token"}])).accepted == 1
            assert (await client.document("async")).text == "token"
            await client.delete(["async"])
            with pytest.raises(NotFound):
                await client.document("async")

    asyncio.run(scene())


def test_a_client_repeats_a_request_that_was_not_answered(url, index, monkeypatch):
    with Client(url, TOKENS["write"]) as client:
        send, lost = client._http.request, []

        def losing(**arguments: Any) -> Any:
            reply = send(**arguments)
            if arguments["method"] == "POST" and len(lost) < 2:
                lost.append(reply)
                raise httpx.ReadTimeout("lost")
            return reply

        monkeypatch.setattr(client._http, "request", losing)
        assert client.add([{"_id": "a", "text": "token"}]).position == 1
    assert len(lost) == 2 and latest_version(str(index)) == 2


def test_each_of_several_indexes_takes_its_own_writes(template, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(template, tmp_path / "indexes" / name)
    metrics = Metrics()
    services = LocalServices(None, True, None, "auto", 1, 30.0, 64, FairSlots(2), metrics, WriteOptions(visible_s=0.4))
    indexes = Indexes(Catalog(str(tmp_path / "indexes")), services.open, 60, 1e9, metrics)
    access = Access(grants=read_tokens(str(template.parent / "tokens.yaml")))
    with TestClient(routes_of_many(indexes, access), headers={"Authorization": f"Bearer {TOKENS['write']}"}) as client:
        last = accepted(client.put("/indexes/one/documents/a", json={"text": "token"}))
        accepted(client.put("/indexes/two/documents/a", json={"text": "drug"}))
        assert indexes.opened["one"].service.busy  # an index with unpublished writes is not closed as idle
        end = time.monotonic() + 30
        while any(client.get(f"/indexes/{name}/index").json()["writes"]["log_position"] < last["position"] for name in ("one", "two")):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert [client.get(f"/indexes/{name}/documents/a").json()["text"] for name in ("one", "two")] == ["token", "drug"]
        assert not indexes.opened["one"].service.busy
