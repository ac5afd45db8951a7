"""The service in one process, without Ray: the same answers, its metrics, and which settings it leaves to Ray Serve."""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.index import postings
from ray_lir.index.postings import by_centroid
from ray_lir.search.searcher import Searcher, open_shards
from serving.__main__ import runs_here
from serving.http.access import Access, read_tokens
from serving.in_process import application_of, serve_in_process
from serving.metrics import Metrics
from serving.options import Options
from serving.prometheus import Registry
from serving.settings import parse
from serving.workers import shard_server
from tests.support.repository import REPOSITORY
from tests.support.served_index import QUERIES


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("residency", ["memory", "disk"])
def test_answers_are_those_of_the_library(index: Path, searcher: Searcher, encoder: Encoder, residency: str, monkeypatch):
    opened: list[bool] = []
    sorted_lists: list[object] = []
    monkeypatch.setattr(postings, "by_centroid", lambda *args: sorted_lists.append(args) or by_centroid(*args))
    monkeypatch.setattr(shard_server, "open_shards", lambda *args: opened.append(args[-1]) or open_shards(*args))
    app = application_of(parse({"index": str(index), "residency": residency}), Access(), Registry())
    assert opened == [residency == "disk"] * 4
    assert len(sorted_lists) == (4 if residency == "disk" else 0)  # they are ready before the first query
    with TestClient(app) as client:
        hits = client.post("/search", json={"query": QUERIES[0], "k": 5, "engine": "exact"}).json()["results"][0]
        health = client.get("/health").json()
    [expected] = searcher.search(encoder.encode_queries([QUERIES[0]]), 5, "exact")
    assert [(hit["number"], hit["score"]) for hit in hits] == list(zip(expected.documents.tolist(), expected.scores.tolist(), strict=True))
    assert health["deployments"] == {"QueryEncoder": "ok"} | {f"ShardGroup-{group}": "ok" for group in range(4)}


def test_several_indexes_open_on_their_first_request(index: Path):
    app = application_of(parse({"indexes": f"one={index},two={index}"}), Access(), Registry())
    with TestClient(app) as client:
        assert [each["state"] for each in client.get("/indexes").json()["indexes"]] == ["closed", "closed"]
        assert client.post("/indexes/two/search", json={"query": QUERIES[0]}).status_code == 200
        assert 'ray_lir_index_opens_total{index="two",result="ok"} 1.0' in client.get("/metrics").text


def test_metrics_are_for_those_who_may_read(index: Path, tmp_path: Path):
    (tmp_path / "tokens.yaml").write_text("read: [a-token-of-a-reader]\n")
    app = application_of(parse({"index": str(index)}), Access(grants=read_tokens(str(tmp_path / "tokens.yaml"))), Registry())
    with TestClient(app) as client:
        assert client.get("/metrics").status_code == 401
        found = client.get("/metrics", headers={"Authorization": "Bearer a-token-of-a-reader"})
    assert found.status_code == 200 and found.text.startswith("# HELP ray_lir_requests_total ")


def test_a_process_serves_until_it_is_ended(index: Path, free_port: int):
    command = [sys.executable, "-m", "serving", "--index", str(index), "--port", str(free_port)]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout and process.stdout.readline() == f"http://127.0.0.1:{free_port}/ is ready, and /docs describes its API\n"
        body = json.dumps({"query": QUERIES[0], "k": 2}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{free_port}/search", body, {"Content-Type": "application/json"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as reply:
            assert len(json.load(reply)["results"][0]) == 2
        assert (
            "libray" not in Path(f"/proc/{process.pid}/maps").read_text() and "_raylet" not in Path(f"/proc/{process.pid}/maps").read_text()
        )
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0, errors
    assert "serve: in this process (--where ray starts Ray Serve" in errors and errors.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "address", "expected"),
    [
        ({}, None, True),
        ({}, "local", True),
        ({}, "10.1.2.3:6379", False),
        ({"where": "here"}, "10.1.2.3:6379", True),
        ({"where": "ray"}, None, False),
        ({"replicas": 2}, None, False),
        ({"max_replicas": 4}, None, False),
        ({"shard_gpus": 0.5}, None, False),
        ({"encoder_gpus": 1}, None, False),
        ({"writes": True}, None, False),
        ({"num_groups": 2, "kernels": "reference"}, None, True),
    ],
)
def test_auto_serves_here_unless_a_setting_needs_ray(settings, address, expected, monkeypatch, caplog):
    if address:
        monkeypatch.setenv("RAY_ADDRESS", address)
    caplog.set_level(logging.INFO, "ray_lir")
    assert runs_here(Options(index="i", **settings)) == expected
    assert bool(caplog.messages) == (expected and "where" not in settings)


def test_a_setting_of_ray_serve_is_refused_here():
    with pytest.raises(ConfigError, match="replicas needs Ray Serve; leave out --where here, or leave out --replicas"):
        runs_here(Options(index="i", where="here", replicas=2))


def test_a_port_that_is_taken_is_reported_before_the_index_is_opened(index: Path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: .*; choose another --port"):
            serve_in_process(Options(index=str(index), port=port))


def test_a_damaged_index_is_reported(tmp_path: Path, free_port: int):
    (tmp_path / "LATEST").write_text("x")
    done = subprocess.run(
        [sys.executable, "-m", "serving", "--index", str(tmp_path), "--port", str(free_port)],
        cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("error: ")


def test_the_registry_writes_what_prometheus_reads():
    registry = Registry()
    counter = registry.counter("lir_things", "Things.", ("kind",))
    histogram = registry.histogram("lir_seconds", "Seconds.", [0.1, 1.0], ("kind",))
    counter.inc(1, {"kind": 'a"b\\c\nd'})
    counter.inc(2, {"kind": 'a"b\\c\nd'})
    for value in (0.1, 0.5, 7.0):
        histogram.observe(value, {"kind": "x"})
    registry.gauge("lir_size", "Size.").set(4, {})
    assert registry.text().splitlines() == [
        "# HELP ray_lir_things_total Things.",
        "# TYPE ray_lir_things_total counter",
        'ray_lir_things_total{kind="a\\"b\\\\c\\nd"} 3.0',
        "# HELP ray_lir_seconds Seconds.",
        "# TYPE ray_lir_seconds histogram",
        'ray_lir_seconds_bucket{kind="x",le="0.1"} 1',
        'ray_lir_seconds_bucket{kind="x",le="1.0"} 2',
        'ray_lir_seconds_bucket{kind="x",le="+Inf"} 3',
        'ray_lir_seconds_sum{kind="x"} 7.6',
        'ray_lir_seconds_count{kind="x"} 3',
        "# HELP ray_lir_size Size.",
        "# TYPE ray_lir_size gauge",
        "ray_lir_size{} 4",
    ]


def test_both_exporters_have_the_same_metrics():
    names = {name for name, value in vars(Metrics()).items() if hasattr(value, "info")}
    registry = Registry()
    assert names == {name for name, value in vars(Metrics("", registry)).items() if hasattr(value, "kind")} and registry.text()
