"""The service on Ray Serve in operation: versions, lost groups, a restarted gateway, metrics, disconnected clients."""

import json
import os
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ray_lir.api.client import Client
from ray_lir.base.errors import Forbidden, RayLirError, ShardUnavailable
from ray_lir.storage.manifest import LATEST
from tests.support.repository import REPOSITORY
from tests.support.served_index import QUERIES, answers_in_process, make_index, serve_started

WRITES = {"ray_lir_written_total", "ray_lir_unpublished_writes", "ray_lir_visible_seconds_bucket", "ray_lir_publish_failures_total"}
RARE = {"ray_lir_refused_requests_total", "ray_lir_hedged_calls_total", *WRITES}
"""Metrics that are exported only after the first event, or by a service with writes."""
READ, ADMIN = "read-0123456789abcdef", "admin-0123456789abcdef"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; the second has more documents."""
    folder = tmp_path_factory.mktemp("operated")
    index = make_index(folder, num_docs=150, num_shards=2)
    other = make_index(folder / "other", num_docs=250, num_shards=3)
    for name in ("codec", "lexical", "shards"):
        shutil.copytree(other / name, index / name, dirs_exist_ok=True)
    shutil.copytree(other / "versions" / "1", index / "versions" / "2")
    (index / LATEST).write_text("2")
    return index


@pytest.fixture(scope="module")
def url(ray_cluster: None, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from serving.app import build

    tokens = tmp_path_factory.mktemp("tokens") / "tokens.yaml"
    tokens.write_text(f"read: [{READ}]\nadmin: [{ADMIN}]\n")
    with serve_started() as address:
        serve.run(build({"index": str(index), "version": "1", "tokens": str(tokens), "encoder_cpus": 0.1, "replicas": 2}))
        yield address


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, READ) as client:
        yield client


@pytest.fixture(scope="module")
def expected(index: Path) -> dict[int, list[tuple[str, float]]]:
    """Return the answer of each version to the second query."""
    return {version: answers_in_process(index, QUERIES[1:2], 5, version)[0] for version in (1, 2)}


def ask(client: Client, **options: object) -> tuple[int, list[tuple[str, float]]]:
    response = client.search(QUERIES[1], k=5, engine="scan", include=[], **options)
    return response.index_version, [(hit.doc_id, hit.score) for hit in response.results[0]]


def answered(client: Client) -> tuple[int, list[tuple[str, float]]] | None:
    """Return the served version; None while the service cannot answer."""
    try:
        return ask(client)
    except RayLirError:
        return None


def kill(part: str) -> None:
    """End all replicas of a deployment as if their machines were lost."""
    import ray

    for each in ray.util.list_named_actors(all_namespaces=True):
        if f"#{part}#" in each["name"]:
            ray.kill(ray.get_actor(each["name"], namespace="serve"), no_restart=True)


def until(seen: Callable[[], object], seconds: float = 60) -> object:
    end = time.monotonic() + seconds
    while not (value := seen()):
        assert time.monotonic() < end
        time.sleep(0.3)
    return value


def test_a_canary_is_promoted_and_rolled_back_under_load_without_failed_or_mixed_answers(url, client, expected):
    until(lambda: client.health().ready)
    with pytest.raises(Forbidden):
        client.load_version(2)
    seen: list[tuple[int, list[tuple[str, float]]]] = []
    stop = False

    def keep_asking() -> None:
        with Client(url, READ) as own_client:
            while not stop:
                seen.append(ask(own_client))

    with ThreadPoolExecutor(2) as pool, Client(url, ADMIN) as admin:
        asking = [pool.submit(keep_asking) for _ in range(2)]
        state = admin.load_version()
        time.sleep(0.3)
        back = admin.roll_back()
        canary = admin.load_version(2, traffic_fraction=0.5)
        time.sleep(0.3)
        promoted = admin.promote()
        back_again = admin.roll_back()
        again = admin.load_version(2)
        time.sleep(0.3)
        stop = True
        for each in asking:
            each.result()
    assert (state.version, state.previous, back.version, again.version) == (2, 1, 1, 2)
    assert (canary.version, canary.canary, canary.traffic_fraction, promoted.version, back_again.version) == (1, 2, 0.5, 2, 1)
    assert state.replicas == {"QueryEncoder": 2, "ShardGroup-0": 2, "ShardGroup-1": 2}
    assert {version for version, _ in seen} == {1, 2}
    for version, hits in seen:
        assert [doc_id for doc_id, _ in hits] == [doc_id for doc_id, _ in expected[version]]


def test_calls_to_a_hanging_replica_are_hedged(client, expected):
    import ray

    for _ in range(40):
        assert ask(client) == (2, expected[2])
    actors = ray._private.state.actors().values()
    pid = next(each["Pid"] for each in actors if "#ShardGroup-0#" in each["Name"] and each["State"] == "ALIVE")
    os.kill(pid, signal.SIGSTOP)
    try:
        for _ in range(20):
            start = time.monotonic()
            assert ask(client, deadline_ms=10_000) == (2, expected[2])
            assert time.monotonic() - start < 5
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_lost_gateway_returns_with_the_served_version(client, expected):
    assert ask(client)[0] == 2
    kill("Gateway")
    assert until(lambda: answered(client)) == (2, expected[2])
    assert client.index().previous == 1


def test_a_group_without_replicas_is_left_out_on_request_and_comes_back(client, expected):
    kill("ShardGroup-1")
    response = client.search(QUERIES[1], k=5, engine="scan", min_coverage=0.1, deadline_ms=1500)  # replicas start more slowly than this
    assert list(response.missing) == ["ShardGroup-1"] and 0 < response.coverage < 1
    assert len(response.results[0]) == 5
    assert until(lambda: answered(client)) == (2, expected[2])


def test_a_request_that_cannot_meet_its_deadline_fails_before_it(client):
    start = time.monotonic()
    with pytest.raises(ShardUnavailable, match="did not answer in time"):
        client.search(["a question"] * 64, k=1000, engine="exact", deadline_ms=5)
    assert time.monotonic() - start < 5


def test_every_reply_carries_the_id_that_its_line_in_the_log_carries(url):
    import ray

    reply = httpx.get(f"{url}/health/live", headers={"X-Request-ID": "a-request-of-mine"})
    assert reply.headers["X-Request-ID"] == "a-request-of-mine"
    logs = Path(ray._private.worker._global_node.get_session_dir_path()) / "logs" / "serve"

    def lines() -> list[dict]:
        text = "".join(file.read_text() for file in logs.glob("replica_default_Gateway_*.log"))
        return [json.loads(line) for line in text.splitlines() if "a-request-of-mine" in line]

    [line] = until(lines, 20)
    assert (line["request_id"], line["endpoint"], line["status"]) == ("a-request-of-mine", "/health/live", 200)


def test_requests_of_disconnected_clients_are_cancelled_and_counted(url, client):
    import ray

    body = json.dumps({"queries": ["a question that takes its time"] * 64, "k": 1000, "engine": "exact"}).encode()
    headers = ("Host: x", f"Authorization: Bearer {READ}", "Content-Type: application/json", f"Content-Length: {len(body)}")
    head = "\r\n".join(("POST /search HTTP/1.1", *headers, "", ""))
    for patience in (0.05, 0.1, 0.2, 0.3, 0.4):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as leaver:
            leaver.sendall(head.encode() + body)
            time.sleep(patience)
    ask(client)
    [node] = ray.nodes()
    address = f"http://127.0.0.1:{node['MetricsExportPort']}/metrics"

    def exported() -> str | None:
        text = httpx.get(address).text
        return text if 'status="499"' in text and "ray_lir_failed_calls_total" in text else None

    text = until(exported, 40)
    dashboard = (REPOSITORY / "infra" / "grafana" / "search.json").read_text()
    shown = set(re.findall(r"ray_[a-z_]+", dashboard)) - {"ray_lir", *RARE}
    assert len(shown) > 8 and {name for name in shown if name not in text} == set()
    assert 'target="ShardGroup-0"' in text and 'step="stage-1"' in text
