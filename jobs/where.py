"""Where the steps of a job run: as Ray tasks, or on threads of this process. The bytes are the same."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Literal

from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import is_installed, require
from ray_lir.base.parallel import Map, threads
from ray_lir.distributed.workers import TaskWorkers, Workers

if TYPE_CHECKING:
    from ray_lir.encoder.corpus_encoder import Spread

logger = logging.getLogger("ray_lir.jobs")

Where = Literal["auto", "ray", "here"]


def runs_on_ray(where: Where, workers: Workers | TaskWorkers | None = None) -> bool:
    """Return whether a job runs on Ray. With `auto` it does if Ray is installed, or if a cluster or its workers are named.

    Raises:
        ConfigError: The job needs Ray, and Ray is not installed; or workers have GPUs and the job does not run on Ray.
    """
    if where == "here" and workers is not None and workers.gpus_per_worker:
        raise ConfigError(
            "--workers.gpus_per_worker needs Ray; leave out --where here, or set RAY_LIR_KERNELS=cuda to compute here on a GPU"
        )
    if where == "here":
        return False
    is_default = workers is None or workers == type(workers)()
    if where == "auto" and not is_installed("ray") and is_default and not os.environ.get("RAY_ADDRESS"):
        logger.info("Ray is not installed; the job runs in this process")
        return False
    require("ray", "running on a cluster" if where == "auto" else "--where ray")
    return True


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
    from ray_lir.distributed.encode import make_pool
    from ray_lir.distributed.encode import on_ray as encode_on_ray

    return partial(encode_on_ray, pool=make_pool(workers, encoder))
