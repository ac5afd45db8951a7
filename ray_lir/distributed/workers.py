"""Settings of the workers that encode and train. They are separate from the code that loads Ray, so that `--help` is fast."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from ray_lir.base.config import Config


def _words(value: Any) -> Any:
    return value.replace(",", " ").split() if isinstance(value, str) else value


class Workers(Config):
    """The workers that encode. Defaults follow from the cluster's machines when the job starts."""

    num_workers: int | None = Field(None, ge=1)
    """Number of encoding processes. If the cluster has no room for all of them yet, the others start when machines join. None: one a
    GPU, or one for each `cpus_per_worker` CPUs."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """Threads of each worker. None: 1, or more if a machine would otherwise have over 16 workers (each holds the model)."""
    gpus_per_worker: float | None = Field(None, gt=0)
    """GPUs of each worker; fractions are allowed. None: 1 if the cluster has GPUs and encoder.device is not cpu."""


class TaskWorkers(Config):
    """The tasks of a build."""

    gpus_per_worker: float | None = Field(None, gt=0, le=1)
    """GPUs that Ray reserves for each task, which then computes on the GPU; a fraction lets tasks share a GPU. None: tasks compute on
    CPUs."""


class TrainingRun(Config):
    """Settings of a training run. They change the result only by the rounding of sums."""

    num_workers: int = Field(1, ge=1)
    """Number of workers; each batch is divided among them."""
    gpus_per_worker: int | None = Field(None, ge=0, le=1)
    """1: each worker reserves a GPU. 0: workers compute on CPUs. None: 1 if the cluster has a GPU for every worker and
    encoder.device is not cpu, otherwise 0."""
    cpus_per_worker: int | None = Field(None, ge=1)
    """CPUs and threads of a worker without a GPU. None: all CPUs of the cluster, divided among the workers. A training that
    continues uses the number of threads of its first run."""
    checkpoint_every: int = Field(100, ge=1)
    """Steps between checkpoints; a training that was killed continues from the last one."""
    log_every: int = Field(10, ge=1)
    """Steps between lines of progress."""
    trackers: Annotated[tuple[Literal["tensorboard", "mlflow", "wandb"], ...], BeforeValidator(_words)] = ()
    """Trackers that get the numbers of every step: tensorboard, mlflow and wandb, separated by commas. They write into `tracking_dir`
    unless their environment variables name a server."""
    tracking_dir: str | None = None
    """Local folder for the files of the trackers. None: `tracking` in the output, or in the working directory if the output is remote."""
    data_cache: str | None = None
    """Folder on a local disk of each machine for the training data, which workers map into memory.
    None: ray_lir/training in XDG_CACHE_HOME (by default ~/.cache). Data unused for 7 days is removed."""


class SearchWorkers(Workers):
    """How a bulk search is spread over a Ray cluster. Fields that are not set follow from the cluster's machines."""

    groups: int | None = Field(None, ge=1)
    """Hold the index in this many groups of shards, each in a process of its own. None: as `disk` requires, or else every worker opens
    the whole index."""
    cache: str | None = None
    """Folder on every machine for copies of a remote index. None: a folder of the user in the machine's temporary folder."""
    disk: float | None = Field(None, gt=0)
    """Gigabytes that the copies may take on a machine. A larger index is split into groups of shards, one a machine. None: no limit."""
