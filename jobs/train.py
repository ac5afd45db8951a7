"""Trains an encoder for a scorer, on a dataset in the BEIR layout or on a file of examples."""

from typing import Any

from ray_lir.base.config import EncoderConfig, TrainingConfig, TrainingSource
from ray_lir.base.extras import require
from ray_lir.distributed.workers import TrainingRun

from .cli import main


class TrainJob(TrainingConfig, TrainingSource, TrainingRun):
    """Trains an encoder; run again after a kill, it continues. docs/training.md says how to train for each scorer."""

    output: str
    """Folder of the trained checkpoint, the loss curve and, while training, its state."""
    encoder: EncoderConfig = EncoderConfig()
    """Where training starts; its conventions are kept."""


def run(job: TrainJob) -> dict[str, Any]:
    require("ray", "training")
    from ray_lir.distributed.train import train  # Ray and torch take seconds to load

    fields = dict(job)
    source, config, how = (
        TrainingSource(**{name: fields[name] for name in TrainingSource.model_fields}),
        TrainingConfig(**{name: fields[name] for name in TrainingConfig.model_fields}),
        TrainingRun(**{name: fields[name] for name in TrainingRun.model_fields}),
    )
    return train(source, job.output, job.encoder, config, how)


if __name__ == "__main__":
    main(TrainJob, run)
