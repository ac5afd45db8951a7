"""Batches of texts as padded tensors with masks, both as token ids and as token embeddings; texts are grouped by length.

Shapes: B texts, L tokens in the longest text, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.token_embeddings import TokenEmbeddings


@dataclass(frozen=True, eq=False, repr=False)
class TokenBatch(ShortRepr):
    """Token ids of B texts: the input of the network.

    Attributes:
        input_ids: [B, L] int64.
        attention_mask: [B, L] int64; 1 for tokens that other tokens attend to.
        keep_mask: [B, L] bool; true for tokens that get a token embedding (neither padding nor skip list).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep_mask: torch.Tensor

    def to(self, device: torch.device | str) -> "TokenBatch":
        """Return the batch on another device."""
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.keep_mask.to(device))


@dataclass(frozen=True, eq=False, repr=False)
class EmbeddedTexts(ShortRepr):
    """Queries or documents as a scorer takes them.

    Attributes:
        vectors: [B, L, D] float, normalized; zero outside the mask.
        mask: [B, L] bool; true for tokens.
        weights: [B, L] float factors, at least 0 (docs/algorithms.md#7-one-factored-form: u of a query, rho of a document); None: all 1.
        attention: [B, L, 2], `Scorer.stored_attention` of documents; None for queries, for other scorers and during training.
    """

    vectors: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None = None
    attention: torch.Tensor | None = None


def padded(embeddings: TokenEmbeddings, device: torch.device | str, dtype: torch.dtype = torch.float32) -> EmbeddedTexts:
    """Return stored token embeddings as padded tensors.

    Args:
        embeddings: Token embeddings of B texts.
        device: Device of the tensors.
        dtype: Number format of vectors and weights.
    """
    mask = np.arange(embeddings.lengths.max(initial=0)) < embeddings.lengths[:, None]
    vectors, weights = np.zeros((*mask.shape, embeddings.dim), np.float32), None
    vectors[mask] = embeddings.values
    if embeddings.weights is not None:
        weights = np.zeros(mask.shape, np.float32)
        weights[mask] = embeddings.weights
    return EmbeddedTexts(
        torch.from_numpy(vectors).to(device, dtype),
        torch.from_numpy(mask).to(device),
        None if weights is None else torch.from_numpy(weights).to(device, dtype),
    )


ROWS = 16
"""Rows of a matrix product are computed alike, independent of their position, if their number is a multiple of this. It is also an AMX
tile."""


def apply_with_padded_rows(layer: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """Return `layer` applied to the last dimension, [..., in] -> [..., out].

    On a CPU, zero rows are added up to a multiple of 4 ROWS, so that no row's result depends on the number of rows. The factor 4 is for
    narrow layers: if their last values do not fill two vector registers (up to 64 bfloat16), tanh and erf use different code for them.
    """
    rows = values.flatten(0, -2)
    if values.device.type != "cpu" or len(rows) % (4 * ROWS) == 0:
        return layer(values)
    result = layer(functional.pad(rows, (0, 0, 0, -len(rows) % (4 * ROWS))))[: len(rows)]
    return result.unflatten(0, values.shape[:-1])


def pad(token_ids: Sequence[np.ndarray], attended: Sequence[int], keep: Sequence[np.ndarray]) -> TokenBatch:
    """Return texts of any lengths as one padded batch.

    Args:
        token_ids: Token ids of each text, int.
        attended: For each text, how many of its first tokens other tokens attend to.
        keep: For each text, [tokens] bool: the tokens that get a token embedding.
    """
    shape = (len(token_ids), max(map(len, token_ids), default=0))
    ids, attention, kept = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, tokens in enumerate(token_ids):
        ids[row, : len(tokens)] = tokens
        attention[row, : attended[row]] = 1
        kept[row, : len(tokens)] = keep[row]
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(kept))


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Yield groups of texts, longest first, each of at most `batch_tokens` tokens after padding. A longer text forms a group alone.

    Args:
        lengths: Number of tokens of each text.
        batch_tokens: Limit of a group, in padded tokens.

    Returns:
        Arrays of text numbers.
    """
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + max(1, batch_tokens // longest)
        yield order[start:stop]
        start = stop
