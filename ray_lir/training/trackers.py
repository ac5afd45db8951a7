"""Trackers: callbacks that follow a training, such as TensorBoard, MLflow and Weights & Biases.

A callback gets every step exactly once, in order, in the process that started the training. Its packages are imported when it is made.
"""

import importlib
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from ray_lir.base.extras import require
from ray_lir.training.trainer import StepRecord

logger = logging.getLogger(__name__)

TrackerName = Literal["tensorboard", "mlflow", "wandb"]


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker knows about a training before its first step.

    Attributes:
        identifier: Digest of everything that determines the result; a training that continues has the same one.
        name: Name of the run, for people: the output's last folder.
        folder: Local folder for the tracker's files.
        parameters: Settings of the training, by dotted name.
    """

    identifier: str
    name: str
    folder: Path
    parameters: Mapping[str, Any]


class TrainingCallback(Protocol):
    """Follows a training. An error in a callback is logged; the training goes on without that callback."""

    def on_step(self, record: StepRecord) -> None:
        """Take the record of a step. A training that continues starts with the step after its last checkpoint."""
        ...

    def on_end(self, finished: bool) -> None:
        """Close the run. `finished` is False if the training ended with an error."""
        ...


class Callbacks:
    """Passes records on to several callbacks, and drops a callback that fails.

    A training that lost a worker repeats the steps since its last checkpoint. Their records are equal, and are passed on only once.
    """

    def __init__(self, callbacks: Sequence[TrainingCallback]):
        self._callbacks = list(callbacks)
        self._last_step = 0

    def __bool__(self) -> bool:
        return bool(self._callbacks)

    def on_step(self, record: StepRecord) -> None:
        """Pass on the record of a step, unless it was passed on before."""
        if record.step > self._last_step:
            self._last_step = record.step
            self._call(lambda callback: callback.on_step(record))

    def on_end(self, finished: bool) -> None:
        """Close all callbacks. `finished` is False if the training ended with an error."""
        self._call(lambda callback: callback.on_end(finished))

    def _call(self, function: Callable[[TrainingCallback], None]) -> None:
        for callback in list(self._callbacks):
            try:
                function(callback)
            except Exception as error:  # a tracker's server that fails must not end a training of many hours
                logger.warning("train: %s failed and is not called any more: %s", type(callback).__name__, error)
                self._callbacks.remove(callback)


def make_trackers(names: Sequence[TrackerName], run: TrackedRun) -> list[TrainingCallback]:
    """Return the trackers with these names.

    Raises:
        ConfigError: The package of a tracker is not installed.
    """
    for name in names:
        require(TRACKERS[name][0], f"--trackers {name}")
    return [TRACKERS[name][1](run) for name in names]


def metrics_of(record: StepRecord) -> dict[str, float]:
    """Return the numbers of a step by name; missing numbers are left out."""
    return {name: value for name, value in record.model_dump(exclude={"step"}).items() if value is not None}


class TensorBoardTracker:
    """Writes event files below the run's folder; `tensorboard --logdir FOLDER` shows them."""

    def __init__(self, run: TrackedRun):
        self._run = run
        self._writer: Any = None

    def on_step(self, record: StepRecord) -> None:
        """Write the numbers of a step. The first call discards later steps of an interrupted run."""
        if self._writer is None:
            writer = importlib.import_module("tensorboardX").SummaryWriter
            self._writer = writer(str(self._run.folder / "tensorboard"), purge_step=record.step, filename_suffix=f".{record.step}")
            table = "\n".join(f"| {name} | {value} |" for name, value in self._run.parameters.items())
            self._writer.add_text("parameters", f"| name | value |\n|---|---|\n{table}", record.step)
        for name, value in metrics_of(record).items():
            self._writer.add_scalar(f"train/{name}", value, record.step)

    def on_end(self, finished: bool) -> None:
        """Write what is buffered."""
        if self._writer is not None:
            self._writer.close()


class MLflowTracker:
    """Logs to MLFLOW_TRACKING_URI, or to the run's folder without it. A training that continues goes on with its run."""

    def __init__(self, run: TrackedRun):
        self._client: Any = None
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")  # a folder needs no database package
        mlflow = importlib.import_module("mlflow")
        place = os.environ.get("MLFLOW_TRACKING_URI") or (run.folder / "mlflow").resolve().as_uri()
        client = mlflow.MlflowClient(tracking_uri=place)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ray_lir")
        experiment = client.get_experiment_by_name(name)
        number = client.create_experiment(name) if experiment is None else experiment.experiment_id
        found = client.search_runs([number], f"tags.ray_lir = '{run.identifier}'", max_results=1)
        if found:
            self._run_id = found[0].info.run_id
            client.update_run(self._run_id, status="RUNNING")
        else:
            self._run_id = client.create_run(number, tags={"ray_lir": run.identifier}, run_name=run.name).info.run_id
            for key, value in run.parameters.items():
                client.log_param(self._run_id, key, value)
        self._client = client

    def on_step(self, record: StepRecord) -> None:
        """Log the numbers of a step."""
        for name, value in metrics_of(record).items():
            self._client.log_metric(self._run_id, name, value, step=record.step)

    def on_end(self, finished: bool) -> None:
        """End the run as finished or failed."""
        self._client.set_terminated(self._run_id, status="FINISHED" if finished else "FAILED")


class WandbTracker:
    """Logs to Weights & Biases if WANDB_API_KEY or WANDB_MODE is set, and otherwise offline into the run's folder.

    `wandb sync FOLDER` uploads an offline run. A training that continues goes on with its run.
    """

    def __init__(self, run: TrackedRun):
        wandb = importlib.import_module("wandb")
        run.folder.mkdir(parents=True, exist_ok=True)
        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run: Any = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "ray_lir"),
            id=run.identifier[:16],
            name=run.name,
            dir=str(run.folder),
            config=dict(run.parameters),
            resume="allow",
            mode=mode,
            settings=wandb.Settings(silent=True, console="off"),
        )

    def on_step(self, record: StepRecord) -> None:
        """Log the numbers of a step."""
        self._run.log(metrics_of(record), step=record.step)

    def on_end(self, finished: bool) -> None:
        """End the run, with exit code 1 if the training failed."""
        self._run.finish(exit_code=0 if finished else 1)


TRACKERS: dict[TrackerName, tuple[str, Callable[[TrackedRun], TrainingCallback]]] = {
    "tensorboard": ("tensorboardX", TensorBoardTracker),
    "mlflow": ("mlflow", MLflowTracker),
    "wandb": ("wandb", WandbTracker),
}
"""The package and the class of each tracker."""
