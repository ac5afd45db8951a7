"""What workers of one training exchange through torch.distributed. With one worker, or none set up, nothing happens.

W workers hold B texts each; L tokens, D dimensions.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional


def num_workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gather_texts(embeddings_BLD: Tensor, mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The token embeddings [W*B, longest L, D] and mask [W*B, longest L] of all workers, in the order of their ranks.

    Gradients flow to the worker that a row came from, summed over the losses of all workers.
    """
    if num_workers() == 1:
        return embeddings_BLD, mask_BL
    longest = torch.tensor(mask_BL.shape[1], device=mask_BL.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = int(longest) - mask_BL.shape[1]
    embeddings_BLD = functional.pad(embeddings_BLD, (0, 0, 0, padding))
    mask_BL = functional.pad(mask_BL, (0, padding))
    return _GatherRows.apply(embeddings_BLD), _gather_rows(mask_BL.to(torch.uint8)).bool()


def mean_over_workers(value: Tensor) -> Tensor:
    """The mean of each worker's value, without gradient."""
    value = value.detach().clone()
    if num_workers() > 1:
        dist.all_reduce(value)
        value /= num_workers()
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Makes every worker's gradients the mean over all workers, in one exchange."""
    if num_workers() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    means = mean_over_workers(torch.cat([gradient.flatten() for gradient in gradients]))
    for gradient, mean in zip(gradients, means.split([gradient.numel() for gradient in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


def copy_from_first_worker(module: nn.Module) -> None:
    """Gives every worker the first one's weights, so that rows a checkpoint lacked are not random in different ways."""
    if num_workers() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def _gather_rows(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_workers())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    """all_gather along the first dimension, differentiable."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(num_workers())[rank()]
