"""Encoding on Ray Data: one pool of actors tokenises the chunks of the corpus, another encodes and writes them."""

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

import ray
import torch

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.finished_chunks import Destination
from ray_lir.corpus.scan import Chunk
from ray_lir.distributed.gpus import torch_device
from ray_lir.distributed.pipeline import ChunkActor, Pool, light_pool_size, run_chunks
from ray_lir.distributed.room import Demand, check_free_gpus, check_room
from ray_lir.distributed.runtime import portable_errors, start_ray, wait_for_machines
from ray_lir.distributed.workers import Workers
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.encoder.chunk_encoder import ChunkEntry, TokenizedChunk, tokenize_chunk, write_chunk
from ray_lir.encoder.corpus_encoder import Plan
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.tokenization import TextTokenizer

logger = logging.getLogger(__name__)

TOKENISING_CPUS = 0.15
"""CPUs that Ray reserves for a tokenising actor."""
WORKERS_PER_MACHINE = 16
"""Default limit of encoding workers on one machine, because each holds the model in memory."""
RESERVED_FRACTION = 0.75
"""Fraction of a worker's CPUs that Ray reserves for it. Reading and tokenising use the rest, even on a cluster of one CPU."""


@dataclass(frozen=True)
class WorkerPool:
    """Encoding workers.

    Attributes:
        size: Number of workers.
        threads: Threads of each worker.
        cpus: CPUs that Ray reserves for each worker.
        gpus: GPUs that Ray reserves for each worker; 0 on CPUs.
    """

    size: int
    threads: int
    cpus: float
    gpus: float


def make_pool(workers: Workers, encoder: EncoderConfig) -> WorkerPool:
    """Return the pool of encoding workers, with defaults from the cluster's resources. Waits until the cluster has a machine.

    Raises:
        ConfigError: GPUs are requested, but the cluster has too few for one worker and cannot grow.
    """
    start_ray()
    wait_for_machines()
    resources = ray.cluster_resources()
    num_cpus, num_gpus = int(resources.get("CPU", 1)), resources.get("GPU", 0)
    needs_gpu = encoder.device.startswith("cuda") or workers.gpus_per_worker is not None
    if needs_gpu and not num_gpus and not workers.num_workers:
        raise ConfigError(
            "the Ray cluster has no GPU; set encoder.device to cpu and leave out workers.gpus_per_worker, add a machine with a GPU, "
            "or set workers.num_workers if an autoscaler will add one"
        )
    if (num_gpus or needs_gpu) and encoder.device != "cpu":
        gpus = workers.gpus_per_worker or 1.0
        threads = workers.cpus_per_worker or 1
        size = workers.num_workers or max(1, int(num_gpus / gpus))
    else:
        gpus = 0.0
        threads = workers.cpus_per_worker or max(1, _largest_machine() // WORKERS_PER_MACHINE)
        size = workers.num_workers or max(1, num_cpus // threads)
    pool = WorkerPool(size, threads, RESERVED_FRACTION * min(threads, _largest_machine()), gpus)
    fix = "set workers.gpus_per_worker to the GPUs of a machine or less, or encoder.device to cpu"
    demand = Demand("encoding worker", {"GPU": gpus, "CPU": pool.cpus})
    check_room([demand], fix)
    if gpus:
        check_free_gpus([demand], "set encoder.device to cpu and leave out workers.gpus_per_worker")
    if size * gpus > num_gpus or size * pool.cpus > num_cpus:
        logger.warning("encode: the cluster has no room for all %d workers yet; the others wait for a machine", size)
    return pool


def warm_up(pool: WorkerPool, encoder: EncoderConfig) -> None:
    """Let processes of the cluster load torch and the weights now, while the corpus is scanned. Ray reuses idle processes for the workers,
    and the files are in the machines' caches then. Returns at once.

    Args:
        pool: The encoding workers.
        encoder: Configuration of the encoder.
    """
    for _ in range(min(pool.size, _num_cpus())):
        _load.remote(encoder.model_copy(update={"device": "cpu", "precision": "float32"}))


@ray.remote(num_cpus=0, max_retries=0, scheduling_strategy="SPREAD")
def _load(encoder: EncoderConfig) -> None:
    with suppress(Exception):  # the workers report what is wrong
        Encoder.load(encoder)


def on_ray(plan: Plan, pool: WorkerPool) -> Iterator[ChunkEntry]:
    """Encode the chunks that are left on Ray, and yield their entries in any order.

    Args:
        plan: The corpus, the encoder, and the chunks that are done.
        pool: The encoding workers.

    Raises:
        RayLirError: Raised by a worker.
    """

    def pools(done: frozenset[int]) -> list[Pool]:
        size = min(pool.size, plan.corpus.num_chunks - len(done))
        logger.info("encode: workers=%d threads=%d gpus=%g", size, pool.threads, pool.gpus)
        worker_args = (plan.contract, _on_worker(plan.encoder, pool), plan.destination, pool.threads)
        return [
            Pool(_Tokeniser, (plan.tokenizer,), min(light_pool_size(), size), TOKENISING_CPUS),
            Pool(_EncodingWorker, worker_args, size, pool.cpus, pool.gpus),
        ]

    return run_chunks(lambda done: replace(plan, done=done).files, plan.corpus.docs_per_chunk, plan.done, pools, "encode")


def _num_cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 1))


def _largest_machine() -> int:
    """CPUs of the largest machine."""
    return max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)


class _Tokeniser(ChunkActor[Chunk, TokenizedChunk]):
    """Tokenises chunks. It is an actor, because Ray ends idle task processes on a machine where actors reserve all CPUs."""

    def __init__(self, tokenizer: TextTokenizer):
        self._tokenizer = tokenizer

    def process(self, item: Chunk) -> TokenizedChunk:
        return tokenize_chunk(item, self._tokenizer)


class _EncodingWorker(ChunkActor[TokenizedChunk, ChunkEntry]):
    """Encodes tokenised chunks and writes their parts. The encoder is loaded once."""

    def __init__(self, contract: EncoderContract, config: EncoderConfig, destination: Destination, threads: int):
        torch.set_num_threads(threads)
        with portable_errors():
            self._encoder = Encoder.for_contract(contract, config)
        self._destination = destination

    def process(self, item: TokenizedChunk) -> ChunkEntry:
        return write_chunk(item, self._encoder, self._destination)


def _on_worker(encoder: EncoderConfig, pool: WorkerPool) -> EncoderConfig:
    """Return the configuration of the encoder for a worker."""
    return encoder.model_copy(update={"device": torch_device(pool.gpus)})
