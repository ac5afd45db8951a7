"""A teacher's scores on Ray Data: batches of pairs go to a pool of actors that hold the cross-encoder.

A batch carries its own texts, so no worker holds the corpus. Batches are sent in waves, because all items of a Ray Data execution are in
the object store at once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator

import torch

from ray_lir.base.config import EncoderConfig
from ray_lir.distributed.encode import make_pool
from ray_lir.distributed.gpus import torch_device
from ray_lir.distributed.pipeline import ChunkActor, Pool, run_items
from ray_lir.distributed.runtime import portable_errors
from ray_lir.distributed.workers import Workers
from ray_lir.encoder.cross_encoder import BatchScores, CrossEncoder, PairBatch

logger = logging.getLogger(__name__)

Load = Callable[[str], CrossEncoder]
"""Loads the cross-encoder on a device; must be picklable."""
WAVE_CHARACTERS = 1 << 29
"""Characters of the documents of a wave, about. Each wave starts the actors anew, which takes seconds."""


def scores(batches: Iterable[PairBatch], load: Load, device: str, workers: Workers) -> Iterator[BatchScores]:
    """Score batches on a pool of Ray Data actors, and yield their scores in any order.

    Args:
        batches: The pairs; one wave of them is in memory at a time.
        load: Loads the cross-encoder on a device.
        device: auto, cpu or cuda: whether workers reserve GPUs, as for encoding.
        workers: Number and size of the workers.

    Raises:
        ConfigError: The cluster has no room for a worker.
        RayLirError: Raised by a worker.
    """
    pool = make_pool(workers, EncoderConfig(device=device))
    for wave in _waves(batches):

        def pools(done: frozenset[int], num_batches: int = len(wave)) -> list[Pool]:
            size = min(pool.size, num_batches - len(done))
            logger.info("score: workers=%d threads=%d gpus=%g", size, pool.threads, pool.gpus)
            return [Pool(_ScoringWorker, (load, torch_device(pool.gpus), pool.threads), size, pool.cpus, pool.gpus)]

        yield from run_items(wave, pools, "score")


def _waves(batches: Iterable[PairBatch]) -> Iterator[list[PairBatch]]:
    wave: list[PairBatch] = []
    size = 0
    for batch in batches:
        wave.append(batch)
        size += batch.num_characters
        if size >= WAVE_CHARACTERS:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


class _ScoringWorker(ChunkActor[PairBatch, BatchScores]):
    """Loads the cross-encoder and keeps it."""

    def __init__(self, load: Load, device: str, num_threads: int):
        torch.set_num_threads(num_threads)
        with portable_errors():
            self._teacher = load(device)

    def process(self, item: PairBatch) -> BatchScores:
        return self._teacher.score(item)
