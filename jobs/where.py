"""Where the steps of a job run: as Ray tasks, or on threads of this process. The bytes are the same."""

import logging
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from ray_lir import storage
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import is_installed, require
from ray_lir.base.parallel import Map, threads
from ray_lir.distributed.workers import TaskWorkers, Workers

if TYPE_CHECKING:
    from ray_lir.encoder.corpus_encoder import Spread

logger = logging.getLogger("ray_lir.jobs")

Where = Literal["auto", "ray", "here"]


SMALL_TOKENS = 10_000_000
"""Tokens up to which `auto` runs a job in this process. It is an estimate: threads encode and compress on all cores of a machine, but the
rate of threads against Ray's processes is not measured yet."""
BYTES_PER_TOKEN = 4
"""Bytes of text per token."""
EXPANSION = {".gz": 3, ".parquet": 2}
"""Bytes of text per byte of a compressed file."""
JOB_VARIABLES = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_JOB_ID")
"""Environment variables of a process that `ray job submit` started."""


@dataclass(frozen=True)
class JobSize:
    """How much work a job has.

    Attributes:
        num_tokens: Tokens to encode or to index.
        text: The size in words, such as "76 kB of text".
    """

    num_tokens: int
    text: str

    @classmethod
    def of_corpus(cls, files: Sequence[str]) -> "JobSize":
        """Return the size of a corpus from the sizes of its files.

        Args:
            files: Paths or URLs.
        """
        num_bytes = sum(storage.size(file) * next((many for end, many in EXPANSION.items() if file.endswith(end)), 1) for file in files)
        shown = f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{max(1, round(num_bytes / 1e3))} kB"
        return cls(num_bytes // BYTES_PER_TOKEN, f"{shown} of text")

    @classmethod
    def of_tokens(cls, num_tokens: int) -> "JobSize":
        """Return the size of embeddings or of an index.

        Args:
            num_tokens: Number of tokens.
        """
        return cls(num_tokens, f"{num_tokens:,} tokens")


def check_where(where: Where) -> None:
    """Raise ConfigError if a job must run on Ray and Ray is not installed. Jobs call this before they read their input."""
    if where == "ray":
        require("ray", "--where ray")


def runs_on_ray(where: Where, job: str, size: JobSize, workers: Workers | TaskWorkers | None = None) -> bool:
    """Return whether a job runs on Ray, and log the choice that `auto` makes.

    `auto` chooses Ray if a flag of `workers` is set, or if the environment names a cluster, as RAY_ADDRESS and `ray job submit` do. It also
    chooses Ray in a process that is connected to Ray, and for more than SMALL_TOKENS tokens.

    Args:
        where: The job's setting.
        job: Name of the job in the log.
        size: Size of the job.
        workers: The job's workers; None: it has no such setting.

    Raises:
        ConfigError: The job needs Ray, and Ray is not installed; or workers have GPUs and the job does not run on Ray.
    """
    if where == "here" and workers is not None and workers.gpus_per_worker:
        raise ConfigError(
            "--workers.gpus_per_worker needs Ray; leave out --where here, or set RAY_LIR_KERNELS=cuda to compute here on a GPU"
        )
    if where == "here":
        return False
    if where == "auto" and (workers is None or workers == type(workers)()) and not _names_cluster():
        if not is_installed("ray"):
            logger.info("%s: Ray is not installed; the job runs in this process", job)
            return False
        if size.num_tokens <= SMALL_TOKENS:
            flag = "--workers.num_workers N" if isinstance(workers, Workers) else "--where ray"
            logger.info("%s: %s, in this process (%s starts Ray)", job, size.text, flag)
            return False
        logger.info("%s: %s, on Ray (--where here runs the job in this process)", job, size.text)
    if where == "auto":
        require("ray", "running on a cluster")
    check_where(where)
    return True


def _names_cluster() -> bool:
    """Whether this process is connected to a Ray cluster, or its environment names one."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return True
    return os.environ.get("RAY_ADDRESS", "local") not in ("", "local") or any(name in os.environ for name in JOB_VARIABLES)


@contextmanager
def session(on_ray: bool, workers: Workers | TaskWorkers | None = None) -> Iterator[Map]:
    """Yield the `Map` that spreads the steps; a Ray cluster that this context starts ends with it.

    Args:
        on_ray: Whether the steps are Ray tasks.
        workers: With `gpus_per_worker`, each task reserves as many GPUs and computes with `cuda` kernels.

    Raises:
        ConfigError: The cluster has no such GPU, or other processes hold all GPUs.
    """
    if not on_ray:
        yield threads
        return
    from ray_lir.distributed.ray_map import ray_map  # Ray takes seconds to load
    from ray_lir.distributed.room import Demand, check_free_gpus, check_room
    from ray_lir.distributed.runtime import ray_session

    gpus = workers.gpus_per_worker if workers else None
    with ray_session():
        if gpus:
            fix = "lower --workers.gpus_per_worker, or leave it out"
            demand = Demand("task", {"CPU": 1, "GPU": gpus})
            check_room([demand], fix)
            check_free_gpus([demand], fix)
            yield partial(ray_map, num_gpus=gpus, kernels="cuda")
        else:
            yield ray_map


def encoding(on_ray: bool, workers: Workers, encoder: EncoderConfig) -> "Spread":
    """Return the function that encodes the chunks of a corpus, on a pool of Ray actors or in this process. Call it inside `session`.

    Args:
        on_ray: Whether to encode on Ray.
        workers: The encoding workers.
        encoder: Configuration of the encoder.
    """
    if not on_ray:
        from ray_lir.encoder.corpus_encoder import encode_in_process

        return encode_in_process
    from ray_lir.distributed.encode import make_pool, warm_up
    from ray_lir.distributed.encode import on_ray as encode_on_ray

    pool = make_pool(workers, encoder)
    warm_up(pool, encoder)
    return partial(encode_on_ray, pool=pool)
