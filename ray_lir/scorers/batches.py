"""Batches of texts, as token ids and as token embeddings: padded tensors with their masks; and how texts are grouped by length.

B texts, L tokens in the longest of them, D dimensions.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from ray_lir.embeddings.token_embeddings import TokenEmbeddings


@dataclass(frozen=True)
class TokenBatch:
    """What the network takes.

    Attributes:
        input_ids: [B, L] int64.
        attention_mask: [B, L] int64, 1 where the other tokens may look.
        keep_mask: [B, L] bool, true where a token embedding is wanted (no padding, nothing of the skip list).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    keep_mask: torch.Tensor

    def to(self, device: torch.device | str) -> "TokenBatch":
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.keep_mask.to(device))


@dataclass(frozen=True)
class EmbeddedTexts:
    """Queries or documents as a scorer sees them.

    Attributes:
        vectors: [B, L, D] float, unit rows; zero outside the mask.
        mask: [B, L] bool, true where there is a token.
        weights: [B, L] float, a factor at least 0 for each token
        (docs/algorithms.md#7-one-factored-form: u of a query, rho of a document); None: 1.
    """

    vectors: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None = None


def padded(embeddings: TokenEmbeddings, device: torch.device | str, dtype: torch.dtype = torch.float32) -> EmbeddedTexts:
    """Texts that were encoded before, as a scorer sees them; vectors and weights in the number format."""
    mask = np.arange(embeddings.lengths.max(initial=0)) < embeddings.lengths[:, None]
    vectors, weights = np.zeros((*mask.shape, embeddings.dim), np.float32), None
    vectors[mask] = embeddings.values
    if embeddings.weights is not None:
        weights = np.zeros(mask.shape, np.float32)
        weights[mask] = embeddings.weights
    placed = [None if array is None else torch.from_numpy(array).to(device, dtype) for array in (vectors, weights)]
    return EmbeddedTexts(placed[0], torch.from_numpy(mask).to(device), placed[1])


ROWS = 16
"""A product of a multiple of this many rows computes each row alike, wherever it stands; it is also a tile of AMX."""


def apply_with_padded_rows(layer: Callable[[torch.Tensor], torch.Tensor], values: torch.Tensor) -> torch.Tensor:
    """[..., out]: a layer over the last dimension of [..., in]. On a CPU rows are added up to a multiple of 4 ROWS, so that no row's
    result depends on how many there are: also where the last values of a narrow layer, if they do not fill two vector registers (up to
    64 bfloat16), would take another tanh or erf."""
    rows = values.flatten(0, -2)
    if values.device.type != "cpu" or len(rows) % (4 * ROWS) == 0:
        return layer(values)
    result = layer(functional.pad(rows, (0, 0, 0, -len(rows) % (4 * ROWS))))[: len(rows)]
    return result.unflatten(0, values.shape[:-1])


def pad(token_ids: Sequence[np.ndarray], attended: Sequence[int], keep: Sequence[np.ndarray]) -> TokenBatch:
    """One batch of texts of any lengths; of text i the first `attended[i]` tokens are looked at, and `keep[i]` wanted."""
    shape = (len(token_ids), max(map(len, token_ids), default=0))
    ids, attention, kept = np.zeros(shape, np.int64), np.zeros(shape, np.int64), np.zeros(shape, bool)
    for row, tokens in enumerate(token_ids):
        ids[row, : len(tokens)] = tokens
        attention[row, : attended[row]] = 1
        kept[row, : len(tokens)] = keep[row]
    return TokenBatch(torch.from_numpy(ids), torch.from_numpy(attention), torch.from_numpy(kept))


def group_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[np.ndarray]:
    """Groups texts, longest first, so that each group pads to `batch_tokens` tokens at most (a longer text goes alone)."""
    order = np.argsort(-np.asarray(lengths), kind="stable")
    start = 0
    while start < len(order):
        longest = max(1, int(lengths[order[start]]))
        stop = start + max(1, batch_tokens // longest)
        yield order[start:stop]
        start = stop
