"""Trackers of a training: the real packages, offline."""

import math
import time
from pathlib import Path

import pytest

from ray_lir.base.errors import ConfigError
from ray_lir.training import trackers
from ray_lir.training.trackers import Callbacks, TrackedRun, TrainingCallback, make_trackers, metrics_of
from ray_lir.training.trainer import StepRecord


def record(step: int, **fields: float) -> StepRecord:
    return StepRecord(step=step, loss=1 / step, learning_rate=1e-5, temperature=0.05, gradient_norm=2.0 * step, **fields)


@pytest.fixture
def tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrackedRun:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    return TrackedRun("0123456789abcdef0123", "trial-run", tmp_path / "tracking", {"scorer": "trial", "xtr.k_train": [32]})


def follow(name: trackers.TrackerName, run: TrackedRun, steps: range, finished: bool = True) -> None:
    callbacks = Callbacks(make_trackers([name], run))
    for step in steps:
        callbacks.on_step(record(step, **({"ndcg_at_10": 0.5} if step % 2 == 0 else {})))
    assert callbacks  # no callback failed and was dropped
    callbacks.on_end(finished)
    assert callbacks


def test_tensorboard_gets_every_step_and_continues(tracked):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow("tensorboard", tracked, range(1, 6), finished=False)
    follow("tensorboard", tracked, range(4, 7))  # continues after its checkpoint at step 3
    events = reader.EventAccumulator(str(tracked.folder / "tensorboard"))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in losses] == pytest.approx([1 / step for step in range(1, 7)])
    assert [event.step for event in events.Scalars("train/ndcg_at_10")] == [2, 4, 6]
    assert {"train/gradient_norm", "train/temperature", "train/learning_rate"} <= set(events.Tags()["scalars"])


def test_mlflow_gets_every_step_into_one_run(tracked):
    mlflow = pytest.importorskip("mlflow")
    follow("mlflow", tracked, range(1, 4), finished=False)
    follow("mlflow", tracked, range(4, 7))
    client = mlflow.MlflowClient(tracking_uri=(tracked.folder / "mlflow").as_uri())
    experiment = client.get_experiment_by_name("ray_lir")
    [run] = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "trial-run"
    assert run.data.params == {"scorer": "trial", "xtr.k_train": "[32]"}
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 3, 4, 5, 6]
    assert [point.value for point in client.get_metric_history(run.info.run_id, "ndcg_at_10")] == [0.5, 0.5, 0.5]


def test_wandb_writes_an_offline_run_without_a_key(tracked):
    pytest.importorskip("wandb")
    follow("wandb", tracked, range(1, 4))
    [folder] = (tracked.folder / "wandb").glob("offline-run-*")
    [log] = folder.glob("*.wandb")
    assert tracked.identifier[:16] in log.name
    names = {b"gradient_norm", b"ndcg_at_10", b"learning_rate", b"k_train"}
    deadline = time.monotonic() + 30  # a process of wandb writes the file
    while missing := {name for name in names if name not in log.read_bytes()}:
        assert time.monotonic() < deadline, missing
        time.sleep(0.1)


class Recorder:
    """Remembers its calls; fails at some step."""

    def __init__(self, fails_at: float = math.inf):
        self.fails_at = fails_at
        self.steps: list[int] = []
        self.finished: bool | None = None

    def on_step(self, record: StepRecord) -> None:
        if record.step >= self.fails_at:
            raise ConnectionError("the server is gone")
        self.steps.append(record.step)

    def on_end(self, finished: bool) -> None:
        self.finished = finished


def test_a_callback_that_fails_is_dropped_and_repeated_steps_are_passed_on_once(caplog):
    good, bad = Recorder(), Recorder(fails_at=2)
    both: list[TrainingCallback] = [bad, good]
    callbacks = Callbacks(both)
    for step in (1, 2, 3, 2, 3, 4):  # a worker was lost after step 3, and its checkpoint was at step 1
        callbacks.on_step(record(step))
    callbacks.on_end(True)
    assert good.steps == [1, 2, 3, 4] and good.finished
    assert bad.steps == [1] and bad.finished is None
    assert caplog.text.count("Recorder failed and is not called any more: the server is gone") == 1


def test_a_tracker_without_its_package_is_refused(tracked, monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", ("no_such_package", trackers.WandbTracker))
    with pytest.raises(ConfigError, match="--trackers wandb needs the package no-such-package"):
        make_trackers(["wandb"], tracked)


def test_numbers_that_a_step_lacks_are_left_out():
    assert "ndcg_at_10" not in metrics_of(record(1)) and metrics_of(record(1))["gradient_norm"] == 2.0
