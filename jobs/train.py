"""Trains an encoder on the judgements of a dataset in the BEIR layout."""

from typing import Any

from ray_lir.config import EncoderConfig, TrainingConfig
from ray_lir.distributed.train import TrainingRun, train

from .cli import main


class TrainJob(TrainingConfig, TrainingRun):
    """Trains an encoder with in-batch negatives; run again after a kill, it continues."""

    dataset: str
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    output: str
    """Folder of the trained checkpoint, the loss curve and, while training, its state."""
    split: str = "train"
    """Which judgements: qrels/SPLIT.tsv."""
    encoder: EncoderConfig = EncoderConfig()
    """Where training starts; its conventions are kept."""


def run(job: TrainJob) -> dict[str, Any]:
    config = TrainingConfig(**{name: getattr(job, name) for name in TrainingConfig.model_fields})
    how = TrainingRun(**{name: getattr(job, name) for name in TrainingRun.model_fields})
    return train(job.dataset, job.split, job.output, job.encoder, config, how)


if __name__ == "__main__":
    main(TrainJob, run)
