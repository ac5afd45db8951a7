"""What each worker of Ray Train runs: its share of every step, the loss curve, and checkpoints."""

import json
import tempfile
import time
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from ray.util.queue import Queue

from ray_lir.config import EncoderConfig, TrainingConfig
from ray_lir.errors import RayLirError
from ray_lir.formats import storage
from ray_lir.models.training import StepRecord, Training, bfloat16_wanted, load_encoder
from ray_lir.models.training_pairs import batches

METRICS, STATE, ENCODER = "metrics.jsonl", "training.pt", "encoder"


@dataclass(frozen=True)
class WorkerTask:
    """What a worker needs to know.

    Attributes:
        pairs: reference to the TrainingPairs.
        lines: where the first worker puts lines of progress, for the driver to log.
        curve: URL of the file that shows the loss curve as far as the last checkpoint.
        num_threads: threads of torch on a CPU.
    """

    encoder: EncoderConfig
    config: TrainingConfig
    pairs: ray.ObjectRef
    lines: Queue
    curve: str
    checkpoint_every: int
    log_every: int
    num_threads: int


def train_worker(loop_config: dict[str, WorkerTask]) -> int | RayLirError:
    """Trains from the last checkpoint, if there is one, to the last step.

    Returns:
        The step it started from; or the user's mistake that ended training, which another attempt would only repeat.
    """
    task = loop_config["task"]
    torch.set_num_threads(task.num_threads)
    device, pairs, config = get_device(), ray.get(task.pairs), task.config
    training = Training(
        load_encoder(task.encoder, config.seed, str(device)), pairs, config, bfloat16_wanted(task.encoder.precision, device)
    )
    curve = _load_checkpoint(training)
    first_step = training.step
    if first_step and _is_first_worker():
        task.lines.put(f"continues after step {first_step}")
    for batch in islice(batches(pairs, config.batch_size, config.seed, first_step), config.max_steps - first_step):
        start = time.perf_counter()
        try:
            record = training.run_step(batch)
        except RayLirError as error:
            return error
        rate = config.batch_size / (time.perf_counter() - start)
        curve.append(record.model_copy(update={"examples_per_second": round(rate, 3)}))
        is_last = training.step == config.max_steps
        if _is_first_worker() and (is_last or training.step % task.log_every == 0):
            task.lines.put(_progress(curve[first_step:], config, task.log_every))
        if is_last or training.step % task.checkpoint_every == 0:
            _save_checkpoint(training, curve, task.curve, is_last)
    return first_step


def read_curve(path: Path) -> list[StepRecord]:
    """The loss curve that metrics.jsonl holds, one record a line."""
    return [StepRecord.model_validate(json.loads(line)) for line in path.read_text().splitlines()]


def _load_checkpoint(training: Training) -> list[StepRecord]:
    """Continues from the run's last checkpoint; returns the loss curve up to it."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        training.load(Path(folder) / STATE)
        return read_curve(Path(folder) / METRICS)


def _save_checkpoint(training: Training, curve: list[StepRecord], curve_url: str, is_last: bool) -> None:
    """Reports to Ray Train, which waits for all workers; the first one brings the state and, at the end, the encoder."""
    report: dict[str, Any] = {"step": training.step, "loss": curve[-1].loss}
    if not _is_first_worker():
        ray.train.report(report)
        return
    lines = "".join(record.model_dump_json() + "\n" for record in curve).encode()
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder) / STATE)
        (Path(folder) / METRICS).write_bytes(lines)
        if is_last:
            training.encoder.model.eval()
            training.encoder.save(str(Path(folder) / ENCODER))
        storage.write_bytes(curve_url, lines)
        ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _is_first_worker() -> bool:
    return ray.train.get_context().get_world_rank() == 0


def _progress(records: list[StepRecord], config: TrainingConfig, window: int) -> str:
    """One line about the last `window` steps, with the time that the rest will take."""
    last, recent = records[-1], records[-window:]
    loss = sum(record.loss for record in recent) / len(recent)
    seconds_per_step = sum(config.batch_size / record.examples_per_second for record in recent) / len(recent)
    left = round((config.max_steps - last.step) * seconds_per_step)
    return (
        f"step {last.step}/{config.max_steps} loss {loss:.4f} learning_rate {last.learning_rate:.2e} temperature {last.temperature:.4f} "
        f"{config.batch_size / seconds_per_step:.1f} examples/s, {left // 60}m{left % 60:02d}s left"
    )
