"""Gradients of a batch whose activations do not fit in memory (gradient caching, Gao et al. 2021, arXiv 2101.06983).

The texts are embedded in pieces without gradients; the loss of the whole batch gives the gradient of every embedding; then each
piece is embedded again and that gradient goes on into the encoder. The result is the gradient of the whole batch, exactly.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import functional

from ray_lir.scorers.batches import EmbeddedTexts

Piece = Callable[[], EmbeddedTexts]
"""Embeds some texts; must give the same every time, dropout included."""


def backward(sides: Sequence[Sequence[Piece]], loss_of: Callable[..., Tensor], together: AbstractContextManager[object]) -> Tensor:
    """Adds the gradients of loss_of(texts of the first side, of the second, ...) to all parameters; returns the loss.

    Args:
        together: entered around the sides where each is one piece: an autocast that converts weights once for both.
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
            pairs = [(piece.vectors, leaf.vectors.grad)]
            if piece.weights is not None and leaf.weights is not None and leaf.weights.grad is not None:
                pairs.append((piece.weights, leaf.weights.grad))
            gradients = [gradient[rows, :length] for _, gradient in pairs if gradient is not None]
            torch.autograd.backward([value for value, _ in pairs], gradients)
    return loss.detach()


def _leaf(values: Tensor) -> Tensor:
    return values.detach().requires_grad_()


def _joined(pieces: Sequence[EmbeddedTexts]) -> EmbeddedTexts:
    """One batch, padded to the longest text."""
    longest = max(piece.mask.shape[1] for piece in pieces)
    padding = [longest - piece.mask.shape[1] for piece in pieces]
    weights = None
    if pieces[0].weights is not None:
        padded = zip(pieces, padding, strict=True)
        weights = torch.cat([functional.pad(piece.weights, (0, pad)) for piece, pad in padded if piece.weights is not None])
    return EmbeddedTexts(
        torch.cat([functional.pad(piece.vectors, (0, 0, 0, pad)) for piece, pad in zip(pieces, padding, strict=True)]),
        torch.cat([functional.pad(piece.mask, (0, pad)) for piece, pad in zip(pieces, padding, strict=True)]),
        weights,
    )
