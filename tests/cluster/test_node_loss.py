"""Jobs on a cluster of several machines finish with the bytes of an undisturbed run although one machine is lost."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from tests.fixtures.tiny import WORDS, bert
from tests.support.clusters import NOTICED_SOON, Machines, machines, wait_for_files
from tests.support.corpora import write_rows
from tests.support.index_files import tree
from tests.support.training_jobs import curve, flags, make_place, train_here

pytestmark = pytest.mark.clusters

DOCS_PER_PART = 4
ROWS = [{"_id": f"d{n}", "text": " ".join(WORDS[(n * step) % len(WORDS)] for step in range(1, 9 + n % 20))} for n in range(240)]
INDEX = IndexConfig(num_shards=3, clustering=ClusteringConfig(num_centroids=32, num_iterations=3))
MOVES_WITHIN_S = "20"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Machines]:
    with machines(2, **NOTICED_SOON) as found:
        yield found


@pytest.fixture
def whole(cluster: Machines) -> Machines:
    """Return the cluster with two machines; lost ones are replaced."""
    cluster.add(2 - len(cluster.workers))
    return cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint, a corpus, and the embeddings and index that one process makes of them."""
    folder = tmp_path_factory.mktemp("cluster")
    bert(folder / "checkpoint")
    corpus = write_rows(folder / "corpus.jsonl", ROWS)
    encode_corpus(corpus, str(folder / "embeddings"), EncoderConfig(checkpoint=str(folder / "checkpoint")), docs_per_part=DOCS_PER_PART)
    build_index(str(folder / "embeddings"), str(folder / "index"), INDEX)
    return folder


def finish(job: subprocess.Popen) -> dict:
    stdout, stderr = job.communicate(timeout=250)
    assert job.returncode == 0, stderr
    return json.loads(stdout.splitlines()[-1])


def test_encoding_finishes_on_the_remaining_machine(whole: Machines, place: Path, tmp_path: Path):
    words = ["--corpus", place / "corpus.jsonl", "--output", tmp_path / "out", "--encoder.checkpoint", place / "checkpoint"]
    job = whole.start("encode", *words, "--docs_per_part", DOCS_PER_PART, RAY_DATA_EXECUTION_NO_PROGRESS_TIMEOUT_S=MOVES_WITHIN_S)
    wait_for_files(job, tmp_path / "out", "_progress/*/chunk-*.json", 5)
    whole.lose(whole.running("_EncodingWorker")[0][0])
    assert finish(job)["num_chunks"] == len(ROWS) // DOCS_PER_PART
    assert (tmp_path / "out" / "manifest.json").read_bytes() == (place / "embeddings" / "manifest.json").read_bytes()


def test_a_build_continues_on_the_replacement_machine(whole: Machines, place: Path, tmp_path: Path):
    words = ["--embeddings", place / "embeddings", "--output", tmp_path / "index", "--num_shards", INDEX.num_shards]
    words += ["--clustering.num_centroids", 32, "--clustering.num_iterations", 3]
    job = whole.start("build_index", *words)
    wait_for_files(job, tmp_path / "index", "_work/*/*", 3)
    for machine in whole.workers:
        whole.lose(machine)
    whole.add()
    finish(job)
    assert tree(tmp_path / "index") == tree(place / "index")


def test_training_continues_from_its_checkpoint_on_another_machine(whole: Machines, one_thread, tmp_path: Path):
    make_place(tmp_path)
    job = whole.start("train", *flags(tmp_path, "trained", dev_split="train"))
    wait_for_files(job, tmp_path / "trained", "state/train-*/checkpoint_manager_snapshot.json")
    [(machine, _)] = whole.running("RayTrainWorker")
    whole.lose(machine)
    assert finish(job)["resumed_from_step"] > 0
    assert curve(tmp_path / "trained") == train_here(tmp_path, tmp_path / "undisturbed")[0]
