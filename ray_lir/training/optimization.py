"""The optimizer's parameter groups, and the learning rate of each step."""

import torch
from torch import nn

from ray_lir.base.config import TrainingConfig


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of the step after `step` steps: it rises linearly during the warm-up, then falls linearly towards 0."""
    warmup = round(config.warmup_fraction * config.max_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (config.max_steps - step) / (config.max_steps - warmup)
    return config.learning_rate * min(rising, falling)


def make_optimizer(encoder: nn.Module, heads: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Return AdamW with weight decay for matrices, not for vectors and scalars, and a learning rate of their own for heads.

    Args:
        encoder: Modules that learn at `learning_rate`.
        heads: Modules that learn at `head_learning_rate`.
        config: Rates and weight decay.
    """
    groups = []
    for module, rate in ((encoder, config.learning_rate), (heads, config.head_learning_rate or config.learning_rate)):
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decay, chosen in (
            (config.weight_decay, [each for each in parameters if each.ndim >= 2]),
            (0.0, [each for each in parameters if each.ndim < 2]),
        ):
            if chosen:
                groups.append({"params": chosen, "weight_decay": decay, "rate": rate / config.learning_rate})
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the learning rate of each group, as its multiple of the encoder's."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
