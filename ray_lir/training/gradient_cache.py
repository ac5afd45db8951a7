"""Gradients of a batch with activations that do not fit into memory (gradient caching, Gao et al. 2021, arXiv 2101.06983).

The texts are embedded in micro-batches without gradients. The loss of the whole batch gives the gradient of every embedding. Each
micro-batch is then embedded again, and its embeddings' gradients flow into the encoder. The result is exactly the gradient of the batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

MicroBatch = Callable[[], EmbeddedTexts]
"""Embeds some texts; every call must return the same values, dropout included."""


def backward(sides: Sequence[Sequence[MicroBatch]], loss_of: Callable[..., Tensor], together: AbstractContextManager[object]) -> Tensor:
    """Add the gradients of a loss to all parameters, and return the loss, a scalar.

    Args:
        sides: The micro-batches of the queries, and the micro-batches of the documents.
        loss_of: Returns the loss of the embedded texts, one argument for each side.
        together: Context that is entered around both sides if each has one micro-batch, such as an autocast that converts weights once
            for both.
    """
    if all(len(side) == 1 for side in sides):
        with together:
            texts = [embed() for (embed,) in sides]
        loss = loss_of(*texts)
        loss.backward()
        return loss.detach()
    with torch.no_grad():
        texts = [_joined([embed() for embed in side]) for side in sides]
    leaves = [EmbeddedTexts(_leaf(each.vectors), each.mask, None if each.weights is None else _leaf(each.weights)) for each in texts]
    loss = loss_of(*leaves)
    loss.backward()
    for side, leaf in zip(sides, leaves, strict=True):
        start = 0
        for embed in side:
            batch = embed()
            rows, length = slice(start, start + len(batch.mask)), batch.mask.shape[1]
            start = rows.stop
            pairs = [(batch.vectors, leaf.vectors)]
            if batch.weights is not None and leaf.weights is not None and leaf.weights.grad is not None:
                pairs.append((batch.weights, leaf.weights))
            pairs = [(output, leaf) for output, leaf in pairs if output.requires_grad]  # vectors of a frozen encoder have no gradient
            if pairs:
                gradients = [None if each.grad is None else each.grad[rows, :length] for _, each in pairs]
                torch.autograd.backward([output for output, _ in pairs], gradients)
    return loss.detach()


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


def _joined(batches: Sequence[EmbeddedTexts]) -> EmbeddedTexts:
    """Return all texts as one batch, padded to the longest."""
    longest = max(batch.mask.shape[1] for batch in batches)
    padding = [longest - batch.mask.shape[1] for batch in batches]
    weights = None
    if batches[0].weights is not None:
        weights = torch.cat(
            [functional.pad(batch.weights, (0, pad)) for batch, pad in zip(batches, padding, strict=True) if batch.weights is not None]
        )
    return EmbeddedTexts(
        torch.cat([functional.pad(batch.vectors, (0, 0, 0, pad)) for batch, pad in zip(batches, padding, strict=True)]),
        torch.cat([functional.pad(batch.mask, (0, pad)) for batch, pad in zip(batches, padding, strict=True)]),
        weights,
    )
