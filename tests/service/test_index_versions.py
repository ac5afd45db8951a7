"""Loading another index version into a running service: every worker verifies it first, and no answer mixes versions."""

import asyncio
import json
import shutil
import uuid
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ray_lir.api import admin as operation
from ray_lir.api import search as messages
from ray_lir.base.errors import ConfigError, Conflict, ShardUnavailable
from ray_lir.storage.manifest import LATEST
from serving.http.middleware import REQUEST_ID
from serving.http.routes import routes
from serving.service import Service
from serving.workers.versions import Served, Versions
from tests.support.local_service import LocalTransport, local_service, raising, sleeping
from tests.support.served_index import QUERIES, answers_in_process, make_index


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index of two versions; the latest has 100 other documents in one shard."""
    folder = tmp_path_factory.mktemp("versions")
    index = make_index(folder, num_docs=120, num_shards=3)
    other = make_index(folder / "other", num_docs=200, num_shards=2)
    for name in ("codec", "lexical", "shards"):
        shutil.copytree(other / name, index / name, dirs_exist_ok=True)
    shutil.copytree(other / "versions" / "1", index / "versions" / "2")
    (index / LATEST).write_text("2")
    return index


@pytest.fixture
def index(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "index")
    return tmp_path / "index"


def expected(index: Path, version: int, query: str, k: int = 5) -> list[str]:
    return [doc_id for doc_id, _ in answers_in_process(index, [query], k, version)[0]]


def load(version: int | None = None, traffic_fraction: float | None = None) -> operation.IndexChange:
    return operation.IndexChange(action="load", version=version, traffic_fraction=traffic_fraction)


PROMOTE = operation.IndexChange(action="promote")
ROLL_BACK = operation.IndexChange(action="roll_back")
REQUEST = messages.SearchRequest(query=QUERIES[1], k=5, engine="scan")


async def found(service: Service, request_id: str | None = None) -> tuple[int, list[str]]:
    REQUEST_ID.set(request_id or uuid.uuid4().hex)
    response = await service.search(REQUEST)
    return response.index_version, [hit.doc_id for hit in response.results[0]]


def test_a_loaded_version_is_served_and_a_roll_back_restores_the_former(index):
    async def scene() -> None:
        service, _ = local_service(index, 2)
        assert await found(service) == (1, expected(index, 1, QUERIES[1]))
        state = await service.change_index(load())
        assert (state.version, state.previous) == (2, 1)
        assert state.replicas == {"QueryEncoder": 1, "ShardGroup-0": 1, "ShardGroup-1": 1}
        assert await found(service) == (2, expected(index, 2, QUERIES[1]))
        assert ((await service.index()).version, (await service.index()).num_docs) == (2, 200)
        await service.change_index(ROLL_BACK)
        assert await found(service) == (1, expected(index, 1, QUERIES[1]))
        await service.change_index(ROLL_BACK)
        assert (await found(service))[0] == 2

    asyncio.run(scene())


def test_running_requests_finish_with_their_version_after_a_change(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        answers = {version: (version, expected(index, version, QUERIES[1])) for version in (1, 2)}
        for group in ("ShardGroup-0", "ShardGroup-1"):
            calls.faults[group] = sleeping(0.3, "search")
        begun = [asyncio.create_task(found(service)) for _ in range(4)]
        await asyncio.sleep(0.1)
        calls.faults.clear()
        await service.change_index(load(2))
        assert await found(service) == answers[2]
        assert await asyncio.gather(*begun) == [answers[1]] * 4

    asyncio.run(scene())


def test_every_answer_under_load_comes_from_one_version(index):
    async def scene() -> None:
        service, _ = local_service(index, 2)
        answers = {version: expected(index, version, QUERIES[1]) for version in (1, 2)}
        seen: list[tuple[int, list[str]]] = []
        stop = False

        async def ask() -> None:
            while not stop:
                seen.append(await found(service))

        asking = [asyncio.create_task(ask()) for _ in range(4)]
        for change in (load(2), ROLL_BACK, load(2, 0.3), load(2, 0.7), ROLL_BACK, load(2, 0.5), PROMOTE, ROLL_BACK, load(2)):
            await service.change_index(change)
            await asyncio.sleep(0.1)
        stop = True
        await asyncio.gather(*asking)
        assert {version for version, _ in seen} == {1, 2}
        assert all(doc_ids == answers[version] for version, doc_ids in seen)

    asyncio.run(scene())


@pytest.mark.parametrize("damage", ["shard", "codec", "missing"])
def test_a_version_that_is_damaged_is_never_served(index, damage):
    manifest = json.loads((index / "versions" / "2" / "manifest.json").read_text())
    if damage == "missing":
        shutil.rmtree(index / "versions" / "2")
    else:
        name = manifest["codec"]["name"] if damage == "codec" else f"{manifest['shards'][1]['files'][0]['name']}"
        data = bytearray((index / name).read_bytes())
        data[len(data) // 2] ^= 1
        (index / name).write_bytes(data)

    async def scene() -> None:
        service, calls = local_service(index, 2)
        with pytest.raises(Conflict, match="version 2 cannot be served, so version 1 stays: .*expected"):
            await service.change_index(load(2))
        assert await found(service) == (1, expected(index, 1, QUERIES[1]))
        assert all(list(part.versions._opened) == [1] for part in calls.deployments.values())

    asyncio.run(scene())


def test_a_version_is_not_served_while_a_replica_does_not_answer(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        calls.faults["ShardGroup-1"] = raising(ShardUnavailable("ShardGroup-1 is gone"), "open_version")
        with pytest.raises(Conflict, match="ShardGroup-1 is gone"):
            await service.change_index(load(2))
        assert (await found(service))[0] == 1

    asyncio.run(scene())


def test_impossible_values_are_refused(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        with pytest.raises(Conflict, match="no version was served before version 1"):
            await service.change_index(ROLL_BACK)
        with pytest.raises(Conflict, match="version 1 is served already"):
            await service.change_index(load(1))
        calls.faults["QueryEncoder"] = sleeping(0.2, "open_version")
        first = asyncio.create_task(service.change_index(load(2)))
        await asyncio.sleep(0.1)
        with pytest.raises(Conflict, match="another change is in progress"):
            await service.change_index(load(2))
        await first

    asyncio.run(scene())


def test_a_restarted_gateway_serves_the_same_version(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        await service.change_index(load(2))
        again = Service(str(index), 1, service.groups, calls, 30.0, 64, service.metrics)
        assert (await found(again))[0] == 2
        await again.change_index(ROLL_BACK)
        assert (await found(again))[0] == 1

    asyncio.run(scene())


def test_a_canary_answers_a_fixed_fraction_of_request_ids(index):
    async def scene() -> None:
        service, _ = local_service(index, 2)
        answers = {version: (version, expected(index, version, QUERIES[1])) for version in (1, 2)}
        ids = [f"request-{number}" for number in range(100)]
        before: set[str] = set()
        for fraction in (0.2, 0.6):
            state = await service.change_index(load(2, fraction))
            assert (state.version, state.previous, state.canary, state.traffic_fraction) == (1, None, 2, fraction)
            replies = {each: await found(service, each) for each in ids}
            assert all(answer == answers[answer[0]] for answer in replies.values())
            by_canary = {each for each, (version, _) in replies.items() if version == 2}
            assert before < by_canary and abs(len(by_canary) / 100 - fraction) < 0.15
            before = by_canary
        facts = await service.index()
        assert (facts.version, facts.canary, facts.traffic_fraction, facts.num_docs) == (1, 2, 0.6, 120)

    asyncio.run(scene())


def test_a_request_may_name_any_version_that_is_open(index):
    service, _ = local_service(index, 2)
    requests = {number: messages.SearchRequest(query=QUERIES[1], k=5, engine="scan", version=number) for number in (1, 2, 3)}

    async def run() -> None:
        with pytest.raises(ConfigError, match="version 2 is not open; choose 1"):
            await service.search(requests[2])
        await service.change_index(load(2))
        for number in (1, 2):
            answer = await service.search(requests[number])
            assert answer.index_version == number
            assert [hit.doc_id for hit in answer.results[0]] == expected(index, number, QUERIES[1])
            missing = await service.explain(messages.ExplainRequest(query="river", doc_id="doc-1", version=number))
            assert missing.index_version == number
        assert (await service.search(REQUEST)).index_version == 2
        with pytest.raises(ConfigError, match="version 3 is not open; choose 1 or 2"):
            await service.search(requests[3])

    asyncio.run(run())


def test_a_canary_is_promoted_ended_and_replaced(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        for change, version, canary in [(load(2, 0.5), 1, 2), (ROLL_BACK, 1, None), (load(2, 0.5), 1, 2), (PROMOTE, 2, None)]:
            state = await service.change_index(change)
            assert (state.version, state.canary) == (version, canary)
        assert (state.previous, (await found(service))[0]) == (1, 2)
        await service.change_index(load(1, 0.5))
        assert (await service.change_index(load(1, 1.0))).version == 1
        with pytest.raises(Conflict, match="no canary to promote"):
            await service.change_index(PROMOTE)
        with pytest.raises(Conflict, match="version 1 is served already"):
            await service.change_index(load(1, 0.5))

    asyncio.run(scene())


def test_versions_that_no_request_can_reach_are_closed(index):
    for version in (3, 4):
        shutil.copytree(index / "versions" / "2", index / "versions" / str(version))

    async def scene() -> None:
        service, calls = local_service(index, 2)
        for change, left in [
            (load(2, 0.5), {1, 2}),
            (load(3, 0.5), {1, 3}),
            (ROLL_BACK, {1}),
            (load(2), {1, 2}),
            (load(4, 0.5), {1, 2, 4}),
            (PROMOTE, {2, 4}),
        ]:
            await service.change_index(change)
            assert [set(part.versions._opened) for part in (*calls.deployments.values(), service)] == [left] * 4

    asyncio.run(scene())


def test_a_restarted_gateway_keeps_the_canary(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        await service.change_index(load(2, 0.5))
        ids = [f"request-{number}" for number in range(20)]
        before = [await found(service, each) for each in ids]
        again = Service(str(index), 1, service.groups, calls, 30.0, 64, service.metrics)
        assert [await found(again, each) for each in ids] == before
        assert {version for version, _ in before} == {1, 2}
        assert (await again.change_index(PROMOTE)).version == 2

    asyncio.run(scene())


def test_the_request_id_decides_which_version_answers(index):
    service, _ = local_service(index, 2)
    asyncio.run(service.change_index(load(2, 0.5)))
    with TestClient(routes(service)) as client:

        def version(**headers: str) -> int:
            return client.post("/search", json={"query": "token", "k": 1}, headers=headers).json()["index_version"]

        by_id = {number: version(**{"X-Request-ID": f"mine-{number}"}) for number in range(20)}
        assert set(by_id.values()) == {1, 2}
        assert by_id == {number: version(**{"X-Request-ID": f"mine-{number}"}) for number in range(20)}
        assert {version() for _ in range(40)} == {1, 2}


def test_a_restarted_replica_opens_the_requested_version(index):
    async def scene() -> None:
        service, calls = local_service(index, 2)
        await service.change_index(load(2))
        calls.deployments.update(restarted(index))
        assert await found(service) == (2, expected(index, 2, QUERIES[1]))

    def restarted(index: Path) -> dict:
        _, fresh = local_service(index, 2)
        assert isinstance(fresh, LocalTransport)
        return fresh.deployments

    asyncio.run(scene())


def test_only_the_served_and_the_previous_version_stay_open():
    opened: list[int] = []
    versions: Versions[int] = Versions(lambda number: opened.append(number) or number, 1)
    for served in (Served(0, 1), Served(1, 2, 1), Served(0, 1), Served(2, 3, 2)):
        assert versions.get(served) == served.version
    versions.keep([2, 3])
    assert (versions.served, opened) == (Served(2, 3, 2), [1, 2, 3])
    versions.get(Served(0, 1))
    assert (versions.served, opened) == (Served(2, 3, 2), [1, 2, 3, 1])


def test_the_traffic_fraction_of_a_canary_may_be_spelled_share():
    old = operation.IndexChange.model_validate_json('{"action": "load", "version": 2, "share": 0.25}')
    assert old == load(2, 0.25)
    assert json.loads(old.model_dump_json())["traffic_fraction"] == 0.25
    assert operation.IndexState.model_validate({"version": 1, "canary": 2, "share": 0.25, "replicas": {}}).traffic_fraction == 0.25
