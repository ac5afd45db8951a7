"""Encoding on Ray Data: files are read, chunks tokenised by tasks, encoded and written by a pool of actors.

A row of the dataset is a whole chunk, and a block one row, so that chunks flow on as soon as they are read and are
spread over all actors. Ray repeats what a process that died was doing; the same chunk gives the same files again.
"""

import logging
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ray
import ray.data
import torch
from pydantic import Field
from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy

from ray_lir.config import Config, EncoderConfig
from ray_lir.distributed.runtime import error_of, start_ray
from ray_lir.encode import Plan
from ray_lir.errors import ConfigError
from ray_lir.formats.contract import EncoderContract
from ray_lir.formats.corpus import read_chunks
from ray_lir.models.chunks import ChunkEntry, Destination, tokenise_chunk, write_chunk
from ray_lir.models.encoder import Encoder
from ray_lir.models.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

Row = dict[str, Any]

READING_CPUS, TOKENISING_CPUS = 0.1, 0.15
"""What a task of these light stages is counted as. They differ, or Ray Data would make one stage of them, and a file
would be tokenised by the one process that reads it."""
WORKERS_PER_MACHINE = 16
ENCODING_SHARE = 0.75
"""The share of its CPUs that a worker is counted as: the rest starts the light stages, down to a cluster of one CPU."""


class Workers(Config):
    """How the encoding is spread. What is not said follows from the cluster."""

    num_workers: int | None = Field(None, ge=1)
    """Processes that encode. None: one a GPU, or as many as the CPUs allow."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Threads of each. None: 1, or more where a machine would have over 16 workers (each holds the model)."""
    gpus_per_worker: float | None = Field(None, gt=0)
    """GPUs of each, or a share of one. None: 1 if the cluster has GPUs and encoder.device is not cpu."""


@dataclass(frozen=True)
class Pool:
    """Workers with every number settled; `cpus` is what Ray counts each as."""

    size: int
    threads: int
    cpus: float
    gpus: float


def make_pool(workers: Workers, encoder: EncoderConfig) -> Pool:
    """Settles what the configuration leaves open, from the resources of the cluster.

    Raises:
        ConfigError: if GPUs are asked for and the cluster has none.
    """
    start_ray()
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
    asked = encoder.device.startswith("cuda") or workers.gpus_per_worker is not None
    if asked and not num_gpus:
        raise ConfigError(
            "the Ray cluster has no GPU; leave encoder.device and workers.gpus_per_worker as they are, or add a machine with one"
        )
    if num_gpus and encoder.device != "cpu":
        gpus = workers.gpus_per_worker or 1.0
        threads = workers.cpus_per_worker or 1
        size = workers.num_workers or max(1, int(num_gpus / gpus))
    else:
        gpus = 0.0
        threads = workers.cpus_per_worker or max(1, _largest_machine() // WORKERS_PER_MACHINE)
        size = workers.num_workers or max(1, num_cpus // threads)
    return Pool(size, threads, ENCODING_SHARE * min(threads, num_cpus / size), gpus)


def on_ray(plan: Plan, pool: Pool) -> Iterator[ChunkEntry]:
    """Encodes the chunks that the plan has left on Ray, and yields their entries as they are finished, in any order.

    Raises:
        RayLirError: what a worker raised.
    """
    files = [{"value": pickle.dumps(file)} for file in plan.files]
    if not files:
        return
    size = min(pool.size, plan.corpus.num_chunks - len(plan.done))
    logger.info("encode: workers=%d threads=%d gpus=%g", size, pool.threads, pool.gpus)
    light = max(1, int(ray.cluster_resources()["CPU"]) // 2)
    with DataContext.current(_context()):
        dataset = (
            ray.data.from_items(files, override_num_blocks=len(files))
            .flat_map(_read, fn_args=(plan.corpus.docs_per_chunk, plan.done), compute=TaskPoolStrategy(light), num_cpus=READING_CPUS)
            .map(_tokenise, fn_args=(plan.tokenizer,), compute=TaskPoolStrategy(light), num_cpus=TOKENISING_CPUS)
            .map(
                _EncodingWorker,
                fn_constructor_args=(plan.contract, _on_worker(plan.encoder, pool), plan.destination, pool.threads),
                compute=ActorPoolStrategy(size=size),
                num_cpus=pool.cpus,
                num_gpus=pool.gpus,
            )
        )
    try:
        for row in dataset.iter_rows():
            yield pickle.loads(row["value"])
    except Exception as error:
        raise error_of(error) from None


def _largest_machine() -> int:
    """CPUs of the machine that has most."""
    return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)


def _read(row: Row, docs_per_chunk: int, done: frozenset[int]) -> Iterator[Row]:
    for chunk in read_chunks(pickle.loads(row["value"]), docs_per_chunk, done):
        yield {"value": pickle.dumps(chunk)}


def _tokenise(row: Row, tokenizer: TextTokenizer) -> Row:
    return {"value": pickle.dumps(tokenise_chunk(pickle.loads(row["value"]), tokenizer))}


class _EncodingWorker:
    """An actor of the pool: loads the encoder for itself and keeps it."""

    def __init__(self, contract: EncoderContract, config: EncoderConfig, destination: Destination, threads: int):
        torch.set_num_threads(threads)
        self._encoder = Encoder.for_contract(contract, config)
        self._destination = destination

    def __call__(self, row: Row) -> Row:
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
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL + 1)  # the file of the Ray session has them
    return context
