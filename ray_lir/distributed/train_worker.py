"""The training loop of a Ray Train worker: its part of every step, evaluations, the loss curve, and checkpoints."""

import shutil
import socket
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train.torch import get_device
from ray.util.queue import Queue

from ray_lir import storage
from ray_lir.base.config import EncoderConfig, TrainingConfig, parse_json
from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.distributed.gpus import LOGICAL_GPUS
from ray_lir.distributed.runtime import portable_errors
from ray_lir.distributed.train_data import SharedData
from ray_lir.training.trainer import StepRecord, Training, load_encoder, product_dtype

METRICS, STATE, ENCODER = "metrics.jsonl", "training.pt", "encoder"


@dataclass(frozen=True)
class WorkerTask:
    """Everything that a worker needs.

    Attributes:
        encoder: Checkpoint to start from.
        config: Settings of the training.
        data: Training data that every machine can map into memory.
        dev: Reference to the DevSet; None without one.
        lines: Queue for lines of progress, which the driver logs, and for records of steps, which it passes to callbacks.
        curve: URL of the file that shows the loss curve up to the last checkpoint.
        checkpoint_every: Steps between checkpoints.
        log_every: Steps between lines of progress.
        num_threads: Threads of torch on a CPU.
        tracked: Whether the driver has callbacks.
        logical_gpus: Whether the cluster's GPUs exist only as resource counts, so that workers compute on the CPU.
    """

    encoder: EncoderConfig
    config: TrainingConfig
    data: SharedData
    dev: ray.ObjectRef | None
    lines: Queue
    curve: str
    checkpoint_every: int
    log_every: int
    num_threads: int
    tracked: bool = False
    logical_gpus: bool = False


def train_worker(loop_config: dict[str, WorkerTask]) -> int | RayLirError:
    """Train from the last checkpoint, if there is one, to the last step.

    Returns:
        The step from which it started; or the error of a user's mistake, which another attempt would only repeat.
    """
    try:
        with portable_errors():
            return _train(loop_config["task"])
    except RayLirError as error:
        return error


def _train(task: WorkerTask) -> int:
    torch.set_num_threads(task.num_threads)
    device, config = _device(task), task.config
    products = product_dtype(task.encoder.precision, device)
    training = Training(load_encoder(task.encoder, config.seed, str(device)), task.data.open(), config, products)
    dev = task.dev and ray.get(task.dev)
    with tempfile.TemporaryDirectory() as scratch:
        best = Path(scratch) / ENCODER
        curve, notes = _load_checkpoint(training, best)
        first_step = training.step
        if first_step and _is_first_worker():
            for line in (f"continues after step {first_step}", *notes):
                task.lines.put(line)
        for step_batches in training.remaining():
            start = time.perf_counter()
            record = training.run_step(*step_batches)
            rate = config.batch_size * config.accumulate / (time.perf_counter() - start)
            is_last = training.step == config.max_steps
            if dev and (is_last or training.step % config.evaluate_every == 0):
                record = record.model_copy(update={"ndcg_at_10": training.evaluate(dev)})
            curve.append(record.model_copy(update={"examples_per_second": round(rate, 3)}))
            if _is_first_worker():
                if task.tracked:
                    task.lines.put(curve[-1])
                if curve[-1] is best_record(curve):
                    shutil.rmtree(best, ignore_errors=True)
                    training.encoder.save(best)
                if is_last or training.step % task.log_every == 0 or record.ndcg_at_10 is not None:
                    task.lines.put(_progress(curve[first_step:], config, task.log_every))
            if is_last or training.step % task.checkpoint_every == 0:
                _save_checkpoint(training, curve, task.curve, best, is_last)
    return first_step


def _device(task: WorkerTask) -> torch.device:
    """Return the device of this worker. A worker with a GPU logs which GPU Ray reserved for it.

    Raises:
        ConfigError: Ray reserved a GPU that torch cannot use.
    """
    gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU", [])
    if not gpus:
        return torch.device("cpu")
    place = f"GPU {', '.join(gpus)} of {socket.gethostname()}"
    rank = ray.train.get_context().get_world_rank()
    if task.logical_gpus:
        task.lines.put(f"worker {rank} has {place} as a resource count and computes on the CPU ({LOGICAL_GPUS}=1)")
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(no_cuda(place))
    device = get_device()
    task.lines.put(f"worker {rank} has {place} as {device}")
    return device


def no_cuda(place: str) -> str:
    """Return the message for a reserved GPU that torch cannot use."""
    return (
        f"Ray reserved {place} for training, but torch finds no CUDA device there; install a CUDA build of torch and the driver on that "
        "machine, or train on CPUs with --gpus_per_worker 0"
    )


def best_record(curve: list[StepRecord]) -> StepRecord | None:
    """Return the step with the greatest nDCG@10, the first of several; None if nothing was evaluated."""
    evaluated = [record for record in curve if record.ndcg_at_10 is not None]
    return max(evaluated, key=lambda record: record.ndcg_at_10 or 0.0, default=None)


def read_curve(path: Path) -> list[StepRecord]:
    """Return the loss curve in metrics.jsonl, which has one record a line."""
    return [StepRecord.model_validate(parse_json(line)) for line in path.read_text().splitlines()]


def _load_checkpoint(training: Training, best: Path) -> tuple[list[StepRecord], list[str]]:
    """Continue from the run's last checkpoint; return the loss curve up to it, and the notes of `Training.load`."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return [], []
    with checkpoint.as_directory() as folder:
        notes = training.load(Path(folder) / STATE)
        if (Path(folder) / ENCODER).is_dir():
            shutil.copytree(Path(folder) / ENCODER, best)
        return read_curve(Path(folder) / METRICS), notes


def _save_checkpoint(training: Training, curve: list[StepRecord], curve_url: str, best: Path, is_last: bool) -> None:
    """Report to Ray Train, which waits for all workers. The first worker adds the state and the best encoder so far.

    Without evaluations the best encoder is the last one.
    """
    report: dict[str, Any] = {"step": training.step, "loss": curve[-1].loss}
    if not _is_first_worker():
        ray.train.report(report)
        return
    lines = "".join(record.model_dump_json() + "\n" for record in curve).encode()
    with tempfile.TemporaryDirectory() as folder:
        training.save(Path(folder) / STATE)
        (Path(folder) / METRICS).write_bytes(lines)
        if best.is_dir():
            shutil.copytree(best, Path(folder) / ENCODER)
        elif is_last:
            training.encoder.save(Path(folder) / ENCODER)
        storage.write_bytes(curve_url, lines)
        ray.train.report(report, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _is_first_worker() -> bool:
    return ray.train.get_context().get_world_rank() == 0


def _progress(records: list[StepRecord], config: TrainingConfig, window: int) -> str:
    """Return a progress message about the last `window` steps, with the estimated remaining time."""
    last, recent = records[-1], records[-window:]
    loss = sum(record.loss for record in recent) / len(recent)
    examples = config.batch_size * config.accumulate
    seconds_per_step = sum(examples / record.examples_per_second for record in recent) / len(recent)
    left = round((config.max_steps - last.step) * seconds_per_step)
    ndcg = "" if last.ndcg_at_10 is None else f" nDCG@10 {last.ndcg_at_10:.4f}"
    return (
        f"step {last.step}/{config.max_steps} loss {loss:.4f}{ndcg} learning_rate {last.learning_rate:.2e} "
        f"temperature {last.temperature:.4f} {examples / seconds_per_step:.1f} examples/s, {left // 60}m{left % 60:02d}s left"
    )
