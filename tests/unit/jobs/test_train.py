"""jobs.train end to end: continuing after SIGKILL, workers that share a batch, and mistakes that write nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from jobs import cli
from jobs.mine import MineConfig
from jobs.train import TrainJob, run
from ray_lir.base.config import EncoderConfig, TrainingConfig
from ray_lir.distributed.train_worker import best_record
from ray_lir.encoder.encoder import Encoder
from ray_lir.scorers import SCORERS
from ray_lir.storage.manifest import read_manifest
from ray_lir.training.manifest import TrainingManifest
from ray_lir.training.source import TrainingSource, load_dev_set
from ray_lir.training.trainer import Training, load_encoder
from tests.support import translated_words
from tests.support.repository import REPOSITORY
from tests.support.translated_words import load_pairs, success_at_1

STEPS, CHECKPOINT_EVERY, EVALUATE_EVERY = 80, 10, 25


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a collection, words, and an untrained checkpoint, tiny."""
    folder = tmp_path_factory.mktemp("train")
    translated_words.write_collection(folder / "words")
    translated_words.write_checkpoint(folder / "tiny")
    return folder


def flags(place: Path, output: str | Path, **more: object) -> list[str]:
    fields = {
        "dataset": place / "words",
        "output": place / output,
        "encoder.checkpoint": place / "tiny",
        "encoder.precision": "float32",  # auto is bfloat16 on some machines, and the library's own loop is compared
        "max_steps": STEPS,
        "batch_size": 16,
        "learning_rate": 3e-3,
        "checkpoint_every": CHECKPOINT_EVERY,
        "cpus_per_worker": 1,
        "evaluate_every": EVALUATE_EVERY,
        **more,
    }
    return [word for name, value in fields.items() for word in (f"--{name}", str(value))]


def command(place: Path, output: str) -> list[str]:
    return [sys.executable, "-m", "jobs.train", *flags(place, output, dev_split="train")]


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}


def finish(place: Path, output: str) -> dict:
    done = subprocess.run(command(place, output), cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert f"continues after step {result['resumed_from_step']}" in done.stderr and f"step {STEPS}/{STEPS}" in done.stderr
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


def curve(folder: Path) -> list[dict]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in record.items() if name != "examples_per_second"} for record in records]


def train_here(place: Path, output: Path) -> tuple[list[dict], str]:
    """The loss curve, and the digest of the weights that did best, when the library's own loop trains in this process."""
    config = TrainingConfig(max_steps=STEPS, batch_size=16, learning_rate=3e-3, evaluate_every=EVALUATE_EVERY)
    dev = load_dev_set(TrainingSource(dataset=str(place / "words"), dev_split="train"))
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    training = Training(
        load_encoder(EncoderConfig(checkpoint=str(place / "tiny")), config.seed, "cpu"), load_pairs(place / "words"), config
    )
    records = []
    for batches in training.remaining():
        record = training.run_step(*batches)
        if training.step % EVALUATE_EVERY == 0 or training.step == STEPS:
            record = record.model_copy(update={"ndcg_at_10": training.evaluate(dev)})
        records.append(record)
        if record is best_record(records):
            shutil.rmtree(output, ignore_errors=True)
            training.encoder.save(output)
    torch.set_num_threads(before)
    saved = Encoder.load(EncoderConfig(checkpoint=str(output), device="cpu", precision="float32"))
    return [record.model_dump(exclude={"examples_per_second"}) for record in records], saved.contract.weights_digest


@pytest.mark.ray
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


@pytest.mark.ray
def test_negatives_span_workers_and_heads_are_published(place):
    encoder = EncoderConfig(checkpoint=str(place / "tiny"), device="cpu")
    config = TrainingConfig(scorer="trial", max_steps=2, batch_size=8, learning_rate=3e-4)
    alone = Training(load_encoder(encoder, config.seed, "cpu"), load_pairs(place / "words"), config)
    expected = [alone.run_step(*batches).loss for batches in alone.remaining()]
    settings = {"scorer": "trial", "max_steps": 2, "batch_size": 8, "learning_rate": 3e-4, "num_workers": 2, "dev_split": "train"}
    job = [sys.executable, "-m", "jobs.train", *flags(place, "shared", **settings)]  # on a cluster of its own, all of it
    done = subprocess.run(job, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    assert [record["loss"] for record in curve(place / "shared")] == pytest.approx(expected, rel=1e-4)
    manifest = read_manifest(str(place / "shared" / "manifest.json"), TrainingManifest, made_by="jobs.train")
    trained = Encoder.load(EncoderConfig(checkpoint=str(place / "shared" / "checkpoint"), device="cpu", precision="float32"))
    assert trained.contract.scorer == manifest.contract.scorer == "trial"
    torch.testing.assert_close(trained.model.scorer.state_dict(), alone.encoder.model.scorer.state_dict(), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset", "nowhere", "no dataset"),
        ("split", "dev", "no split 'dev'"),
        ("scorer", "colpali", "--scorer"),
        ("batch_size", 1, "--batch_size"),
        ("batch_size", 97, "--batch_size 97 is more than the 96 queries"),
        ("num_negatives", 1, "--num_negatives 1 is more than the 0 that come with"),
        ("contrastive_weight", 0, "cannot both be 0"),
        ("examples", "nowhere.jsonl", "nowhere.jsonl"),
        ("dev_split", "dev", "no split 'dev'"),
        ("num_workers", 3, "cannot be shared evenly"),
        ("max_steps", 0, "--max_steps"),
        ("encoder.checkpoint", "/nowhere", "no checkpoint folder /nowhere"),
        ("encoder.precision", "float16", "--encoder.precision float16"),
        ("encoder.projection", "pca:8", "--encoder.projection"),
        ("learning_rat", 1, "did you mean --learning_rate?"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(place, capsys, field, value, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "mistake", **{field: value}))
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error
    assert not (place / "mistake").exists()


@pytest.mark.ray
def test_a_training_that_a_mistake_ends_at_its_first_step_leaves_the_folder_to_the_mended_command(place, capsys):
    """16 documents have fewer tokens than they could have, so this is not seen before the first batch."""
    asked = {"scorer": "xtr", "xtr.k_train": 250, "max_steps": 2, "encoder.document_length": 16}
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "first", **asked))
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: --xtr.k_train 250 is more than the") and error.endswith("lower it or raise --batch_size")
    assert list((place / "first").iterdir()) == []
    cli.main(TrainJob, run, flags(place, "first", **asked | {"xtr.k_train": 40}))
    assert len(curve(place / "first")) == 2


def test_an_output_that_holds_something_else_is_left_alone(place, capsys):
    (place / "other").mkdir()
    (place / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "other"))
    assert "holds no training; give another --output" in capsys.readouterr().err
    assert [path.name for path in (place / "other").iterdir()] == ["notes.txt"]


def test_an_unfinished_training_is_not_continued_with_another_configuration(place, capsys, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.json").write_text(json.dumps({"scorer": "maxsim", "max_steps": 7}))
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, tmp_path))
    assert "max_steps 7 and not 80" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_whole_jobs_but_for_their_folders(recipe):
    """The published ones say where each value comes from."""
    kind, folders = (MineConfig, ["--index", "index"]) if recipe.name.startswith("mine") else (TrainJob, [])
    job = cli.parse(kind, ["--recipe", str(recipe), "--dataset", "words", "--output", "there.jsonl", *folders])
    settings = [line for line in recipe.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if "small" in recipe.name:
        assert job.max_steps <= 100 and job.encoder.document_length == 96
    else:
        unsourced = {line.partition(":")[0] for line in settings if "#" not in line and not line.endswith(":")}
        assert unsourced <= {"scorer", "checkpoint_every"}


@pytest.mark.parametrize(("text", "expected"), [("512", (512,)), ("[512, 256]", (512, 256))])
def test_one_k_or_several_can_be_given(text, expected):
    job = cli.parse(TrainJob, ["--dataset", "words", "--output", "there", "--scorer", "xtr", "--xtr.k_train", text])
    assert job.xtr.k_train == job.scorer_settings.k_train == expected


def test_there_is_a_recipe_for_every_scorer_published_and_small():
    recipes = [
        cli.parse(TrainJob, ["--recipe", str(path), "--dataset", "words", "--output", "there"])
        for path in (REPOSITORY / "jobs" / "recipes").glob("train_*.yaml")
    ]
    for small in (True, False):
        assert {job.scorer for job in recipes if (job.max_steps <= 100) == small} == set(SCORERS)
