"""Bulk search on Ray: the same bytes as in one process, in both layouts, even if a worker or a machine is lost."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.search import SearchJob, run
from ray_lir import Index, storage
from ray_lir.base.config import EncoderConfig, IndexConfig, WindowsConfig
from ray_lir.base.errors import ConfigError
from ray_lir.index.versions import read_version
from ray_lir.search import bulk
from ray_lir.storage.manifest import files_of
from tests.fixtures.tiny import WORDS, bert
from tests.support.clusters import NOTICED_SOON, Machines, machines, wait_for_files
from tests.support.corpora import write_rows
from tests.support.repository import REPOSITORY
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server
from tests.support.served_index import make_index
from tests.unit.test_long_documents import DOCUMENTS as LONG_DOCUMENTS
from tests.unit.test_long_documents import LENGTH as PASSAGE_LENGTH

pytestmark = pytest.mark.ray

NUM_QUERIES = 8 * bulk.QUERIES_PER_BLOCK
ROWS = [{"_id": f"q{n}", "text": " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 3 + n % 5))} for n in range(NUM_QUERIES)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index, queries, and the hits that one process finds."""
    folder = tmp_path_factory.mktemp("bulk")
    make_index(folder, num_docs=200, num_shards=4)
    write_rows(folder / "queries.jsonl", ROWS)
    search(folder, folder / "hits")
    return folder


def search(place: Path, output: Path, **fields: object) -> dict:
    job = {"index": str(place / "index"), "queries": str(place / "queries.jsonl"), "output": str(output), "where": "row < 150", **fields}
    return run(SearchJob.model_validate(job))


def same(place: Path, output: Path) -> bool:
    return (output / "manifest.json").read_bytes() == (place / "hits" / "manifest.json").read_bytes()


@pytest.mark.parametrize("workers", [{"num_workers": 2}, {"num_workers": 1, "groups": 3}])
def test_hits_on_ray_equal_those_of_one_process(ray_cluster, place: Path, tmp_path: Path, workers: dict):
    search(place, tmp_path / "out", workers=workers)
    assert same(place, tmp_path / "out")


@pytest.mark.parametrize("engine", ["exact", "plaid", "warp"])
def test_groups_of_shards_answer_like_one_process_with_every_engine(ray_cluster, place: Path, tmp_path: Path, engine: str):
    few = write_rows(tmp_path / "few.jsonl", ROWS[:40])
    search(place, tmp_path / "here", engine=engine, queries=few, fields="title")
    search(place, tmp_path / "out", engine=engine, queries=few, fields="title", workers={"num_workers": 1, "groups": 2})
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "here" / "manifest.json").read_bytes()


def test_groups_of_shards_group_passages_by_document_like_one_process(ray_cluster, tmp_path: Path):
    bert(tmp_path / "checkpoint")
    windows = WindowsConfig(length=PASSAGE_LENGTH, stride=24)
    encoder = EncoderConfig(checkpoint=str(tmp_path / "checkpoint"), windows=windows, passages=True)
    Index.create(tmp_path / "index", LONG_DOCUMENTS, encoder, IndexConfig(num_shards=2))
    settings = {"queries": write_rows(tmp_path / "queries.jsonl", ROWS[:20]), "where": None, "k": 3}
    search(tmp_path, tmp_path / "here", **settings)
    search(tmp_path, tmp_path / "out", workers={"num_workers": 1, "groups": 2}, **settings)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (tmp_path / "here" / "manifest.json").read_bytes()
    [part] = (tmp_path / "here").glob("hits/*.parquet")
    hits = list(zip(*pq.read_table(part, columns=["query_id", "doc_id"]).to_pydict().values(), strict=True))
    assert len(hits) == len(set(hits)) == 3 * 20


def test_an_engine_that_needs_all_shards_is_refused_for_groups(ray_cluster, place: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="engine xtr needs the whole index in one process"):
        search(place, tmp_path / "out", engine="xtr", workers={"num_workers": 1, "groups": 2})


def test_more_groups_than_shards_are_refused(ray_cluster, place: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="too few for 9 groups"):
        search(place, tmp_path / "out", workers={"groups": 9})


def test_workers_with_gpus_are_refused_on_a_cluster_without_gpus(ray_cluster, place: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        search(place, tmp_path / "out", workers={"gpus_per_worker": 1})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2, **NOTICED_SOON) as found:
        yield found


@pytest.mark.clusters
@pytest.mark.parametrize("flags", [[], ["--workers.groups", 2]])
def test_hits_are_the_same_if_a_machine_is_lost(cluster: Machines, place: Path, tmp_path: Path, flags: list):
    cluster.add(2 - len(cluster.workers))
    words = ["--index", place / "index", "--queries", place / "queries.jsonl", "--output", tmp_path / "out", "--where", "row < 150"]
    words += ["--workers.num_workers", 2, *flags]
    job = cluster.start("search", *words, RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S="20")
    wait_for_files(job, tmp_path / "out", "_progress/*/block-*.json", 2)
    cluster.lose(cluster.running("_SearchWorker")[0][0])
    if flags:  # one CPU has no room for two groups and a worker, so the lost group waits for another machine
        cluster.add()
    try:
        stdout, stderr = job.communicate(timeout=280)
    finally:
        job.kill()  # a job that hangs would take the CPUs of the next tests
    assert job.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["num_queries"] == NUM_QUERIES
    assert same(place, tmp_path / "out")


@pytest.mark.clusters
def test_hits_are_the_same_if_the_driver_is_killed(cluster: Machines, place: Path, tmp_path: Path):
    cluster.add(2 - len(cluster.workers))
    words = ["--index", place / "index", "--queries", place / "queries.jsonl", "--output", tmp_path / "out", "--where", "row < 150"]
    job = cluster.start("search", *words, "--workers.num_workers", 1)
    wait_for_files(job, tmp_path / "out", "_progress/*/block-*.json", 2)
    job.send_signal(signal.SIGKILL)
    job.communicate()
    again = cluster.start("search", *words, "--workers.num_workers", 2)
    stdout, stderr = again.communicate(timeout=280)
    assert again.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["num_skipped"] >= 2
    assert same(place, tmp_path / "out")


def test_an_index_on_s3_is_fetched_once_for_each_machine(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Two workers of one machine share the copies: the cache holds each file of the index version once, and nothing else."""
    with moto_server() as url, as_endpoint(url, monkeypatch):
        root = f"{make_bucket()}/index"
        fs, path = storage.filesystem(root)
        fs.put(f"{place / 'index'}/", path, recursive=True)
        words = ["--index", root, "--queries", place / "queries.jsonl", "--output", tmp_path / "out", "--where", "row < 150"]
        words += ["--workers.num_workers", 2, "--workers.cache", tmp_path / "cache"]
        done = subprocess.run([sys.executable, "-m", "jobs.search", *map(str, words)], cwd=REPOSITORY, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert same(place, tmp_path / "out")
    [copies] = (tmp_path / "cache").iterdir()
    found = {path.relative_to(copies).as_posix() for path in copies.rglob("*") if path.is_file()}
    assert found == {file.name for file in files_of(read_version(str(place / "index")))}
