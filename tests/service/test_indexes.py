"""Several indexes in one service: opening and closing them, and what one index or token can do to the others."""

import asyncio
import json
import pickle
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
import yaml
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import ask
from ray_lir.api.client import AsyncClient, Client
from ray_lir.base.errors import ConfigError, NotFound, Overloaded, RayLirError, ShardUnavailable
from ray_lir.embeddings.contract import EncoderContract
from serving.app import application_of, parse
from serving.http.access import Access, Guard, read_tokens
from serving.http.rate_limit import RateLimit
from serving.http.routes import routes_of_many
from serving.indexes.catalog import Catalog
from serving.indexes.fair_slots import FairSlots
from serving.indexes.indexes import BROKEN_S, Indexes
from serving.indexes.local_service import LocalServices
from serving.indexes.memory import index_bytes
from serving.metrics import Metrics
from serving.workers.versions import Served
from tests.support.clock import Clock
from tests.support.local_service import local_service
from tests.support.served_index import QUERIES, delete, make_index

NAMES = ("docs", "wiki", "mail")


@pytest.fixture(scope="module")
def one_index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("several"), num_docs=60, num_shards=1)


@pytest.fixture
def folder(one_index: Path, tmp_path: Path) -> Path:
    """A folder of three equal indexes, a folder without an index, and a file."""
    indexes = tmp_path / "indexes"
    indexes.mkdir()
    for name in NAMES:
        shutil.copytree(one_index, indexes / name)
    (indexes / "empty").mkdir()
    (indexes / "notes.txt").write_text("")
    return indexes


def open_indexes(source: Any, clock: Clock | None = None, idle_s: float = 60, max_bytes: float = 1e9, max_requests: int = 64) -> Indexes:
    metrics = Metrics()
    services = LocalServices(None, True, None, "auto", 1, 30.0, max_requests, FairSlots(2), metrics)
    return Indexes(Catalog(source), services.open, idle_s, max_bytes, metrics, clock or Clock())


@pytest.fixture
def client(folder: Path) -> Iterator[TestClient]:
    with TestClient(routes_of_many(open_indexes(str(folder)))) as client:
        yield client


def states(client: TestClient) -> dict[str, str]:
    return {each["name"]: each["state"] for each in client.get("/indexes").json()["indexes"]}


def test_an_index_opens_with_its_first_request_and_answers_like_a_separate_service(client, one_index):
    assert states(client) == dict.fromkeys(sorted(NAMES), "closed")
    body = {"queries": QUERIES, "k": 5}
    found = client.post("/indexes/wiki/search", json=body)
    assert states(client) == {"docs": "closed", "mail": "closed", "wiki": "open"}
    service, _ = local_service(one_index, 1)
    from serving.http.routes import routes

    with TestClient(routes(service)) as alone:
        assert found.json()["results"] == alone.post("/search", json=body).json()["results"]
        assert set(alone.get("/openapi.json").json()["paths"]) <= {
            path.removeprefix("/indexes/{name}") for path in client.get("/openapi.json").json()["paths"]
        } | {"/health/live"}


def test_all_routes_of_an_index_work(client):
    for path, body in {
        "encode": {"texts": ["a"]},
        "rerank": {"query": "token", "doc_ids": ["doc-1", "doc-2"]},
        "explain": {"query": "token", "doc_id": "doc-1"},
    }.items():
        assert client.post(f"/indexes/docs/{path}", json=body).status_code == 200
    for path in ("documents/doc-1", "documents?id=doc-1", "index", "health", "health/ready", "", "ui/app.js"):
        assert client.get(f"/indexes/docs/{path}").status_code == 200
    for path in ("/", "/ui/indexes.js", "/health", "/health/live", "/health/ready"):
        assert client.get(path).status_code == 200


@pytest.mark.parametrize(
    ("name", "hint"),
    [("doc", "did you mean 'docs'?"), ("xxxxx", "GET /indexes lists the indexes"), ("..", ""), ("empty", ""), ("notes.txt", "")],
)
def test_an_unknown_index_is_not_found_and_the_nearest_name_is_suggested(client, name, hint):
    reply = client.post(f"/indexes/{name.replace('.', '%2E')}/search", json={"query": "x"})
    assert reply.status_code == 404 and hint in reply.json()["error"]["message"]


def test_a_new_index_in_the_folder_is_found_without_a_restart(client, folder):
    shutil.copytree(folder / "docs", folder / "fresh")
    assert client.post("/indexes/fresh/search", json={"query": "x"}).status_code == 200
    assert "fresh" in states(client)


def test_a_broken_index_fails_alone_and_works_again_once_it_is_repaired(folder):
    clock = Clock()
    codes = next((folder / "mail").glob("shards/*/codes.npy"))
    content = codes.read_bytes()
    codes.write_bytes(content[:-1])
    with TestClient(routes_of_many(open_indexes(str(folder), clock)), raise_server_exceptions=False) as client:
        for _ in range(2):
            reply = client.post("/indexes/mail/search", json={"query": "x"})
            assert reply.status_code == 503 and "index 'mail' cannot be opened" in reply.json()["error"]["message"]
            assert client.post("/indexes/docs/search", json={"query": "x"}).status_code == 200
        assert states(client) == {"docs": "open", "mail": "broken", "wiki": "closed"}
        assert client.get("/health").status_code == 200
        codes.write_bytes(content)
        assert client.post("/indexes/mail/search", json={"query": "x"}).status_code == 503  # not tried again at once
        clock.now += BROKEN_S
        assert client.post("/indexes/mail/search", json={"query": "x"}).status_code == 200
        assert states(client)["mail"] == "open"


def test_an_unexpected_error_of_one_index_leaves_the_others_alone_and_reveals_no_details(folder):
    indexes = open_indexes(str(folder))
    opener = indexes.opener

    def failing(name: str, root: str, served: Served) -> Any:
        if name == "mail":
            raise ZeroDivisionError("secret")
        return opener(name, root, served)

    indexes.opener = failing
    with TestClient(routes_of_many(indexes), raise_server_exceptions=False) as client:
        reply = client.post("/indexes/mail/search", json={"query": "x"})
        assert reply.status_code == 503 and "ZeroDivisionError" in reply.text and "secret" not in reply.text
        assert client.post("/indexes/docs/search", json={"query": "x"}).status_code == 200


def test_concurrent_first_requests_open_an_index_once(folder):
    indexes = open_indexes(str(folder))
    opener, opened = indexes.opener, []

    def counting(name: str, root: str, served: Served) -> Any:
        opened.append(name)
        return opener(name, root, served)

    indexes.opener = counting

    async def run() -> list[Any]:
        return await asyncio.gather(*(indexes.open("docs") for _ in range(5)))

    assert len(set(map(id, asyncio.run(run())))) == 1
    assert opened == ["docs"]


def test_an_idle_index_is_closed_and_opens_again_with_the_version_that_it_served(folder):
    clock = Clock()
    indexes = open_indexes(str(folder), clock, idle_s=60)
    delete(folder / "docs", every=2, version=2)

    async def run() -> None:
        await indexes.open("docs")
        clock.now = 50
        await indexes.open("wiki")
        indexes.opened["docs"].service.versions.served = Served(3, 2, previous=1)
        clock.now = 70
        indexes.close_idle()
        assert list(indexes.opened) == ["wiki"]
        assert (await indexes.open("docs")).versions.served == Served(3, 2, previous=1)
        facts = await (await indexes.open("docs")).index()
        assert (facts.version, facts.num_docs) == (2, 30)
        clock.now = 500
        with indexes.opened["docs"].service.admission.enter():
            indexes.close_idle()
            assert list(indexes.opened) == ["docs"]  # a request is in progress
        indexes.close_idle()
        assert not indexes.opened
        shutil.rmtree(folder / "docs" / "versions" / "2")
        assert (await indexes.open("docs")).versions.served == Served(0, 1)

    asyncio.run(run())


def test_idle_indexes_are_closed_without_a_further_request(folder):
    async def run() -> None:
        indexes = open_indexes(str(folder), idle_s=0.04)
        indexes.clock = asyncio.get_running_loop().time
        await indexes.open("docs")
        for _ in range(200):
            if not indexes.opened:
                return
            await asyncio.sleep(0.02)
        raise AssertionError("the index stays open")

    asyncio.run(run())


def test_closing_frees_the_files_and_the_encoder(folder):
    clock = Clock()
    indexes = open_indexes(str(folder), clock)

    async def run() -> None:
        first, second = await indexes.open("docs"), await indexes.open("wiki")
        assert first.workers[0].encoders.keys() == second.workers[0].encoders.keys()
        assert len({id(each) for service in (first, second) for each in service.workers[0].encoders.values()}) == 1  # they share one
        clock.now = 60
        indexes.close_idle()
        for service in (first, second):
            assert not service.workers[0].encoders
            assert not service.workers[0].versions.keep((1,)) and not service.workers[1].versions.keep((1,))

    asyncio.run(run())


def test_freed_memory_returns_to_the_system_after_indexes_were_opened_and_closed(folder, monkeypatch):
    freed: list[int] = []

    async def run() -> None:
        indexes = open_indexes(str(folder), idle_s=0.04)
        indexes.clock = asyncio.get_running_loop().time
        monkeypatch.setattr("serving.indexes.indexes.free_memory", lambda: freed.append(len(indexes.opened)))
        await indexes.open("docs")
        for _ in range(200):
            if freed and freed[-1] == 0:
                return
            await asyncio.sleep(0.02)

    asyncio.run(run())
    assert freed[-1] == 0


def test_the_memory_budget_closes_the_index_that_was_not_used_for_longest(folder):
    from ray_lir.index.versions import read_version

    clock = Clock()
    each = index_bytes(read_version(str(folder / "docs")))
    indexes = open_indexes(str(folder), clock, max_bytes=2.5 * each)

    async def run() -> None:
        for clock.now, name in enumerate(["docs", "wiki", "docs", "mail"]):
            await indexes.open(name)
        assert sorted(indexes.opened) == ["docs", "mail"]
        indexes.max_bytes = each - 1
        with pytest.raises(ShardUnavailable, match="raise memory_gb, or serve it alone"):
            await indexes.open("wiki")
        assert sorted(indexes.opened) == ["docs", "mail"]  # a failure closes nothing

    asyncio.run(run())


def test_a_closed_index_still_answers_requests_in_progress(folder):
    from ray_lir.api.search import SearchRequest

    indexes = open_indexes(str(folder))

    async def run() -> None:
        service = await indexes.open("docs")
        running = asyncio.create_task(service.search(SearchRequest(query=QUERIES[0], k=3)))
        await asyncio.sleep(0)
        indexes._close("docs")
        assert len((await running).results[0]) == 3

    asyncio.run(run())


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """Serves an application on a free port and yields its address."""
    socket_ = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([socket_],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{socket_.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def test_the_clients_and_commands_use_one_of_several_indexes_by_name(folder, capsys):
    async def asked(url: str) -> tuple[int, int]:
        async with AsyncClient(url, index="wiki") as client:
            return (await client.index()).num_docs, len((await client.indexes()).indexes)

    with listening(routes_of_many(open_indexes(str(folder)))) as url:
        with Client(f"{url}/", index="docs") as client:
            assert client.search("token", k=2).results[0] and client.document("doc-1").doc_id == "doc-1"
            assert client.health().ready
            assert {each.name: each.state for each in client.indexes().indexes} == {"docs": "open", "mail": "closed", "wiki": "closed"}
            copy = pickle.loads(pickle.dumps(client))
            assert copy.index().index == str(folder / "docs")
            copy.close()
        with Client(url, index="dosc") as client, pytest.raises(NotFound, match="did you mean 'docs'"):
            client.search("token")
        for name in ("a/../docs", "docs/index?", ".."):
            with Client(url, index=name) as client, pytest.raises(RayLirError):
                client.index()
        assert asyncio.run(asked(url)) == (60, 3)
        ask.main(ask.AskJob, ask.run, ["token", "--url", url, "--name", "mail", "--k", "1"], positional="query")
        assert len(json.loads(capsys.readouterr().out)["results"][0]) == 1


# Tokens


def write_tokens(path: Path, content: Any) -> str:
    path.write_text(yaml.safe_dump(content))
    return str(path)


@pytest.fixture
def tokens(tmp_path: Path) -> dict[str, str]:
    return {name: f"{name}-0123456789abcdef" for name in ("docs", "both", "all", "admin", "mail-admin")}


@pytest.fixture
def guarded(folder: Path, tmp_path: Path, tokens: dict[str, str]) -> Iterator[TestClient]:
    content = {
        "read": [{"token": tokens["docs"], "indexes": ["docs"]}, {"token": tokens["both"], "indexes": ["docs", "wiki"]}, tokens["all"]],
        "admin": [tokens["admin"], {"token": tokens["mail-admin"], "indexes": ["mail"]}],
    }
    access = Access(grants=read_tokens(write_tokens(tmp_path / "tokens.yaml", content)))
    with TestClient(routes_of_many(open_indexes(str(folder)), access), raise_server_exceptions=False) as client:
        yield client


ALLOWED = {"docs": {"docs"}, "both": {"docs", "wiki"}, "all": set(NAMES), "admin": set(NAMES), "mail-admin": {"mail"}}
ROUTES = {
    "search": {"query": "token", "k": 1},
    "encode": {"texts": ["token"]},
    "rerank": {"query": "token", "doc_ids": ["doc-1"]},
    "explain": {"query": "token", "doc_id": "doc-1"},
    "documents?id=doc-1": None,
    "documents/doc-1": None,
    "index": None,
    "health": None,
    "health/ready": None,
    "admin/index": {"action": "roll_back"},
}
SPELLINGS = ["{name}", "{name}%2F", "docs/../{name}", "docs%2F..%2F{name}", "%2e%2e/indexes/{name}", "{name}%00", "{name}/.", ".//{name}"]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True, database=None)
@given(
    holder=st.sampled_from(sorted(ALLOWED)),
    name=st.sampled_from([*NAMES, "empty", "nothing", "doc"]),
    route=st.sampled_from(sorted(ROUTES)),
    spelling=st.sampled_from(SPELLINGS),
)
def test_a_token_reaches_no_route_of_an_index_outside_its_limits(guarded, tokens, holder, name, route, spelling):
    indexes = guarded.app.state.indexes
    before = set(indexes.opened)
    headers = {"Authorization": f"Bearer {tokens[holder]}"}
    url = f"/indexes/{spelling.format(name=name)}/{route}"
    body = ROUTES[route]
    reply = guarded.request("GET" if body is None else "POST", url, json=body, headers=headers)
    allowed = ALLOWED[holder]
    assert set(indexes.opened) - before <= allowed, "a token opened an index that it may not use"
    if name not in allowed and spelling == "{name}":
        # the same answer for an index that exists and for one that does not
        limited = holder not in ("all", "admin")
        assert reply.status_code == (403 if limited else 404)
        others = set(NAMES) - allowed - {name}
        assert not any(other in reply.json()["error"]["message"] for other in others)
    if name in allowed and spelling == "{name}":
        is_admin = holder in ("admin", "mail-admin")
        assert reply.status_code == (200 if route != "admin/index" else 409 if is_admin else 403)
    listed = {each["name"] for each in guarded.get("/indexes", headers=headers).json()["indexes"]}
    assert listed == allowed & set(NAMES)


def test_without_a_token_no_name_of_an_index_is_shown(guarded):
    for path in ("/indexes", "/indexes/docs/index", "/indexes/docs/health", "/indexes/none/health"):
        assert guarded.get(path).status_code == 401
    assert guarded.get("/health").json()["deployments"] == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"read": [{"token": "short", "indexes": ["docs"]}]}, "shorter than 16 characters"),
        ({"read": [{"indexes": ["docs"]}]}, "shorter than 16 characters"),
        ({"read": [{"token": "0123456789abcdef", "index": ["docs"]}]}, "unknown field index"),
        ({"read": [{"token": "0123456789abcdef", "indexes": []}]}, "indexes: "),
        ({"read": [{"token": "0123456789abcdef", "indexes": "docs"}]}, "indexes: "),
        ({"read": [{"token": "0123456789abcdef", "requests_per_second": 0}]}, "requests_per_second: "),
        ({"read": [{"token": "0123456789abcdef", "requests_per_second": "many"}]}, "requests_per_second: "),
    ],
)
def test_a_wrong_limit_in_a_token_file_is_refused_without_showing_the_token(tmp_path, content, message):
    with pytest.raises(ConfigError, match=message) as error:
        read_tokens(write_tokens(tmp_path / "tokens.yaml", content))
    assert "0123456789abcdef" not in str(error.value)


def test_a_token_above_its_rate_gets_429_with_the_time_to_wait_and_others_do_not(folder, tmp_path):
    content = {"read": [{"token": "slow-0123456789abcdef", "requests_per_second": 0.5}, "fast-0123456789abcdef"]}
    access = Access(grants=read_tokens(write_tokens(tmp_path / "tokens.yaml", content)))
    with TestClient(routes_of_many(open_indexes(str(folder)), access)) as client:
        slow, fast = ({"Authorization": f"Bearer {token}-0123456789abcdef"} for token in ("slow", "fast"))
        assert client.get("/indexes/docs/index", headers=slow).status_code == 200
        refused = client.get("/indexes/wiki/index", headers=slow)
        assert refused.status_code == 429 and refused.headers["Retry-After"] == "2"
        assert refused.json()["error"]["kind"] == "Overloaded"
        for _ in range(5):
            assert client.get("/indexes/docs/index", headers=fast).status_code == 200


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(0.1, 50),
    pauses=st.lists(st.floats(0, 2), min_size=1, max_size=60),
)
def test_in_no_period_does_a_token_exceed_its_rate(rate, pauses):
    clock = Clock()
    limit = RateLimit(rate, clock)
    accepted = []
    for pause in pauses:
        clock.now += pause
        try:
            limit.enter()
            accepted.append(clock.now)
        except Overloaded as error:
            later = RateLimit(rate, clock)
            later._available, later._at = limit._available, limit._at
            clock.now += error.retry_after_s
            later.enter()  # after Retry-After, a request is accepted
            clock.now -= error.retry_after_s
    for first in range(len(accepted)):
        for last in range(first, len(accepted)):
            assert last - first + 1 <= max(1, rate) + rate * (accepted[last] - accepted[first]) + 1e-6


def test_the_rate_of_a_token_also_holds_in_a_service_of_one_index(tmp_path):
    content = {"read": [{"token": "0123456789abcdef", "requests_per_second": 1}]}
    refused = []
    guard = Guard(Access(grants=read_tokens(write_tokens(tmp_path / "tokens.yaml", content))), lambda: refused.append(1))
    credentials: Any = SimpleNamespace(credentials="0123456789abcdef")
    guard.check("read", credentials)
    with pytest.raises(Overloaded):
        guard.check("read", credentials)
    assert refused == [1]


# Fairness


def test_slots_go_to_the_indexes_round_robin():
    order: list[str] = []

    async def request(slots: FairSlots, index: str) -> None:
        async with slots.enter(index, asyncio.get_running_loop().time() + 10):
            order.append(index)
            await asyncio.sleep(0)

    async def run() -> None:
        slots = FairSlots(1)
        await asyncio.gather(*(request(slots, "noisy") for _ in range(6)), request(slots, "quiet"), request(slots, "quiet"))
        assert slots.running == 0

    asyncio.run(run())
    assert order == ["noisy", "noisy", "quiet", "noisy", "quiet", "noisy", "noisy", "noisy"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.booleans()), max_size=25), st.integers(1, 3))
def test_slots_are_never_lost_nor_exceeded_when_requests_are_cancelled(requests, limit):
    async def run() -> None:
        slots, holding, most = FairSlots(limit), 0, 0

        async def request(index: str, steps: int) -> None:
            nonlocal holding, most
            async with slots.enter(index, asyncio.get_running_loop().time() + 10):
                holding += 1
                most = max(most, holding)
                try:
                    for _ in range(steps):
                        await asyncio.sleep(0)
                finally:
                    holding -= 1

        tasks = []
        for index, steps, cancelled in requests:
            tasks.append(asyncio.create_task(request(index, steps)))
            await asyncio.sleep(0)
            if cancelled:
                tasks[len(tasks) // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert most <= limit and slots.running == 0 and not slots._waiting

    asyncio.run(run())


def test_a_request_that_gets_no_slot_in_time_is_answered():
    async def run() -> None:
        slots = FairSlots(1)
        now = asyncio.get_running_loop().time()
        async with slots.enter("a", now + 10):
            with pytest.raises(ShardUnavailable, match="try again"):
                async with slots.enter("b", now + 0.01):
                    pass
        assert slots.running == 0

    asyncio.run(run())


def test_each_index_has_its_own_request_limit(folder):
    indexes = open_indexes(str(folder), max_requests=1)

    async def run() -> None:
        docs, wiki = await indexes.open("docs"), await indexes.open("wiki")
        with docs.admission.enter():
            with pytest.raises(Overloaded):
                await docs.document("doc-1")
            assert (await wiki.document("doc-1")).doc_id == "doc-1"

    asyncio.run(run())


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": "a", "indexes": "b"}, "index and indexes are both set"),
        ({"indexes": "FOLDER", "replicas": 2}, "replicas is a setting of a service of one index"),
        ({"indexes": "FOLDER", "version": 1}, "version is a setting of a service of one index"),
        ({"index": "FOLDER/docs", "memory_gb": 1}, "memory_gb is a setting of a service of several indexes"),
        ({"indexes": "FOLDER/nowhere"}, "holds no index"),
        ({"indexes": "FOLDER/docs"}, "is an index, not a folder of indexes"),
        ({"indexes": "a/b=FOLDER/docs"}, "cannot be the name of an index"),
        ({"indexes": "docs="}, "should be a folder, or name=path"),
        ({"indexes": {}}, "indexes is empty"),
        ({"indexes": "s3://bucket/indexes"}, "is not on a disk"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(folder, arguments, message):
    arguments = {name: value.replace("FOLDER", str(folder)) if isinstance(value, str) else value for name, value in arguments.items()}
    with pytest.raises(ConfigError, match=message):
        application_of(parse(arguments))


def test_a_token_limited_to_indexes_needs_a_service_of_several(folder, tmp_path):
    tokens = write_tokens(tmp_path / "tokens.yaml", {"read": [{"token": "0123456789abcdef", "indexes": ["docs"]}]})
    with pytest.raises(ConfigError, match="limits a token to some indexes, but the service has one"):
        application_of(parse({"index": str(folder / "docs"), "tokens": tokens}))
    application_of(parse({"indexes": str(folder), "tokens": tokens}))


def test_names_may_be_given_to_indexes_anywhere(folder, monkeypatch):
    monkeypatch.chdir(folder)
    config = parse({"indexes": "a=docs, b=wiki"})
    assert config.indexes == {"a": str(folder / "docs"), "b": str(folder / "wiki")}
    catalog = Catalog(config.indexes)
    assert catalog.names() == ["a", "b"] and catalog.root("a") == str(folder / "docs")
    with pytest.raises(NotFound):
        catalog.root("docs")


def test_an_index_without_a_known_encoder_is_refused_alone(folder, monkeypatch):
    manifest = next((folder / "mail").glob("versions/1/manifest.json"))
    digest = EncoderContract.model_validate(yaml.safe_load(manifest.read_text())["contract"]).weights_digest
    manifest.write_text(manifest.read_text().replace(digest, ""))
    with TestClient(routes_of_many(open_indexes(str(folder)))) as client:
        assert client.post("/indexes/mail/search", json={"query": "x"}).status_code == 503
        assert client.post("/indexes/docs/search", json={"query": "x"}).status_code == 200


def test_metrics_of_requests_have_the_name_of_the_index(folder):
    metrics = Metrics()
    seen = []
    for name in ("_requests", "_search_seconds", "_refused", "_version"):
        instrument = getattr(metrics, name)
        setattr(instrument, "set" if name == "_version" else "observe" if "seconds" in name else "inc", lambda *a, **k: seen.append(a[1]))
    services = LocalServices(None, True, None, "auto", 1, 30.0, 64, FairSlots(2), metrics)
    indexes = Indexes(Catalog(str(folder)), services.open, 60, 1e9, metrics)
    with TestClient(routes_of_many(indexes)) as client:
        client.post("/indexes/docs/search", json={"query": "x"})
        assert {labels["index"] for labels in seen} == {"docs"}
        seen.clear()
        client.post("/indexes/no-such-index/search", json={"query": "x"})
        assert {labels["index"] for labels in seen} == {""}  # names from requests never become labels
