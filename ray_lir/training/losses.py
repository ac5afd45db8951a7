"""Training losses over the scores of a batch (docs/algorithms.md#33-losses and 5.2): B queries with N documents each, B * N in all.

A temperature is a plain scalar parameter, not its logarithm. `hold_temperatures`, called after each optimizer step, keeps it at or above
MIN_TEMPERATURE.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.base.config import TrainingConfig
from ray_lir.base.short_repr import ShortRepr
from ray_lir.scorers import SCORERS
from ray_lir.scorers.batches import EmbeddedTexts

MIN_TEMPERATURE = 1e-3


@dataclass(frozen=True, eq=False, repr=False)
class Targets(ShortRepr):
    """Targets for the scores of some queries with all documents of a batch.


    Attributes:
        own: [B] int64, the column of each query's positive; its other documents have the columns after it.
        excluded: [B, columns] bool, true for a query's other known positives, which must not count as negatives.
        teacher: [B, N] a teacher's scores of each query's own documents; None without a teacher.
    """

    own: Tensor
    excluded: Tensor
    teacher: Tensor | None = None


class Objective(nn.Module):
    """The weighted sum of the losses of a configuration; it owns their temperatures.

    Attributes:
        terms: The parts of the latest loss, before they were weighted: scalars without gradient, by name.
    """

    def __init__(self, config: TrainingConfig):
        super().__init__()
        self._config = config
        self.terms: dict[str, Tensor] = {}
        self._penalizes_query_weights = SCORERS[config.scorer].penalizes_query_weights
        has_cross_entropy = config.contrastive_weight or config.own_contrastive_weight
        self.contrastive = ContrastiveLoss(config.temperature) if has_cross_entropy else None
        self.distillation = None
        if config.distillation_weight:
            self.distillation = DistillationLoss(config.distillation_temperature, config.normalize_student, config.normalize_teacher)
        self.requires_grad_(config.learn_temperatures)

    def forward(self, scores: Sequence[Tensor], queries: EmbeddedTexts, targets: Targets) -> Tensor:
        """Return the mean loss over the queries, a scalar.

        Args:
            scores: One or more matrices [B, columns] of scores of the same pairs; their losses are averaged.
            queries: The embedded queries, for the penalty on their weights.
            targets: Positives, exclusions and the teacher's scores.
        """
        losses = [self._losses(each, targets) for each in scores]
        total = torch.stack([self._weighted(each) for each in losses]).mean()
        self.terms = {name: torch.stack([each[name].detach() for each in losses]).mean() for name in losses[0]}
        if self._penalizes_query_weights and self._config.gate_weight and queries.weights is not None:
            penalty = query_weight_penalty(queries, self._config.gate_norm)
            total = total + self._config.gate_weight * penalty
            self.terms["query_weight_penalty"] = penalty.detach()
        return total

    @property
    def temperature(self) -> float:
        """The temperature of the cross-entropy; without cross-entropy, that of the distillation."""
        loss = self.contrastive or self.distillation
        assert loss is not None, "TrainingConfig allows no objective without a loss"
        return float(loss.temperature.detach())

    @property
    def distillation_temperature(self) -> float | None:
        """The temperature of the distillation beside cross-entropy; None unless both are used."""
        return float(self.distillation.temperature.detach()) if self.contrastive and self.distillation else None

    @torch.no_grad()
    def hold_temperatures(self) -> None:
        """Raise temperatures below MIN_TEMPERATURE to it."""
        for temperature in self.parameters():
            temperature.clamp_(min=MIN_TEMPERATURE)

    def _losses(self, scores: Tensor, targets: Targets) -> dict[str, Tensor]:
        config, losses = self._config, {}

        def own_columns(count: int) -> Tensor:
            return targets.own[:, None] + torch.arange(count, device=scores.device)

        if self.contrastive and config.contrastive_weight:
            losses["contrastive"] = self.contrastive(scores, targets.own, targets.excluded)
        if self.contrastive and config.own_contrastive_weight:
            columns, first = own_columns(config.num_negatives + 1), torch.zeros_like(targets.own)
            losses["own_contrastive"] = self.contrastive(scores.gather(1, columns), first, targets.excluded.gather(1, columns))
        if self.distillation:
            assert targets.teacher is not None
            losses["distillation"] = self.distillation(scores.gather(1, own_columns(targets.teacher.shape[1])), targets.teacher)
        return losses

    def _weighted(self, losses: dict[str, Tensor]) -> Tensor:
        config = self._config
        weights = {
            "contrastive": config.contrastive_weight,
            "own_contrastive": config.own_contrastive_weight,
            "distillation": config.distillation_weight,
        }
        total = next(iter(losses.values())).new_zeros(())
        for name, loss in losses.items():
            total = total + weights[name] * loss
        return total


class ContrastiveLoss(nn.Module):
    """Cross-entropy of each query's own positive against other documents, at a learned temperature."""

    def __init__(self, temperature: float):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))

    def forward(self, scores: Tensor, own: Tensor, excluded: Tensor) -> Tensor:
        """Return the mean loss over the queries, a scalar.

        Args:
            scores: [B, columns] scores of the queries with all documents of the batch, or with each query's own documents.
            own: [B] int64, the column of each query's positive.
            excluded: [B, columns] bool, true for a query's other known positives.
        """
        logits = scores / self.temperature
        # Masked after the division: before it, the gradient of the temperature would be 0 * inf.
        return functional.cross_entropy(logits.masked_fill(excluded, -torch.inf), own)


class DistillationLoss(nn.Module):
    """KL(teacher || student) between the distributions over each query's own documents; the student's has a learned temperature."""

    def __init__(self, temperature: float, normalize_student: bool, normalize_teacher: bool):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(float(temperature)))
        self.normalize_student, self.normalize_teacher = normalize_student, normalize_teacher

    def forward(self, student_BN: Tensor, teacher_BN: Tensor) -> Tensor:
        """Return the mean divergence over the queries, a scalar; both arguments are [B, N] scores."""
        student = min_max(student_BN) if self.normalize_student else student_BN
        teacher = min_max(teacher_BN) if self.normalize_teacher else teacher_BN
        log_student = functional.log_softmax(student / self.temperature, dim=-1)
        return functional.kl_div(log_student, functional.log_softmax(teacher, dim=-1), log_target=True, reduction="batchmean")


def min_max(scores_BN: Tensor) -> Tensor:
    """Return each row mapped linearly to 0..1; equal scores become 0."""
    low, high = scores_BN.amin(-1, keepdim=True), scores_BN.amax(-1, keepdim=True)
    return (scores_BN - low) / (high - low + 1e-8)


def query_weight_penalty(queries: EmbeddedTexts, norm: str) -> Tensor:
    """Return the penalty on the weights of query tokens, a scalar; `norm` is l1, l2 or frobenius.

    Source: docs/algorithms.md#9-where-sources-disagree
    """
    assert queries.weights is not None, "the scorer weighs query tokens"
    weights = queries.weights.masked_fill(~queries.mask, 0.0)
    if norm == "l1":
        return weights.sum(-1).mean()
    if norm == "l2":
        return torch.linalg.vector_norm(weights, dim=-1).mean()  # its gradient is 0 for a query without weights
    return weights.square().sum().sqrt()
