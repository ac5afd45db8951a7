"""jobs.evaluate, jobs.tune and jobs.mine on Ray: the same results as in one process, even if a worker or the driver is killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from jobs.evaluate import EvaluateConfig, evaluate
from jobs.mine import MineConfig, mine
from jobs.tune import SCAN, WARP, TuneConfig, tune
from ray_lir import storage
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.cross_encoder import BatchScores, CrossEncoder, PairBatch
from ray_lir.search.searcher import Searcher
from tests.fixtures.tiny import WORDS
from tests.support.corpora import write_rows
from tests.support.repository import REPOSITORY
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server
from tests.support.served_index import make_index

NUM_QUERIES = 600
TWO = {"num_workers": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an index, its collection with judged queries, a cross-encoder, and the tuples that one process mines."""
    folder = tmp_path_factory.mktemp("jobs")
    make_index(folder, num_docs=200, num_shards=3)
    write_rows(
        folder / "queries.jsonl",
        [{"_id": f"q{n}", "text": " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 3 + n % 5))} for n in range(NUM_QUERIES)],
    )
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text("".join(f"q{n}\tdoc-{n % 200}\t1\n" for n in range(NUM_QUERIES)))
    torch.manual_seed(1)
    config = BertConfig.from_pretrained(folder / "checkpoint", num_labels=1, initializer_range=0.5)
    BertForSequenceClassification(config).save_pretrained(folder / "teacher")
    BertTokenizerFast.from_pretrained(folder / "checkpoint").save_pretrained(folder / "teacher")
    mine(mining(folder, folder / "tuples.jsonl"))
    return folder


def mining(place: Path, output: object, **fields: object) -> MineConfig:
    job = {"index": str(place / "index"), "dataset": str(place), "split": "test", "output": str(output), "num_negatives": 3, "depth": 30}
    return MineConfig.model_validate(job | {"cross_encoder": str(place / "teacher")} | fields)


def measured(index: object, place: Path, run: Path, **fields: object) -> tuple[dict, bytes]:
    """Return the JSON of an evaluation without latency, and its run."""
    job = {"index": str(index), "dataset": str(place), "run": str(run), "latency_queries": 2, **fields}
    result = evaluate(EvaluateConfig.model_validate(job))
    return {name: value for name, value in result.items() if not name.startswith("latency")}, run.read_bytes()


@pytest.mark.parametrize("workers", [TWO, {"num_workers": 1, "groups": 2}])
def test_an_evaluation_on_ray_equals_one_in_this_process(ray_cluster, place: Path, tmp_path: Path, workers: dict):
    here = measured(place / "index", place, tmp_path / "here.run")
    assert measured(place / "index", place, tmp_path / "ray.run", workers=workers) == here


@pytest.mark.clusters
def test_an_index_on_a_store_is_evaluated_tuned_and_mined(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In another process, because its workers inherit the address of the store."""
    with moto_server() as url, as_endpoint(url, monkeypatch):
        root = f"{make_bucket()}/index"
        fs, path = storage.filesystem(root)
        fs.put(f"{place / 'index'}/", path, recursive=True)
        code = (
            "import json, sys, ray, jobs.tune\n"
            "from tests.cluster.test_jobs_on_ray import *\n"
            "place, out, root = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]\n"
            "ray.init(address='local', num_cpus=2, include_dashboard=False)\n"
            "cache = {'num_workers': 2, 'cache': str(out / 'cache')}\n"
            "result = evaluate(EvaluateConfig(index=root, dataset=str(place), run=str(out / 's3.run'), workers=cache))\n"
            "(out / 's3.json').write_text(json.dumps(result))\n"
            "mine(mining(place, root + '-tuples', index=root, workers=cache))\n"
            "jobs.tune.SCAN, jobs.tune.WARP = jobs.tune.SCAN[4:6], jobs.tune.WARP[-1:]\n"
            "tune(TuneConfig(index=root, target='R@10=0.9', num_queries=4, workers=cache))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, place, tmp_path, root], cwd=REPOSITORY, capture_output=True, text=True, env=dict(os.environ)
        )
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / "s3.json").read_text())
        here, run = measured(place / "index", place, tmp_path / "here.run")
        assert (tmp_path / "s3.run").read_bytes() == run
        assert result["latency_ms"] is None and "local disk" in result["latency_reason"]
        assert {name: result[name] for name in here if name != "index"} == {name: here[name] for name in here if name != "index"}
        choices = json.loads(storage.read_bytes(f"{root}/versions/1/tuning.json"))["choices"]
        assert choices["balanced"]["engine"] in ("scan", "warp")
        assert json.loads(storage.read_bytes(f"{root}-tuples/manifest.json"))["num_tuples"] == NUM_QUERIES
        assert not storage.list_names(f"{root}-tuples.unfinished")


def test_mining_on_ray_writes_the_same_bytes_even_if_a_worker_is_killed(ray_cluster, place: Path, tmp_path: Path, monkeypatch):
    mark, checkpoint = tmp_path / "died", str(place / "teacher")

    def load(device: str) -> CrossEncoder:
        teacher = CrossEncoder.load(checkpoint, 256, device)
        score = teacher.score

        def die_once(batch: PairBatch) -> BatchScores:
            if batch.number == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return score(batch)

        teacher.score = die_once  # type: ignore[method-assign]
        return teacher

    monkeypatch.setattr("jobs.mine._teacher", lambda config: load)
    mine(mining(place, tmp_path / "tuples.jsonl", workers=TWO))
    assert mark.exists()
    assert (tmp_path / "tuples.jsonl").read_bytes() == (place / "tuples.jsonl").read_bytes()


@pytest.mark.clusters
def test_mining_whose_driver_was_killed_continues(ray_cluster, place: Path, tmp_path: Path, monkeypatch):
    """The driver stops at its second batch of scores; the next run does not repeat the finished batches."""
    written: list[str] = []
    write_bytes = storage.write_bytes

    def write(url: str, data: bytes) -> None:
        written.extend([url] if ".unfinished/" in url else [])
        if sum("/scores-" in url for url in written) == stop_at > 0:
            raise KeyboardInterrupt
        write_bytes(url, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    stop_at = 2
    with pytest.raises(KeyboardInterrupt):
        mine(mining(place, tmp_path / "tuples.jsonl", workers=TWO))
    num_finished, stop_at = len(written) - 1, 0
    written.clear()
    mine(mining(place, tmp_path / "tuples.jsonl", workers=TWO))
    assert (tmp_path / "tuples.jsonl").read_bytes() == (place / "tuples.jsonl").read_bytes()
    assert num_finished + len(written) == -(-NUM_QUERIES // 256) + -(-NUM_QUERIES // 64)


def test_tuning_on_ray_writes_choices(ray_cluster, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("jobs.tune.SCAN", SCAN[::4])
    monkeypatch.setattr("jobs.tune.WARP", WARP[::5])
    result = tune(TuneConfig(index=str(place / "index"), target="R@10=0.9", num_queries=6, workers=TWO))
    path = place / "index" / "versions" / "1" / "tuning.json"
    kept = json.loads(path.read_text())
    try:
        assert Searcher.open(str(place / "index")).planner.tuning is not None
    finally:
        path.unlink()
    assert kept["choices"] == result["choices"] and len(kept["curve"]) == result["settings"]
    reached = [point for point in kept["curve"] if point["recall"] >= 0.9]
    assert result["choices"]["balanced"] == min(reached, key=lambda point: point["p50_ms"])["params"]
    with pytest.raises(ConfigError, match="each worker needs the whole index; leave out --workers.groups"):
        tune(TuneConfig(index=str(place / "index"), num_queries=6, workers={"groups": 2}))


def test_workers_with_gpus_are_refused_on_a_cluster_without_gpus(ray_cluster, place: Path, tmp_path: Path):
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        evaluate(EvaluateConfig(index=str(place / "index"), dataset=str(place), workers={"gpus_per_worker": 1}))
    with pytest.raises(ConfigError, match="the Ray cluster has no GPU"):
        mine(mining(place, tmp_path / "tuples.jsonl", workers={"gpus_per_worker": 1}))
    assert not list(tmp_path.iterdir())
