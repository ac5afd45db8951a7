"""The optimiser's parameter groups, and the learning rate of each step."""

import torch
from torch import nn

from ray_lir.base.config import TrainingConfig


def learning_rate_at(step: int, config: TrainingConfig) -> float:
    """The learning rate of the step after `step` steps: a linear rise over the warm-up, then a linear fall towards 0."""
    warmup = round(config.warmup_fraction * config.max_steps)
    rising = (step + 1) / (warmup + 1)
    falling = (config.max_steps - step) / (config.max_steps - warmup)
    return config.learning_rate * min(rising, falling)


def make_optimizer(encoder: nn.Module, heads: nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over two or four groups: matrices decay, vectors and scalars do not; heads learn at a rate of their own."""
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
    """Gives each group its multiple of the encoder's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["rate"]
