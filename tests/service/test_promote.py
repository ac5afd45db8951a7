"""The gate before a promotion: which versions it stops, what it reports, and that it leaves the service as it was."""

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from jobs import promote
from jobs.gate import ServedVersions
from jobs.promote import PromoteJob, run
from ray_lir.api.client import Client
from ray_lir.base.errors import ConfigError, Conflict, ShardUnavailable
from ray_lir.evaluation.promotion import check_documents, check_measure, check_overlap
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import manifest_digest
from serving.http.access import Access, read_tokens
from serving.http.routes import routes
from serving.service import Service
from tests.support.gate_collection import VERSIONS, make_versions
from tests.support.local_service import LocalTransport, local_service, raising
from tests.support.repository import REPOSITORY

ADMIN = "admin-0123456789abcdef"
WORSE = sorted(VERSIONS.keys() - {2})


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """An index with several versions, and its dataset."""
    return make_versions(tmp_path_factory.mktemp("gate"))


@pytest.fixture
def index(collection: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the index, with LATEST 1."""
    return shutil.copytree(collection[0], tmp_path / "index")


@pytest.fixture
def dataset(collection: tuple[Path, Path]) -> str:
    return str(collection[1])


@pytest.fixture
def log(collection: tuple[Path, Path]) -> str:
    return str(collection[1].parent / "log.txt")


@contextmanager
def listening(service: Service, folder: Path) -> Iterator[str]:
    """Serves the index with an admin token, and yields the address."""
    (folder / "tokens.yaml").write_text(f"admin: [{ADMIN}]\n")
    listener = socket.create_server(("127.0.0.1", 0))
    app = routes(service, Access(grants=read_tokens(str(folder / "tokens.yaml"))))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def served(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, LocalTransport]]:
    monkeypatch.setenv("RAY_LIR_TOKEN", ADMIN)
    service, transport = local_service(index, 1)
    with listening(service, tmp_path) as url:
        yield url, transport


def failed(report: dict[str, Any]) -> set[str]:
    return {check["name"] for check in report["checks"] if not check["passed"]}


def latest(index: Path) -> int:
    return int((index / "LATEST").read_text())


def test_a_version_that_is_as_good_is_promoted_and_the_report_lies_beside_it(index, dataset, log):
    report = run(PromoteJob(index=str(index), version=2, dataset=dataset, queries=log))
    assert report["promoted"] and not failed(report) and latest(index) == 2
    assert report["state"] == {"version": 2, "previous": 1}
    content = (index / "versions" / "2" / "promotion.json").read_bytes()
    assert report["report_sha256"] == hashlib.sha256(content).hexdigest()
    kept = json.loads(content)
    assert kept["promoted"] and kept["measure"]["queries"] == 160 and kept["measure"]["current"] > 0.8
    for name, version in (("current_manifest", 1), ("candidate_manifest", 2)):
        assert kept["digests"][name] == manifest_digest(read_version(str(index), version))
    assert set(kept["digests"]) == {"current_manifest", "candidate_manifest", "judged_queries", "judgements", "logged_queries"}


@pytest.mark.parametrize("version", WORSE, ids=VERSIONS.__getitem__)
def test_a_version_that_loses_quality_is_refused_by_its_measured_loss_alone(index, dataset, version):
    """Every other check is disabled."""
    job = PromoteJob(index=str(index), version=version, dataset=dataset, other_encoder=True, max_removed=1)
    report = run(job)
    assert failed(report) == {"measure"} and not report["promoted"] and latest(index) == 1
    assert report["measure"]["high"] < -0.02, "the loss is real"
    assert json.loads((index / "versions" / str(version) / "promotion.json").read_text())["promoted"] is False


@pytest.mark.parametrize(
    ("version", "checks"),
    [
        (3, {"measure"}),
        (4, {"documents", "measure", "overlap"}),
        (5, {"encoder", "measure", "overlap"}),
        (6, {"encoder", "measure", "overlap"}),
    ],
    ids=lambda value: VERSIONS[value] if isinstance(value, int) else "",
)
def test_each_fault_is_named_by_its_checks(index, dataset, log, version, checks):
    assert failed(run(PromoteJob(index=str(index), version=version, dataset=dataset, queries=log))) == checks


def test_a_service_serves_a_version_that_passes(index, dataset, log, served):
    url, _ = served
    report = run(PromoteJob(url=url, version=2, dataset=dataset, queries=log))
    assert report["promoted"] and report["state"]["version"] == 2
    assert json.loads((index / "versions" / "2" / "promotion.json").read_text())["promoted"]
    with Client(url, ADMIN) as client:
        facts = client.index()
        assert (facts.version, facts.previous, facts.canary) == (2, 1, None)


@pytest.mark.parametrize("version", WORSE, ids=VERSIONS.__getitem__)
def test_a_service_keeps_its_version_if_another_is_refused(dataset, log, served, version):
    url, _ = served
    report = run(PromoteJob(url=url, version=version, dataset=dataset, queries=log, other_encoder=True, max_removed=1, min_overlap=0))
    assert failed(report) == {"measure"}
    with Client(url, ADMIN) as client:
        facts = client.index()
        assert (facts.version, facts.previous, facts.canary) == (1, None, None)


def test_measuring_sends_no_other_requests_to_the_version(index, dataset, served, monkeypatch):
    url, _ = served
    answered = []

    def measured(job: PromoteJob, versions: ServedVersions, *_: Any) -> dict[str, Any]:
        with Client(url, ADMIN) as client:
            assert client.index().canary == 2 and client.index(2).num_docs == 160
            answered.extend(client.search("king", k=1).index_version for _ in range(30))
        raise ConfigError("stopped")

    monkeypatch.setattr(promote, "_measured", measured)
    with pytest.raises(ConfigError, match="stopped"):
        run(PromoteJob(url=url, version=2, dataset=dataset))
    assert set(answered) == {1}
    with Client(url, ADMIN) as client:
        assert client.index().canary is None  # also after an error


def test_a_canary_answers_its_fraction_before_the_promotion(dataset, served, monkeypatch):
    url, _ = served
    fractions = []
    set_traffic = ServedVersions.set_traffic

    def noting(versions: ServedVersions, fraction: float) -> None:
        set_traffic(versions, fraction)
        fractions.append(versions.client.index().traffic_fraction)

    monkeypatch.setattr(ServedVersions, "set_traffic", noting)
    report = run(PromoteJob(url=url, version=2, dataset=dataset, canary=0.25, canary_s=1, max_slowdown=100))
    assert report["promoted"] and fractions == [0.25]
    assert report["canary"]["queries"]["2"] >= 1 and not report["canary"]["errors"]


def test_errors_of_a_canary_end_it(dataset, served, monkeypatch):
    url, transport = served
    set_traffic = ServedVersions.set_traffic

    def failing(versions: ServedVersions, fraction: float) -> None:
        set_traffic(versions, fraction)
        transport.faults["ShardGroup-0"] = raising(ShardUnavailable("the disk is gone"), "search")

    monkeypatch.setattr(ServedVersions, "set_traffic", failing)
    report = run(PromoteJob(url=url, version=2, dataset=dataset, canary=0.05, canary_s=5))
    assert failed(report) == {"canary"} and "disk is gone" in report["checks"][-1]["message"]
    with Client(url, ADMIN) as client:
        assert (client.index().version, client.index().canary) == (1, None)


def test_a_refused_version_never_becomes_a_canary_with_traffic(dataset, served, monkeypatch):
    url, _ = served
    monkeypatch.setattr(ServedVersions, "set_traffic", lambda *_: pytest.fail("the version got traffic"))
    assert failed(run(PromoteJob(url=url, version=3, dataset=dataset, canary=0.05, canary_s=1))) == {"measure"}


def test_a_change_of_the_served_versions_meanwhile_stops_the_promotion(dataset, served, monkeypatch):
    url, _ = served
    measured = promote._measured

    def changing(*args: Any) -> dict[str, Any]:
        report = measured(*args)
        with Client(url, ADMIN) as client:
            client.roll_back()
            client.load_version(4)
        return report

    monkeypatch.setattr(promote, "_measured", changing)
    with pytest.raises(Conflict, match="changed meanwhile"):
        run(PromoteJob(url=url, version=2, dataset=dataset))
    with Client(url, ADMIN) as client:
        assert (client.index().version, client.index().canary) == (4, None)


def test_another_canary_is_left_alone(dataset, served):
    url, _ = served
    with Client(url, ADMIN) as client:
        client.load_version(3, 0.5)
        with pytest.raises(Conflict, match="version 3 is a canary already"):
            run(PromoteJob(url=url, version=2, dataset=dataset))
        run(PromoteJob(url=url, version=3, dataset=dataset))  # refused, but an operator started it
        assert (client.index().canary, client.index().traffic_fraction) == (3, 0.5)


def test_a_damaged_version_is_stopped_before_it_is_measured(index, dataset, served):
    url, _ = served
    manifest = read_version(str(index), 2)
    codes = index / next(file.name for file in manifest.shards[0].files if file.name.endswith("codes.npy"))
    codes.write_bytes(codes.read_bytes()[:-4])
    with pytest.raises(Conflict, match="version 2 cannot be served, so version 1 stays"):
        run(PromoteJob(url=url, version=2, dataset=dataset))


def test_without_a_version_the_canary_is_promoted_as_before(served):
    url, _ = served
    with Client(url, ADMIN) as client:
        client.load_version(2, 0.5)
        assert run(PromoteJob(url=url))["version"] == 2


def test_the_command_ends_with_code_3_and_one_line_if_the_version_is_refused(index, dataset):
    command = [sys.executable, "-m", "jobs", "promote", "--index", str(index), "--version", "3", "--dataset", dataset]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert ended.returncode == 3
    assert json.loads(ended.stdout.splitlines()[-1])["promoted"] is False
    assert ended.stderr.splitlines()[-1].startswith("refused: version 3 is not promoted, version 1 stays: measure: nDCG@10 0.8")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"version": 2}, "--version needs --dataset"),
        ({"dataset": "d"}, "--dataset is for a version that is measured"),
        ({"canary": 0.1}, "--canary is for a version that is measured"),
        ({"version": 2, "dataset": "d", "index": "i", "canary": 0.1}, "--canary and --name are for a service"),
        ({"version": 2, "dataset": "d", "current": 1}, "--current is for --index"),
        ({"version": 2, "dataset": "d", "margin": 0}, "greater than 0"),
    ],
)
def test_settings_that_do_not_belong_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PromoteJob(**settings)


def test_the_service_may_be_named_as_service():
    assert PromoteJob(service="http://127.0.0.1:1").url == PromoteJob(url="http://127.0.0.1:1").url == "http://127.0.0.1:1"


def test_the_latest_version_is_compared_with_the_one_before_it(index, dataset):
    (index / "LATEST").write_text("6\n")
    assert run(PromoteJob(index=str(index), version=6, dataset=dataset, other_encoder=True, current=1))["current"] == 1
    report = run(PromoteJob(index=str(index), version=6, dataset=dataset, other_encoder=True))
    assert report["current"] == 5
    with pytest.raises(ConfigError, match="is the current version already"):
        run(PromoteJob(index=str(index), version=1, current=1, dataset=dataset))


def test_judgements_of_another_collection_pass_nothing(index, dataset, tmp_path):
    other = shutil.copytree(dataset, tmp_path / "other")
    qrels = other / "qrels" / "test.tsv"
    qrels.write_text(qrels.read_text().replace("doc-", "document-"))
    with pytest.raises(ConfigError, match="is 0 for every query"):
        run(PromoteJob(index=str(index), version=2, dataset=str(other)))
    assert latest(index) == 1


def test_few_judged_queries_pass_nothing(index, dataset, tmp_path):
    few = shutil.copytree(dataset, tmp_path / "few")
    qrels = few / "qrels" / "test.tsv"
    qrels.write_text("".join(qrels.read_text().splitlines(keepends=True)[:11]))
    report = run(PromoteJob(index=str(index), version=2, dataset=str(few)))
    assert failed(report) == {"measure"} and "give at least 20" in report["checks"][2]["message"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no query"),
        (b"\n \n", "holds no query"),
        (b'{"text": 1}', "has no text"),
        (b"{oops", "is not JSON"),
        (b"\xff\xfe", "UTF-8"),
    ],
)
def test_a_log_that_cannot_be_read_is_refused(tmp_path, content, message):
    (tmp_path / "log").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        promote._logged(str(tmp_path / "log"))


def test_a_log_is_read_as_lines_or_json_and_repeated_queries_count_once(tmp_path):
    (tmp_path / "log").write_text('king of the city\n{"query": "river"}\n\nking of the city\n{"text": "bridge", "k": 3}\n')
    assert promote._logged(str(tmp_path / "log")) == {"1": "king of the city", "2": "river", "5": "bridge"}
    (tmp_path / "long").write_text("".join(f"query {number}\n" for number in range(2500)))
    assert len(promote._logged(str(tmp_path / "long"))) <= promote.MAX_LOGGED


def test_the_measure_is_compared_query_by_query():
    current = {str(number): number % 2 * 1.0 for number in range(40)}
    same = check_measure("RR", current, dict(current), 0.005)
    assert same.check.passed and same.numbers["difference"] == 0 and same.numbers["worst"] == []
    lost = check_measure("RR", current, {**current, "1": 0.0, "3": 0.5}, 0.005)
    assert not lost.check.passed
    assert lost.numbers["worst"] == [{"query": "1", "current": 1.0, "candidate": 0.0}, {"query": "3", "current": 1.0, "candidate": 0.5}]
    assert json.dumps(lost.numbers, allow_nan=False)


def test_the_overlap_is_the_part_of_the_current_hits_that_is_found_again():
    found = check_overlap({"a": ["1", "2", "3", "4"], "b": ["1"], "c": []}, {"a": ["4", "3", "9"], "b": ["1"], "c": ["1"]}, 0.75)
    assert found.check.passed and found.numbers["mean"] == 0.75 and found.numbers["queries"] == 2
    assert found.numbers["worst"][0] == {"query": "a", "overlap": 0.5}
    assert not check_overlap({"a": ["1", "2"]}, {"a": ["1"]}, 0.51).check.passed
    with pytest.raises(ConfigError):
        check_overlap({"a": []}, {"a": []}, 0.5)


def test_more_documents_are_never_too_few():
    from ray_lir.evaluation.promotion import GateLimits, VersionFacts

    few, many = (VersionFacts(version=1, num_docs=number, fingerprint="f", manifest="m") for number in (90, 100))
    assert check_documents(few, many, GateLimits(max_removed=0)).passed
    assert check_documents(many, few, GateLimits(max_removed=0.1)).passed
    assert not check_documents(many, few, GateLimits(max_removed=0.09)).passed
