"""Encoding on Ray Data: files are read by tasks, chunks tokenised by one pool of actors, encoded and written by another.

A row of the dataset is a whole chunk, and a block one row, so that chunks flow on as soon as they are read and are
spread over all actors. Ray repeats what a process that died was doing; the same chunk gives the same files again.
"""

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, DataContext, Dataset, TaskPoolStrategy
from ray.data.exceptions import ExecutionTimeoutError

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.scan import read_chunks
from ray_lir.distributed.room import Demand, check_room
from ray_lir.distributed.runtime import error_of, portable_errors, start_ray, wait_for_machines
from ray_lir.distributed.workers import Workers
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.encoder.chunks import ChunkEntry, Destination, tokenise_chunk, write_chunk
from ray_lir.encoder.corpus_encoder import Plan
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

Row = dict[str, Any]

READING_CPUS, TOKENISING_CPUS = 0.1, 0.15
"""What a process of these light stages is counted as."""
WORKERS_PER_MACHINE = 16
ENCODING_SHARE = 0.75
"""The share of its CPUs that a worker is counted as: the rest starts the light stages, down to a cluster of one CPU."""
PATIENCE_S = 120.0
"""How long nothing may move before the rest is begun anew: calls of an actor wait for it to come back, which an actor does
not whose machine is lost and has no successor. Each time it was too short, it doubles."""


@dataclass(frozen=True)
class Pool:
    """Workers with every number settled; `cpus` is what Ray counts each as."""

    size: int
    threads: int
    cpus: float
    gpus: float


def make_pool(workers: Workers, encoder: EncoderConfig) -> Pool:
    """Settles what the configuration leaves open, from the resources of the cluster; waits for the first of its machines.

    Raises:
        ConfigError: if GPUs are asked for, and the cluster has too few for a single worker and cannot grow.
    """
    start_ray()
    wait_for_machines()
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
    asked = encoder.device.startswith("cuda") or workers.gpus_per_worker is not None
    if asked and not num_gpus and not workers.num_workers:
        raise ConfigError(
            "the Ray cluster has no GPU; set encoder.device to cpu and leave out workers.gpus_per_worker, add a machine with a GPU, "
            "or, where an autoscaler adds it, set workers.num_workers to the workers to wait for"
        )
    if (num_gpus or asked) and encoder.device != "cpu":
        gpus = workers.gpus_per_worker or 1.0
        threads = workers.cpus_per_worker or 1
        size = workers.num_workers or max(1, int(num_gpus / gpus))
    else:
        gpus = 0.0
        threads = workers.cpus_per_worker or max(1, _largest_machine() // WORKERS_PER_MACHINE)
        size = workers.num_workers or max(1, num_cpus // threads)
    pool = Pool(size, threads, ENCODING_SHARE * min(threads, _largest_machine()), gpus)
    fix = "set workers.gpus_per_worker to what a machine has, or encoder.device to cpu"
    check_room([Demand("encoding worker", {"GPU": gpus, "CPU": pool.cpus})], fix)
    if size * gpus > num_gpus or size * pool.cpus > num_cpus:
        logger.warning("encode: %d workers are asked for, more than the cluster runs at once; the others wait for a machine", size)
    return pool


def on_ray(plan: Plan, pool: Pool) -> Iterator[ChunkEntry]:
    """Encodes the chunks that the plan has left on Ray, and yields their entries as they are finished, in any order.

    Raises:
        RayLirError: what a worker raised.
    """
    context = _context()
    while plan.files:
        logger.info("encode: workers=%d threads=%d gpus=%g", _size(plan, pool), pool.threads, pool.gpus)
        finished: set[int] = set()
        try:
            for entry in _entries(plan, pool, context):
                finished.add(entry.number)
                yield entry
        except ExecutionTimeoutError:
            logger.warning("encode: nothing moved for %g s; begins anew with what is left", context.execution_no_progress_timeout_s)
            context.execution_no_progress_timeout_s *= 2
        plan = replace(plan, done=plan.done | finished)


def _entries(plan: Plan, pool: Pool, context: DataContext) -> Iterator[ChunkEntry]:
    """One execution of the dataset."""
    with DataContext.current(context):
        rows = iter(_dataset(plan, pool).iter_rows())
    try:
        for row in rows:
            yield pickle.loads(row["value"])
    except ExecutionTimeoutError:
        raise
    except Exception as error:
        raise error_of(error) from None


def _dataset(plan: Plan, pool: Pool) -> Dataset:
    files = [{"value": pickle.dumps(file)} for file in plan.files]
    light = max(1, int(ray.cluster_resources().get("CPU", 0)) // 2)
    return (
        ray.data.from_items(files, override_num_blocks=len(files))
        .flat_map(_read, fn_args=(plan.corpus.docs_per_chunk, plan.done), compute=TaskPoolStrategy(light), num_cpus=READING_CPUS)
        .map(
            _Tokeniser,
            fn_constructor_args=(plan.tokenizer,),
            compute=ActorPoolStrategy(size=min(light, _size(plan, pool))),
            num_cpus=TOKENISING_CPUS,
        )
        .map(
            _EncodingWorker,
            fn_constructor_args=(plan.contract, _on_worker(plan.encoder, pool), plan.destination, pool.threads),
            compute=ActorPoolStrategy(size=_size(plan, pool)),
            num_cpus=pool.cpus,
            num_gpus=pool.gpus,
        )
    )


def _size(plan: Plan, pool: Pool) -> int:
    """Workers that have a chunk to encode."""
    return min(pool.size, plan.corpus.num_chunks - len(plan.done))


def _largest_machine() -> int:
    """CPUs of the machine that has most."""
    return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)


def _read(row: Row, docs_per_chunk: int, done: frozenset[int]) -> Iterator[Row]:
    with portable_errors():
        for chunk in read_chunks(pickle.loads(row["value"]), docs_per_chunk, done):
            yield {"value": pickle.dumps(chunk)}


class _Tokeniser:
    """An actor, so that the process stays: a machine whose CPUs are all taken by actors ends the processes of tasks when they idle."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer

    def __call__(self, row: Row) -> Row:
        return {"value": pickle.dumps(tokenise_chunk(pickle.loads(row["value"]), self._tokenizer))}


class _EncodingWorker:
    """An actor of the pool: loads the encoder for itself and keeps it."""

    def __init__(self, contract: EncoderContract, config: EncoderConfig, destination: Destination, threads: int):
        torch.set_num_threads(threads)
        with portable_errors():
            self._encoder = Encoder.for_contract(contract, config)
        self._destination = destination

    def __call__(self, row: Row) -> Row:
        with portable_errors():
            return {"value": pickle.dumps(write_chunk(pickle.loads(row["value"]), self._encoder, self._destination))}


def _on_worker(encoder: EncoderConfig, pool: Pool) -> EncoderConfig:
    """The configuration as a worker needs it: of the machine's GPUs it sees its own alone."""
    return encoder.model_copy(update={"device": "cuda" if pool.gpus else "cpu"})


def _context() -> DataContext:
    """Ray Data's settings for this dataset: one chunk a block; no progress bars and messages of its own beside ours."""
    context = DataContext.get_current().copy()
    context.target_max_block_size = 1
    context.enable_progress_bars = False
    context.raise_original_map_exception = True
    context.execution_no_progress_timeout_s = min(PATIENCE_S, context.execution_no_progress_timeout_s)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)  # the file of the Ray session has them
    return context
