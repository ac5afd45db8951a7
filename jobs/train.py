"""Trains an encoder for a scorer, on a dataset in the BEIR layout or on a file of examples."""

from typing import Any, TypeVar

from ray_lir.base.config import Config, EncoderConfig, TrainingConfig, TrainingSource
from ray_lir.base.extras import require
from ray_lir.distributed.workers import TrainingRun

from .cli import main

Part = TypeVar("Part", bound=Config)


class TrainJob(TrainingConfig, TrainingSource, TrainingRun):
    """Trains an encoder. If it is killed, run it again, and it continues. docs/training.md says how to train for each scorer."""

    output: str
    """Folder of the trained checkpoint, the loss curve and, while training, its state."""
    encoder: EncoderConfig = EncoderConfig()
    """Checkpoint from which training starts. The trained checkpoint has the same conventions."""


def run(job: TrainJob) -> dict[str, Any]:
    """Train an encoder and return the summary of `ray_lir.distributed.train.train`."""
    require("ray", "training")
    from ray_lir.distributed.train import train  # Ray and torch take seconds to load

    return train(_part(job, TrainingSource), job.output, job.encoder, _part(job, TrainingConfig), _part(job, TrainingRun))


def _part(job: TrainJob, kind: type[Part]) -> Part:
    return kind(**{name: getattr(job, name) for name in kind.model_fields})


if __name__ == "__main__":
    main(TrainJob, run)
