"""Exchanges between the workers of a training through torch.distributed. With one worker, or without a process group, they do nothing.

W workers hold B texts each; L tokens, D dimensions. docs/training.md#gradient-exchange says why gradients are not exchanged by
torch's DistributedDataParallel.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

T = TypeVar("T")
TABLE_ROWS = 4096
"""A gradient matrix with at least as many rows is treated as an embedding table: only rows that are not zero are exchanged."""


def num_workers() -> int:
    """Return W, the number of workers; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the number of this worker, from 0; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def gather_texts(texts: EmbeddedTexts) -> EmbeddedTexts:
    """Return the W*B texts of all workers, padded to the longest, in the order of ranks.

    A row's gradient returns to the worker that the row came from, summed over the losses of all workers.
    """
    if num_workers() == 1:
        return texts
    longest = torch.tensor(texts.mask.shape[1], device=texts.mask.device)
    dist.all_reduce(longest, dist.ReduceOp.MAX)
    padding = int(longest) - texts.mask.shape[1]
    mask = functional.pad(texts.mask, (0, padding))
    weights = None if texts.weights is None else _GatherRows.apply(functional.pad(texts.weights, (0, padding)))
    return EmbeddedTexts(
        _GatherRows.apply(functional.pad(texts.vectors, (0, 0, 0, padding))), _gather_rows(mask.to(torch.uint8)).bool(), weights
    )


def gather_objects(value: T) -> list[T]:
    """Return the value of each worker, in the order of ranks."""
    if num_workers() == 1:
        return [value]
    values: list[Any] = [None] * num_workers()
    dist.all_gather_object(values, value)
    return values


def mean_over_workers(value: Tensor) -> Tensor:
    """Return the mean of a tensor over the workers, without gradient."""
    value = value.detach().clone()
    if num_workers() > 1:
        dist.all_reduce(value)
        value /= num_workers()
    return value


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every worker's gradients by their mean over all workers.

    For an embedding table, only rows that are not zero in some worker are exchanged. Tables are half of a small model, and a batch uses
    a small part of the vocabulary.
    """
    if num_workers() == 1:
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = _reached_rows(gradients)
    parts = [gradient if reached is None else gradient[reached] for gradient, reached in zip(gradients, rows, strict=True)]
    means = mean_over_workers(torch.cat([part.flatten() for part in parts])).split([part.numel() for part in parts])
    for gradient, reached, part, mean in zip(gradients, rows, parts, means, strict=True):
        if reached is None:
            gradient.copy_(mean.view_as(gradient))
        else:
            gradient[reached] = mean.view_as(part)


def _reached_rows(gradients: list[Tensor]) -> list[Tensor | None]:
    """Return, for each embedding table, the numbers of the rows that are not zero in some worker; None for other gradients."""
    tables = [gradient.dim() == 2 and len(gradient) >= TABLE_ROWS for gradient in gradients]
    masks = [gradient.any(dim=1) for gradient, is_table in zip(gradients, tables, strict=True) if is_table]
    if not masks:
        return [None] * len(gradients)
    reached = torch.cat(masks).to(torch.uint8)
    dist.all_reduce(reached, dist.ReduceOp.MAX)
    parts = iter(reached.split([len(mask) for mask in masks]))
    return [next(parts).nonzero().squeeze(1) if is_table else None for is_table in tables]


def copy_from_first_worker(module: nn.Module) -> None:
    """Copy the first worker's weights to every worker, so that randomly initialised rows are equal everywhere."""
    if num_workers() > 1:
        for tensor in module.state_dict().values():
            dist.broadcast(tensor, src=0)


def _gather_rows(rows: Tensor) -> Tensor:
    parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(num_workers())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)


class _GatherRows(torch.autograd.Function):
    """Gather along the first dimension; the backward pass sums gradients over workers."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        return _gather_rows(rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(num_workers())[rank()]
