"""Gradients of a batch with activations that do not fit into memory (gradient caching, Gao et al. 2021, arXiv 2101.06983).

The texts are embedded in pieces without gradients. The loss of the whole batch gives the gradient of every embedding. Then each piece is
embedded again, and its part of that gradient flows into the encoder. The result is exactly the gradient of the whole batch.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

Piece = Callable[[], EmbeddedTexts]
"""Embeds some texts; every call must return the same values, dropout included."""


def backward(sides: Sequence[Sequence[Piece]], loss_of: Callable[..., Tensor], together: AbstractContextManager[object]) -> Tensor:
    """Add the gradients of a loss to all parameters, and return the loss, a scalar.

    Args:
        sides: The pieces of the queries, and the pieces of the documents.
        loss_of: Returns the loss of the embedded texts, one argument for each side.
        together: Entered around both sides if each is one piece, such as an autocast that converts weights once for both.
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
            piece = embed()
            rows, length = slice(start, start + len(piece.mask)), piece.mask.shape[1]
            start = rows.stop
            outputs, gradients = [piece.vectors], [leaf.vectors.grad]
            if piece.weights is not None and leaf.weights is not None and leaf.weights.grad is not None:
                outputs.append(piece.weights)
                gradients.append(leaf.weights.grad)
            torch.autograd.backward(outputs, [None if gradient is None else gradient[rows, :length] for gradient in gradients])
    return loss.detach()


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


def _joined(pieces: Sequence[EmbeddedTexts]) -> EmbeddedTexts:
    """One batch, padded to the longest text."""
    longest = max(piece.mask.shape[1] for piece in pieces)
    padding = [longest - piece.mask.shape[1] for piece in pieces]
    weights = None
    if pieces[0].weights is not None:
        weights = torch.cat(
            [functional.pad(piece.weights, (0, pad)) for piece, pad in zip(pieces, padding, strict=True) if piece.weights is not None]
        )
    return EmbeddedTexts(
        torch.cat([functional.pad(piece.vectors, (0, 0, 0, pad)) for piece, pad in zip(pieces, padding, strict=True)]),
        torch.cat([functional.pad(piece.mask, (0, pad)) for piece, pad in zip(pieces, padding, strict=True)]),
        weights,
    )
