"""The manifest of a finished training."""

from typing import Any, Literal

from pydantic import Field

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.storage.manifest import FORMAT_VERSION


class TrainingManifest(Config):
    """A finished training: the output of jobs.train."""

    format_version: int = FORMAT_VERSION
    kind: Literal["training"] = "training"
    contract: EncoderContract
    """Of the trained encoder; its checkpoint is the folder's name below the output."""
    num_steps: int
    final_loss: float
    config: dict[str, Any] = Field(default_factory=dict)
