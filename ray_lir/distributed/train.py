"""Training on Ray Train: workers divide each batch, checkpoints are in the output folder, and a killed training continues.

During a training, `<output>/state` holds config.json and the run of Ray Train, which is named by the digest of that configuration. A
finished training leaves checkpoint/, metrics.jsonl, provenance.json and manifest.json, which is written last.
"""

import logging
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import harmonic_mean
from threading import Thread
from typing import Any

import ray
import torch
from pyarrow.fs import FSSpecHandler, PyFileSystem
from ray._private.state import available_resources_per_node
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, Result, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_lir import storage
from ray_lir.base.config import EncoderConfig, TrainingConfig, TrainingSource, canonical_json, digest, parse_json
from ray_lir.base.errors import ConfigError, Conflict, RayLirError
from ray_lir.base.extras import require
from ray_lir.distributed.gpus import has_logical_gpus
from ray_lir.distributed.runtime import error_of, ray_session, wait_for_machines
from ray_lir.distributed.train_data import SharedData
from ray_lir.distributed.train_worker import (
    ENCODER,
    METRICS,
    WorkerTask,
    best_record,
    no_cuda,
    read_curve,
    train_worker,
)
from ray_lir.distributed.workers import TrainingRun
from ray_lir.encoder.encoder import Encoder, resolve_checkpoint_name
from ray_lir.storage.concurrent_writes import create_bytes, sole_writer
from ray_lir.storage.manifest import MANIFEST, PROVENANCE, read_manifest, write_manifest
from ray_lir.training.data import TrainingData, check_data, log_truncation
from ray_lir.training.data_cache import CachedData, cached_training_data
from ray_lir.training.dev_set import DevSet
from ray_lir.training.manifest import TrainingManifest
from ray_lir.training.source import load_dev_set
from ray_lir.training.trackers import TRACKERS, Callbacks, TrackedRun, TrainingCallback, make_trackers
from ray_lir.training.trainer import StepRecord, load_encoder, prepare_encoder

logger = logging.getLogger(__name__)

CHECKPOINT, STATE, CONFIG, TRACKING = "checkpoint", "state", "config.json", "tracking"
SNAPSHOT = "checkpoint_manager_snapshot.json"
CHECKPOINTS_KEPT = 2
FAILURES_SURVIVED = 8
"""How often training restarts from its last checkpoint after a worker or its machine is lost."""
GPU_PATIENCE_S = 20.0
"""Seconds to wait for GPUs that other processes hold. GPUs of a job that just ended are free within seconds."""


@dataclass(frozen=True)
class _Job:
    """One training: its data, settings and output."""

    data: CachedData
    dev: DevSet | None
    output: str
    encoder: EncoderConfig
    config: TrainingConfig
    run: TrainingRun
    identity: dict[str, Any]
    """Everything that determines the result. A training found in the output must have the same identity."""
    start: float
    """time.perf_counter() at the start of the command."""
    callbacks: Callbacks
    data_names: tuple[str, ...]
    """Folders, URLs or names of the training data, for provenance.json."""


def train(
    source: TrainingSource,
    output: str,
    encoder: EncoderConfig,
    config: TrainingConfig,
    run: TrainingRun,
    callbacks: Sequence[TrainingCallback] = (),
) -> dict[str, Any]:
    """Train an encoder for a scorer, on the judgements of a dataset or on a file of examples.

    The same call continues a killed training. After the training has finished, it does nothing.

    Args:
        source: Training data and development set.
        output: Folder or URL of the results.
        encoder: Checkpoint to start from, and its conventions.
        config: Scorer, losses and optimizer.
        run: Workers, checkpoints, trackers and the cache of the training data.
        callbacks: Follow the training, in this process, beside the trackers of `run`.

    Returns:
        output, checkpoint, steps, final_loss and the counts of `write_training_data`. With a development set: best_step and its
        nDCG@10. About the last run of the training: seconds, examples_per_second (None if no step was left), resumed_from_step and
        num_workers.

    Raises:
        ConfigError: The data, the encoder or a setting is wrong, or `output` holds something else, such as a training with another
            configuration. Nothing is written to `output` then.
        FormatError: A file of the source, or the manifest in `output`, is malformed.
        Conflict: Another process trains into `output` at the same time.
    """
    start = time.perf_counter()
    output = storage.absolute(output)
    encoder = _absolute_checkpoint(encoder)
    with cached_training_data(source, run.data_cache) as cached:
        data, dev = cached.open(), load_dev_set(source)
        check_data(data, config)
        if config.batch_size % run.num_workers:
            raise ConfigError(
                f"--batch_size {config.batch_size} cannot be shared evenly by --num_workers {run.num_workers}; make it a multiple"
            )
        if not storage.exists(storage.join(output, MANIFEST)):
            storage.check_writable(output)
        described = _describe_encoder(encoder, config, data)
        identity = config.model_dump(mode="json") | described | {"data": _digest(cached, dev)}
        for name in run.trackers:
            require(TRACKERS[name][0], f"--trackers {name}")
        if _is_finished(output, identity):
            logger.info("train: %s has finished; nothing to do", output)
        else:
            with ray_session():
                wait_for_machines()
                scaling = _scaling(run, encoder)
                with sole_writer(output):
                    if not _claim(output, identity):
                        followers = Callbacks([*make_trackers(run.trackers, _tracked(output, run, identity)), *callbacks])
                        names = tuple(filter(None, (source.dataset, source.examples)))
                        _fit_and_publish(_Job(cached, dev, output, encoder, config, run, identity, start, followers, names), scaling)
        storage.remove_tree(storage.join(output, STATE))
        counts = cached.manifest.model_dump(include={"queries", "documents", "num_dead", "queries_left_out"})
        return _summary(output) | counts


def _tracked(output: str, run: TrainingRun, identity: dict[str, Any]) -> TrackedRun:
    here = storage.local_path(output) if storage.is_local(output) else Path.cwd()
    folder = storage.local_path(run.tracking_dir) if run.tracking_dir else here / TRACKING
    parameters: dict[str, Any] = {}
    for name, value in identity.items():
        parameters |= {f"{name}.{key}": each for key, each in value.items()} if isinstance(value, dict) else {name: value}
    return TrackedRun(digest(identity), output.rstrip("/").rpartition("/")[2], folder, parameters)


def _claim(output: str, identity: dict[str, Any]) -> bool:
    """Reserve the output for this training, before it writes anything there.

    Returns:
        Whether another run of this training has finished meanwhile.

    Raises:
        Conflict: Another training began or finished there since this one started.
    """
    claimed = True
    try:
        create_bytes(storage.join(output, STATE, CONFIG), canonical_json(identity))
    except FileExistsError:
        claimed = False
    try:
        return _is_finished(output, identity)
    except ConfigError as error:
        if claimed:  # the other training has finished and removed its own claim
            storage.remove_tree(storage.join(output, STATE))
        raise Conflict(f"another training began at the same time: {error}") from None


def _digest(cached: CachedData, dev: DevSet | None) -> str:
    if dev is None:
        return cached.manifest.digest
    return cached.open().digest([dev.queries, dev.documents, dev.qrels, *[True] * dev.ignore_identical_ids])


def _absolute_checkpoint(encoder: EncoderConfig) -> EncoderConfig:
    """Return the configuration with an absolute checkpoint path, because Ray Train's workers have their own working directory."""
    return encoder.model_copy(update={"checkpoint": resolve_checkpoint_name(encoder.checkpoint)})


def _describe_encoder(config: EncoderConfig, training: TrainingConfig, data: TrainingData) -> dict[str, Any]:
    """Return the properties of the encoder that determine the training.

    The encoder is loaded, used and saved once as a check, so that a mistake shows now and not after the last step.

    Raises:
        ConfigError: The encoder cannot be loaded or saved, it does not fit the scorer or the projection, or a setting is not for training.
    """
    if config.projection:
        raise ConfigError("--encoder.projection is fitted by jobs.encode; give the checkpoint that it saved as --encoder.checkpoint")
    encoder = load_encoder(config, training.seed, "cpu")
    largest_pool = training.batch_size * (1 + training.num_negatives) * encoder.contract.document_length
    if training.scorer == "xtr" and max(training.xtr.k_train) > largest_pool:
        raise ConfigError(
            f"--xtr.k_train {max(training.xtr.k_train)} is more than the {largest_pool} document tokens that a batch can have; "
            "lower it or raise --batch_size"
        )
    suited = prepare_encoder(encoder, training)
    suited.encode_queries(["for show"])
    log_truncation(data, suited.tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        suited.save(Path(folder) / ENCODER)
    return {"encoder": encoder.contract.fingerprint, "precision": config.precision}


def _is_finished(output: str, identity: dict[str, Any]) -> bool:
    """Return whether `output` holds this training as finished. If not, the training can start or continue there.

    Raises:
        ConfigError: The output holds something else.
    """
    finished = storage.exists(storage.join(output, MANIFEST))
    started = storage.exists(storage.join(output, STATE, CONFIG))
    if finished:
        have = read_manifest(storage.join(output, MANIFEST), TrainingManifest, made_by="jobs.train").config
    elif started:
        have = parse_json(storage.read_bytes(storage.join(output, STATE, CONFIG)))
    elif storage.exists(output) and (storage.list_names(output) or not storage.is_folder(output)):
        raise ConfigError(f"{output} is there already and holds no training; give another --output")
    else:
        return False
    have = TrainingConfig().model_dump(mode="json") | have  # a setting that is newer than the training had the effect of its default
    different = [f"{name} {have.get(name)!r} and not {identity[name]!r}" for name in identity if have.get(name) != identity[name]]
    if different:
        raise ConfigError(f"{output} holds a training with {different[0]}; give another --output, or remove that folder first")
    return finished


def _fit_and_publish(job: _Job, scaling: ScalingConfig) -> None:
    finished = False
    try:
        result = _fit(job, scaling)
        finished = True
    except ConfigError:
        if not storage.exists(storage.join(job.output, METRICS)):  # there is no checkpoint, so a corrected command may use the folder
            storage.remove_tree(storage.join(job.output, STATE))
        raise
    finally:
        job.callbacks.on_end(finished)
    _publish(result, job, scaling)


def _scaling(run: TrainingRun, encoder: EncoderConfig) -> ScalingConfig:
    """Return the CPUs and GPUs of each worker.

    Raises:
        ConfigError: The cluster has too few of them, or the precision is float16 and the workers have no GPUs.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    num_gpus = int(sum(node.get("GPU", 0) for node in nodes))
    on_cuda = encoder.device.startswith("cuda")
    if run.gpus_per_worker is not None and encoder.device != "auto" and on_cuda != bool(run.gpus_per_worker):
        raise ConfigError(f"--gpus_per_worker {run.gpus_per_worker} contradicts --encoder.device {encoder.device}; leave one of them out")
    if run.gpus_per_worker or on_cuda or (run.gpus_per_worker is None and encoder.device == "auto" and num_gpus >= run.num_workers):
        _check_gpus(run.num_workers, num_gpus)
        return ScalingConfig(num_workers=run.num_workers, use_gpu=True)
    if encoder.precision == "float16":
        raise ConfigError(
            "--encoder.precision float16 trains only on GPUs, and the workers will have none; choose auto, bfloat16 or float32"
        )
    cpus = [int(node.get("CPU", 0)) for node in nodes]
    shares = [run.cpus_per_worker] if run.cpus_per_worker else range(max(cpus), 0, -1)
    share = next((share for share in shares if sum(cpu // share for cpu in cpus) >= run.num_workers), None)
    if share is None:
        raise ConfigError(
            f"--num_workers {run.num_workers} need {run.cpus_per_worker or 1} CPUs each, and the cluster's machines have {cpus}; use fewer"
        )
    return ScalingConfig(num_workers=run.num_workers, resources_per_worker={"CPU": share})


def _check_gpus(num_workers: int, num_gpus: int) -> None:
    """Check that every worker gets a GPU now, and that torch can use it. Ray itself would wait without a message.

    Raises:
        ConfigError: The cluster has too few GPUs, other jobs hold them, or torch finds no CUDA device.
    """
    if num_gpus < num_workers:
        raise ConfigError(
            f"--num_workers {num_workers} need a GPU each, and the cluster has {num_gpus}; use fewer workers, or --gpus_per_worker 0"
        )
    deadline = time.monotonic() + GPU_PATIENCE_S
    while (free := _free_gpus()) < num_workers:
        if time.monotonic() > deadline:
            raise ConfigError(
                f"--num_workers {num_workers} need a GPU each, and {free} of the cluster's {num_gpus} are free; "
                "wait for the jobs that hold them, use fewer workers, or --gpus_per_worker 0"
            )
        time.sleep(0.5)
    if not has_logical_gpus() and (place := ray.get(_gpu_without_cuda.remote())):
        raise ConfigError(no_cuda(place))


def _free_gpus() -> int:
    """Return the number of whole GPUs that no process has reserved."""
    return sum(int(resources.get("GPU", 0)) for resources in available_resources_per_node().values())


@ray.remote(num_gpus=1, num_cpus=0)
def _gpu_without_cuda() -> str | None:
    """Return the name of the GPU that Ray reserved for this task if torch cannot use it, otherwise None."""
    if torch.cuda.is_available():
        return None
    return f"GPU {', '.join(ray.get_runtime_context().get_accelerator_ids()['GPU'])} of {socket.gethostname()}"


def _fit(job: _Job, scaling: ScalingConfig) -> Result:
    """Run Ray Train to the end. An unfinished run with the same name in the same folder continues.

    Raises:
        RayLirError: The user's mistake that ended training.
    """
    name = f"train-{digest(job.identity)[:12]}"
    logical_gpus = bool(scaling.use_gpu) and has_logical_gpus()
    with _progress_log(job.callbacks) as lines:
        task = WorkerTask(
            encoder=job.encoder,
            config=job.config,
            data=SharedData.of(job.data, job.run.data_cache),
            dev=ray.put(job.dev) if job.dev else None,
            lines=lines,
            curve=storage.join(job.output, METRICS),
            checkpoint_every=job.run.checkpoint_every,
            log_every=job.run.log_every,
            num_threads=1 if scaling.use_gpu else int(scaling.num_cpus_per_worker),
            tracked=bool(job.callbacks),
            logical_gpus=logical_gpus,
        )
        place = _storage(storage.join(job.output, STATE))
        _drop_damaged_snapshot(storage.join(job.output, STATE, name, SNAPSHOT))
        trainer = TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # in version 2 of Ray Train the function may return a result
            train_loop_config={"task": task},
            torch_config=TorchConfig(backend="gloo" if logical_gpus else None),  # None: nccl with GPUs, otherwise gloo
            scaling_config=scaling,
            run_config=RunConfig(
                name=name,
                checkpoint_config=CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
                failure_config=FailureConfig(max_failures=FAILURES_SURVIVED),
                logging_config=LoggingConfig(log_level="ERROR"),  # type: ignore[call-arg]  # the stubs are of Ray Train's first version
                **place,
            ),
        )
        try:
            result = trainer.fit()
        except WorkerGroupError as error:
            raise error_of(next(iter(error.worker_failures.values()), error)) from None
    if isinstance(returned := _returned(result), RayLirError):
        raise returned
    return result


def _returned(result: Result) -> int | RayLirError:
    """Return the result of the first worker."""
    return result.return_value  # type: ignore[attr-defined]  # the stubs are of Ray Train's first version


def _storage(folder: str) -> dict[str, Any]:
    """Return the arguments that tell Ray Train where to store a run: a local folder, or a file system of fsspec."""
    if storage.is_local(folder):
        return {"storage_path": str(storage.local_path(folder))}
    fs, path = storage.filesystem(folder)
    return {"storage_path": path, "storage_filesystem": PyFileSystem(FSSpecHandler(fs))}


def _drop_damaged_snapshot(url: str) -> None:
    """Remove Ray Train's list of checkpoints if a kill truncated it. Ray Train does not write it atomically and cannot repair it."""
    if not storage.exists(url):
        return
    try:
        parse_json(storage.read_bytes(url))
    except ValueError:
        logger.warning("train: the list of checkpoints was truncated when the training was killed; it starts again from the first step")
        storage.remove_tree(url)


@contextmanager
def _progress_log(callbacks: Callbacks) -> Iterator[Queue]:
    """Yield a queue for the workers' progress messages, which this process logs, and for records, which it passes to the callbacks."""
    here = NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )  # so that the queue survives the loss of another machine
    lines = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    thread = Thread(target=_log_lines, args=(lines, callbacks), daemon=True)
    thread.start()
    try:
        yield lines
    finally:
        lines.put(None)
        thread.join()
        lines.shutdown()


def _log_lines(lines: Queue, callbacks: Callbacks) -> None:
    for line in iter(lines.get, None):
        if isinstance(line, StepRecord):
            callbacks.on_step(line)
        else:
            logger.info("train: %s", line)


def _publish(result: Result, job: _Job, scaling: ScalingConfig) -> None:
    """Move the encoder and the loss curve of the last checkpoint to the output; the manifest comes last."""
    output = job.output
    assert result.checkpoint is not None, "the last step reports a checkpoint"
    with result.checkpoint.as_directory() as folder, storage.attempt_folder(output) as attempt:
        curve = read_curve(Path(folder) / METRICS)
        storage.write_bytes(storage.join(output, METRICS), (Path(folder) / METRICS).read_bytes())
        shutil.copytree(Path(folder) / ENCODER, attempt / CHECKPOINT)
        contract = Encoder.load(EncoderConfig(checkpoint=str(attempt / CHECKPOINT), device="cpu", precision="float32")).contract
        storage.publish(attempt / CHECKPOINT, storage.join(output, CHECKPOINT))
    first_step = _returned(result)
    assert isinstance(first_step, int)
    rates = [record.examples_per_second for record in curve[first_step:]]
    provenance = {
        "seconds": round(time.perf_counter() - job.start, 1),
        "examples_per_second": round(harmonic_mean(rates), 2) if rates else None,
        "resumed_from_step": first_step,
        "num_workers": scaling.num_workers,
        "base_model": job.encoder.checkpoint,
        "training_data": job.data_names,
    }
    if best := best_record(curve):
        provenance |= {"best_step": best.step, "nDCG@10": best.ndcg_at_10}
    storage.write_bytes(storage.join(output, PROVENANCE), canonical_json(provenance))
    manifest = TrainingManifest(
        contract=contract.model_copy(update={"checkpoint": CHECKPOINT}),
        num_steps=len(curve),
        final_loss=curve[-1].loss,
        config=job.identity,
    )
    write_manifest(storage.join(output, MANIFEST), manifest)


def _summary(output: str) -> dict[str, Any]:
    """The results of a finished training."""
    manifest = read_manifest(storage.join(output, MANIFEST), TrainingManifest, made_by="jobs.train")
    return {
        "output": output,
        "checkpoint": storage.join(output, CHECKPOINT),
        "steps": manifest.num_steps,
        "final_loss": manifest.final_loss,
        **parse_json(storage.read_bytes(storage.join(output, PROVENANCE))),
    }
