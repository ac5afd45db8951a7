"""jobs.train on Ray: it continues after SIGKILL, workers share a batch, and an error at the first step leaves a usable folder."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs import cli
from jobs.train import TrainJob, run
from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.encoder.encoder import Encoder
from ray_lir.storage.manifest import read_manifest
from ray_lir.training.manifest import TrainingManifest
from ray_lir.training.trainer import Training, load_encoder
from tests.support.repository import REPOSITORY
from tests.support.training_jobs import CHECKPOINT_EVERY, STEPS, curve, flags, make_place, train_here
from tests.support.translated_words import load_pairs, success_at_1


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("train"))


def command(place: Path, output: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", *flags(place, output, dev_split="train")]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def finish(place: Path, output: str) -> dict:
    done = subprocess.run(command(place, output), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert f"continues after step {result['resumed_from_step']}" in done.stderr and f"step {STEPS}/{STEPS}" in done.stderr
    assert f"training data: 96 queries and 48 documents are in {place / 'cache'}/" in done.stderr
    return result


def kill_after_a_checkpoint(place: Path, output: str) -> None:
    job = subprocess.Popen(
        command(place, output),
        cwd=REPOSITORY,
        env=environment(),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    try:
        while not list((place / output).glob("state/train-*/checkpoint_manager_snapshot.json")):
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def test_a_killed_training_continues_to_the_result_of_an_undisturbed_one(place):
    kill_after_a_checkpoint(place, "killed")
    assert not (place / "killed" / "manifest.json").exists()
    continued = finish(place, "killed")
    assert continued["resumed_from_step"] % CHECKPOINT_EVERY == 0 and 0 < continued["resumed_from_step"] < STEPS
    assert not (place / "killed" / "state").exists()

    undisturbed, digest = train_here(place, place / "undisturbed")
    assert curve(place / "killed") == undisturbed
    manifest = read_manifest(str(place / "killed" / "manifest.json"), TrainingManifest, made_by="jobs.train")
    assert manifest.contract.weights_digest == digest
    evaluated = {record["step"]: record["ndcg_at_10"] for record in undisturbed if record["ndcg_at_10"] is not None}
    assert list(evaluated) == [25, 50, 75, 80] and evaluated[25] < continued["nDCG@10"] == max(evaluated.values())
    assert evaluated[continued["best_step"]] == continued["nDCG@10"]

    pairs = load_pairs(place / "words")
    trained = Encoder.load(EncoderConfig(checkpoint=continued["checkpoint"], device="cpu", precision="float32"))
    assert trained.contract.fingerprint == manifest.contract.fingerprint
    assert success_at_1(Encoder.load(str(place / "tiny")), pairs) < 0.2 < 0.8 < success_at_1(trained, pairs)

    before = (place / "killed" / "provenance.json").stat().st_mtime_ns
    assert run(cli.parse(TrainJob, flags(place, "killed", dev_split="train"))) == continued
    assert (place / "killed" / "provenance.json").stat().st_mtime_ns == before
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "killed", dev_split="train", learning_rate=1e-3))


def test_negatives_come_from_all_workers_and_heads_are_saved(place):
    encoder = EncoderConfig(checkpoint=str(place / "tiny"), device="cpu")
    config = TrainingConfig(scorer="trial", max_steps=2, batch_size=8, learning_rate=3e-4)
    alone = Training(load_encoder(encoder, config.seed, "cpu"), load_pairs(place / "words"), config)
    expected = [alone.run_step(*batches).loss for batches in alone.remaining()]
    settings = {"scorer": "trial", "max_steps": 2, "batch_size": 8, "learning_rate": 3e-4, "num_workers": 2, "dev_split": "train"}
    settings["trackers"] = "tensorboard"
    job = [sys.executable, "-m", "jobs.train", *flags(place, "shared", **settings)]  # on its own cluster
    done = subprocess.run(job, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [record["loss"] for record in curve(place / "shared")] == pytest.approx(expected, rel=1e-4)
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(place / "shared" / "tracking" / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx(expected, rel=1e-4)
    assert [event.step for event in events.Scalars("train/query_weight_penalty")] == [1, 2]
    manifest = read_manifest(str(place / "shared" / "manifest.json"), TrainingManifest, made_by="jobs.train")
    trained = Encoder.load(EncoderConfig(checkpoint=str(place / "shared" / "checkpoint"), device="cpu", precision="float32"))
    assert trained.contract.scorer == manifest.contract.scorer == "trial"
    torch.testing.assert_close(trained.model.scorer.state_dict(), alone.encoder.model.scorer.state_dict(), rtol=1e-2, atol=1e-4)


def test_a_training_that_fails_at_its_first_step_can_be_restarted_with_another_configuration(place, capsys):
    """The 16 documents have fewer tokens than the limit allows, so the error appears only at the first batch."""
    settings = {"scorer": "xtr", "xtr.k_train": 250, "max_steps": 2, "encoder.document_length": 16}
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "first", **settings))
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --xtr.k_train 250 exceeds the") and error.endswith("lower it or raise --batch_size")
    assert list((place / "first").iterdir()) == []
    cli.main(TrainJob, run, flags(place, "first", **settings | {"xtr.k_train": 40}))
    assert len(curve(place / "first")) == 2
