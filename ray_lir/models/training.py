"""Contrastive training of an encoder: the optimiser, its schedule, one step, and the state that a checkpoint holds.

Nothing here is random beyond (seed, step, worker): the state is the weights, the optimiser's moments and the step, and a
training that continues from it is the training that was never interrupted.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ray_lir.config import Config, EncoderConfig, TrainingConfig
from ray_lir.errors import ConfigError
from ray_lir.models import collectives
from ray_lir.models.encoder import Encoder, choose_dtype
from ray_lir.models.losses import ContrastiveLoss
from ray_lir.models.scorers import SCORERS
from ray_lir.models.training_pairs import Batch, TrainingPairs


class StepRecord(Config):
    """One point of the loss curve; loss and temperature are those before the step's update."""

    step: int
    loss: float
    learning_rate: float
    temperature: float
    examples_per_second: float = 0.0
    """Queries a second over all workers."""


class Training:
    """An encoder in training: owns its weights, the loss's temperature and the optimiser's moments.

    Under torch.distributed every worker holds one, and takes its share of each batch; negatives and gradients are those
    of the whole batch.

    Attributes:
        encoder: the encoder; its weights are float32 and change with every step.
        step: steps taken so far.
    """

    def __init__(self, encoder: Encoder, pairs: TrainingPairs, config: TrainingConfig, bfloat16: bool = False):
        self.encoder, self.pairs, self.config, self.bfloat16 = (encoder, pairs, config, bfloat16)
        self.step = 0
        self._device = encoder.device
        self._loss = ContrastiveLoss(config.temperature).to(self._device)
        self._modules = nn.ModuleDict({"encoder": encoder.model, "loss": self._loss})
        self._optimizer = _optimizer(self._modules, config)
        collectives.copy_from_first_worker(self._modules)

    def run_step(self, batch: Batch) -> StepRecord:
        """One optimiser step on the whole batch, of which this worker encodes its share.

        Raises:
            ConfigError: if the loss is no longer a finite number.
        """
        _seed_worker(self.config.seed, self.step)
        learning_rate = learning_rate_at(self.step, self.config)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        self._modules.train()
        loss = self.loss(batch)
        mean_loss = float(collectives.mean_over_workers(loss))
        if not np.isfinite(mean_loss):
            raise ConfigError(
                f"the loss is {mean_loss} at step {self.step + 1}: give a lower --learning_rate or another --encoder.checkpoint"
            )
        self._optimizer.zero_grad()
        loss.backward()
        collectives.average_gradients(self._modules.parameters())
        nn.utils.clip_grad_norm_(self._modules.parameters(), self.config.max_gradient_norm)
        record = StepRecord(
            step=self.step + 1, loss=mean_loss, learning_rate=learning_rate, temperature=float(self._loss.temperature.detach())
        )
        self._optimizer.step()
        self._loss.hold_temperature()
        self.step += 1
        return record

    def loss(self, batch: Batch) -> Tensor:
        """The mean loss of this worker's share of the queries, against the documents of the whole batch."""
        share = np.arange(len(batch.queries)).reshape(collectives.num_workers(), -1)[collectives.rank()]
        queries = self.encoder.batch_queries([self.pairs.queries[number] for number in batch.queries[share]]).to(self._device)
        documents = self.encoder.batch_documents([self.pairs.documents[number] for number in batch.documents[share]]).to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self.bfloat16):
            query_embeddings, document_embeddings = (self.encoder.embed(queries), self.encoder.embed(documents))
        embeddings, mask = collectives.gather_texts(document_embeddings.float(), documents.keep_mask)
        scores = SCORERS[self.config.scorer](query_embeddings.float(), embeddings, queries.keep_mask, mask)
        return self._loss(scores, self._tensor(share), self._tensor(batch.excluded[share]))

    def save(self, path: Path) -> None:
        """Writes everything that `load` needs to continue."""
        torch.save({"step": self.step, "modules": self._modules.state_dict(), "optimizer": self._optimizer.state_dict()}, path)

    def load(self, path: Path) -> None:
        """Continues where the training that wrote `path` was."""
        state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        self._modules.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def load_encoder(config: EncoderConfig, seed: int, device: str) -> Encoder:
    """An encoder with float32 weights; rows that its checkpoint lacks are drawn from the seed."""
    torch.manual_seed(seed)
    return Encoder.load(config.model_copy(update={"device": device, "precision": "float32"}))


def bfloat16_wanted(precision: str, device: torch.device) -> bool:
    """Whether the products of the forward pass are to be bfloat16: if asked for, or with auto where they are native."""
    if precision == "auto" and device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return choose_dtype(precision, device) == torch.bfloat16


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of the step after `step` steps: a linear rise over the warm-up, then a linear fall towards 0."""
    warmup = round(config.warmup_fraction * config.max_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (config.max_steps - step) / (config.max_steps - warmup)
    return config.learning_rate * min(rising, falling)


def _optimizer(module: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate)


def _seed_worker(seed: int, step: int) -> None:
    """Dropout depends on the step and the worker alone, so it needs no place in the state."""
    torch.manual_seed(int(np.random.SeedSequence([seed, step, collectives.rank()]).generate_state(1, np.uint64)[0]))
