"""Training of an encoder for a scorer: one step, and the state that a checkpoint holds.

Random numbers depend only on (seed, step, worker, micro-batch). Weights, optimizer moments and the step are therefore the whole state. A
training that continues from it equals one that was never interrupted.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ray_lir.base.config import Config, EncoderConfig, TrainingConfig
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.encoder.projection import fresh_projection
from ray_lir.encoder.unpadded_bert import native_bfloat16
from ray_lir.scorers.batches import EmbeddedTexts, TokenBatch
from ray_lir.training import collectives, gradient_cache
from ray_lir.training.data import Batch, TrainingData, batches
from ray_lir.training.dev_set import DevSet, ndcg_at_10
from ray_lir.training.dropout import fast_dropout
from ray_lir.training.frozen_layers import FrozenLayers
from ray_lir.training.losses import Objective, Targets
from ray_lir.training.optimization import learning_rate_at, make_optimizer, set_learning_rate


class StepRecord(Config):
    """One point of the loss curve; loss and temperature are from before the step's update."""

    step: int
    loss: float
    learning_rate: float
    temperature: float
    query_weight: float = 1.0
    """Mean weight of the query tokens: 1 unless the scorer weights them."""
    query_weight_std: float = 0.0
    """Standard deviation of these weights."""
    closed_fraction: float = 0.0
    """Fraction of the query tokens with weight 0."""
    gradient_norm: float | None = None
    """Norm of all gradients before they are clipped."""
    distillation_temperature: float | None = None
    """Temperature of the distillation if cross-entropy is used too; `temperature` is then that of cross-entropy."""
    contrastive_loss: float | None = None
    """Cross-entropy over the batch, before it is weighted."""
    own_contrastive_loss: float | None = None
    """Cross-entropy over each query's own documents, before it is weighted."""
    distillation_loss: float | None = None
    """Distillation loss, before it is weighted."""
    query_weight_penalty: float | None = None
    """Penalty on the query weights, before it is weighted."""
    ndcg_at_10: float | None = None
    """nDCG@10 on the development set after the step; None if it was not evaluated then."""
    examples_per_second: float = 0.0
    """Queries a second over all workers."""


LOSS_FIELDS = {
    "contrastive": "contrastive_loss",
    "own_contrastive": "own_contrastive_loss",
    "distillation": "distillation_loss",
    "query_weight_penalty": "query_weight_penalty",
}
"""Fields of a StepRecord by the terms of the objective."""


class Training:
    """An encoder in training, with the temperatures of the losses, the optimizer's moments and the scale of the gradients.

    Under torch.distributed every worker has one and encodes its part of each batch. Negatives and gradients are those of the whole batch.

    Attributes:
        encoder: The encoder, with the scorer of the configuration; its weights are float32 and change with every step.
        step: Steps taken so far.
    """

    def __init__(
        self,
        encoder: Encoder,
        data: TrainingData,
        config: TrainingConfig,
        products: torch.dtype = torch.float32,
        frozen: FrozenLayers | None = None,
    ):
        """Args:
        encoder: Checkpoint to start from, with float32 weights.
        data: Training data; the same for every worker.
        config: Settings of the training.
        products: Number format of the forward pass's products. With float16, the loss is scaled up to keep small gradients; a step
            with overflowing gradients is skipped and lowers the scale.
        frozen: For `trained_layers`: the frozen layers of another training from the same checkpoint, with the hidden states that they keep.
            None: make them from this encoder.

        Raises:
            ConfigError: The checkpoint was trained for another scorer or with another projection, or has too few layers for
                `trained_layers`.
        """
        self.encoder = prepare_encoder(encoder, config)
        self.data, self.config, self._products = data, config, products
        self.step = 0
        self._device = encoder.device
        self._objective = Objective(config).to(self._device)
        network = self.encoder.model
        self._modules = nn.ModuleDict({"encoder": network, "loss": self._objective})
        self._body, heads = nn.ModuleList([network.backbone, network.projections]), nn.ModuleList([network.scorer, self._objective])
        self._body.requires_grad_(not config.freeze_encoder)
        self._frozen = None
        if config.trained_layers is not None:
            self._frozen = frozen or FrozenLayers(network, config.trained_layers, products)
            self._frozen.freeze(network)
            network.transformer = partial(self._frozen, network)
        self._optimizer = make_optimizer(self._body, heads, config)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=products == torch.float16)
        collectives.copy_from_first_worker(self._modules)

    def remaining(self) -> Iterator[tuple[Batch, ...]]:
        """Yield the batches of each remaining step."""
        config = self.config
        stream = batches(self.data, config.batch_size, config.seed, config.num_negatives, self.step * config.accumulate)
        return (tuple(islice(stream, config.accumulate)) for _ in range(self.step, config.max_steps))

    def run_step(self, *batches: Batch) -> StepRecord:
        """Take one optimizer step on the mean of some batches; this worker encodes its part of each.

        Raises:
            ConfigError: The loss is not finite, all gates are closed, or the scorer cannot score such a batch.
        """
        learning_rate = learning_rate_at(self.step, self.config)
        set_learning_rate(self._optimizer, learning_rate)
        self._modules.train()
        self._body.train(not self.config.freeze_encoder)  # without dropout, heads learn from the vectors that search will use
        if self._frozen:
            self._frozen.freeze(self.encoder.model)
        self._optimizer.zero_grad()
        parts = torch.stack([self._backward(batch, number, 1 / len(batches)) for number, batch in enumerate(batches)])
        mean_loss, query_weight, square, closed, *terms = collectives.mean_over_workers(parts.sum(0)).tolist()
        if not np.isfinite(mean_loss):
            raise ConfigError(
                f"the loss is {mean_loss} at step {self.step + 1}: give a lower --learning_rate or another --encoder.checkpoint"
            )
        if not query_weight:
            raise ConfigError(
                f"all gates are 0 at step {self.step + 1}, so they cannot learn any more: start again with a lower --head_learning_rate"
            )
        collectives.average_gradients(self._modules.parameters())
        self._scaler.unscale_(self._optimizer)
        gradient_norm = float(nn.utils.clip_grad_norm_(self._modules.parameters(), self.config.max_gradient_norm))
        record = StepRecord(
            step=self.step + 1,
            loss=mean_loss,
            learning_rate=learning_rate,
            temperature=self._objective.temperature,
            query_weight=query_weight,
            query_weight_std=max(0.0, square - query_weight**2) ** 0.5,
            closed_fraction=closed,
            gradient_norm=gradient_norm if np.isfinite(gradient_norm) else None,  # overflows of float16 skip the step
            distillation_temperature=self._objective.distillation_temperature,
            **{LOSS_FIELDS[name]: value for name, value in zip(self._objective.terms, terms, strict=True)},
        )
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._objective.hold_temperatures()
        self.step += 1
        return record

    def evaluate(self, dev: DevSet) -> float:
        """Return nDCG@10 of the current encoder; all workers get the same value."""
        with self._autocast():
            return ndcg_at_10(self.encoder, dev)

    def save(self, path: Path) -> None:
        """Write everything that `load` needs to continue."""
        parts = {"modules": self._modules.state_dict(), "optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        counts = {"step": self.step, "num_threads": torch.get_num_threads(), "num_workers": collectives.num_workers()}
        torch.save(counts | parts, path)

    def load(self, path: Path) -> list[str]:
        """Restore the state that `save` wrote to `path`.

        The order in which a CPU adds numbers depends on the number of torch threads, so this sets the number that the training began with.

        Returns:
            One line for the log about each way in which this process differs from the one that began the training.
        """
        state: dict[str, Any] = torch.load(path, map_location=self._device, weights_only=True)
        self._modules.load_state_dict(state["modules"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state.get("scaler", {}))
        self.step = state["step"]
        notes, num_threads, num_workers = [], torch.get_num_threads(), collectives.num_workers()
        if self._device.type == "cpu" and (began_with := state.get("num_threads", num_threads)) != num_threads:
            torch.set_num_threads(began_with)
            notes.append(
                f"uses {began_with} threads a worker, as in its first run, and not {num_threads}, so that the result stays the same"
            )
        if (began_with := state.get("num_workers", num_workers)) != num_workers:
            notes.append(f"had {began_with} workers in its first run and has {num_workers} now: the result differs by the rounding of sums")
        return notes

    def _backward(self, batch: Batch, number: int, factor: float) -> Tensor:
        """Add `factor` times the gradients of this worker's part of a batch.

        Returns:
            `factor` times its loss, the mean and mean square of its query weights, the fraction of weights that are 0, and the terms of
            the loss: a vector.
        """
        own = np.arange(len(batch.queries)).reshape(collectives.num_workers(), -1)[collectives.rank()]
        queries = [self.data.queries[query] for query in batch.queries[own]]
        documents = [self.data.documents[document] for document in batch.documents[own].ravel()]
        targets = Targets(
            self._tensor(own * batch.documents.shape[1]),
            self._tensor(batch.excluded[own]),
            None if batch.teacher is None else self._tensor(batch.teacher[own]),
        )
        sides = (
            self._micro_batches(queries, self.encoder.batch_queries, self.encoder.embed_queries, [number, 0]),
            self._micro_batches(documents, self.encoder.batch_documents, self.encoder.embed_documents, [number, 1]),
        )

        weights = torch.tensor([1.0, 1.0, 0.0], device=self._device)

        def scaled_loss(queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
            if queries.weights is not None:
                active = queries.weights.detach()[queries.mask]
                weights.copy_(torch.stack([active.mean(), active.square().mean(), (active == 0).float().mean()]))
            if documents.weights is not None and not documents.weights.detach()[documents.mask].any():
                weights[0] = 0  # all document gates are closed
            scores = self.encoder.model.scorer.training_scores(queries, collectives.gather_texts(documents))
            return self._scaler.scale(factor * self._objective(scores, queries, targets))

        loss = gradient_cache.backward(sides, scaled_loss, self._autocast()) / self._scaler.get_scale()
        return torch.stack([loss, *(factor * each for each in (*weights, *self._objective.terms.values()))])

    def _micro_batches(
        self,
        texts: Sequence[str],
        pad: Callable[[Sequence[str]], TokenBatch],
        embed: Callable[[TokenBatch], EmbeddedTexts],
        place: list[int],
    ) -> list[gradient_cache.MicroBatch]:
        """Return functions that embed the texts, `micro_batch` texts each."""
        size = self.config.micro_batch or len(texts)
        parts = [pad(texts[start : start + size]) for start in range(0, len(texts), size)]
        return [partial(self._embed, embed, part, [*place, number]) for number, part in enumerate(parts)]

    def _embed(self, embed: Callable[[TokenBatch], EmbeddedTexts], batch: TokenBatch, place: list[int]) -> EmbeddedTexts:
        _seed([self.config.seed, self.step, collectives.rank(), *place])
        with self._autocast(), fast_dropout(self._device):
            return embed(batch)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self._device.type, self._products, enabled=self._products != torch.float32)

    def _tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self._device)


def load_encoder(config: EncoderConfig, seed: int, device: str) -> Encoder:
    """Return an encoder with float32 weights; the seed determines the random values of missing rows and of new heads of a scorer.

    Args:
        config: Checkpoint and conventions.
        seed: Seed of torch's random numbers.
        device: Torch's name of the device, such as cpu or cuda:0.

    Raises:
        ConfigError: There is no such checkpoint, or it cannot be used; or windows, precision int8 or encoder.attention are set.
    """
    if config.windows or config.passages:
        raise ConfigError("encoder.windows divides documents for an index, and training truncates them; leave it out")
    if config.precision == "int8":
        raise ConfigError("encoder.precision int8 is for encoding only; train with auto, bfloat16 or float32")
    if config.attention:
        raise ConfigError("encoder.attention changes the weights of an encoded corpus; for training, set --attention.sides")
    torch.manual_seed(seed)
    return Encoder.load(config.model_copy(update={"device": device, "precision": "float32"}))


def prepare_encoder(encoder: Encoder, config: TrainingConfig) -> Encoder:
    """Return the encoder with the projection and scorer of a configuration; new weights are drawn from torch's random numbers.

    Raises:
        ConfigError: The checkpoint was trained for another scorer or with another projection, or freeze_encoder leaves nothing to train.
    """
    if config.projection_dim:
        encoder = fresh_projection(encoder, config.projection_dim)
    encoder = encoder.with_scorer(config.scorer, config.scorer_settings)
    if config.freeze_encoder and not list(encoder.model.scorer.parameters()):
        raise ConfigError(f"scorer {config.scorer} has no heads to train with --freeze_encoder; leave it out, or choose --scorer trial")
    if config.freeze_encoder and config.projection_dim:
        raise ConfigError("--freeze_encoder would keep the random weights of the new projection; leave --projection_dim out")
    return encoder


def product_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the number format of the forward pass's products; `auto` means bfloat16 where the device supports it, otherwise float32."""
    if precision != "auto":
        return getattr(torch, precision)
    native = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else native_bfloat16()
    return torch.bfloat16 if native else torch.float32


def _seed(place: list[int]) -> None:
    """Seed dropout from the seed, step, worker and micro-batch, so that the saved state needs no random generator."""
    torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))
