"""How encoding and training are spread over a cluster; kept apart from the code that needs Ray, so that `--help` starts fast."""

from pydantic import Field

from ray_lir.base.config import Config


class Workers(Config):
    """How the encoding is spread. What is not said follows from the machines that the cluster has when the job starts."""

    num_workers: int | None = Field(None, ge=1)
    """Processes that encode; those that the cluster has no room for join when a machine comes. None: one a GPU, or as many as
    the CPUs allow."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Threads of each. None: 1, or more where a machine would have over 16 workers (each holds the model)."""
    gpus_per_worker: float | None = Field(None, gt=0)
    """GPUs of each, or a share of one. None: 1 if the cluster has GPUs and encoder.device is not cpu."""


class TrainingRun(Config):
    """How a training runs: what comes out depends on it by no more than the rounding of sums."""

    num_workers: int = Field(1, ge=1)
    """Workers that share each batch: with a GPU each where the cluster has as many, on CPUs otherwise."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs that a worker without a GPU takes, and its threads; None: the workers share all that the cluster has. A training that
    continues keeps the number of threads that it began with."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; a training that was killed continues from the last one."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of progress."""


class SearchWorkers(Workers):
    """How a bulk search is spread over a Ray cluster. Fields that are not set follow from the cluster's machines."""

    groups: int | None = Field(None, ge=1)
    """Hold the index in this many groups of shards, each in a process of its own. None: as `disk` requires, or else every worker opens
    the whole index."""
    cache: str | None = None
    """Folder on every machine for copies of a remote index. None: a folder of the user in the machine's temporary folder."""
    disk: float | None = Field(None, gt=0)
    """Gigabytes that the copies may take on a machine. A larger index is split into groups of shards, one a machine. None: no limit."""
