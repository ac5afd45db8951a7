"""Distribution of documents of any length over programs: tiles, and runs of tiles."""

from dataclasses import dataclass

import torch

from ray_lir.base.short_repr import ShortRepr

TILE = 32
"""Tokens of a tile. A document's last tile is half empty on average: with 64, a document of 70 tokens would be 45% padding."""
MOST_TILES = 64
"""Approximate tiles of a program: enough that loading the queries takes no noticeable time."""
PROGRAMS = 1024
"""With fewer programs, parts of a GPU would be idle; programs then get fewer tiles."""


@dataclass(frozen=True, eq=False, repr=False)
class Tiles(ShortRepr):
    """Documents split into tiles, in order. No tile holds tokens of two documents.

    Attributes:
        tile: Largest number of tokens of a tile.
        firsts: [tiles] int64, number of a tile's first token.
        sizes: [tiles] int32, number of its tokens.
        documents: [tiles] int32, position of its document among the documents.
        bounds: [programs + 1] int32; program p runs over tiles bounds[p] to bounds[p + 1], all tiles of its documents.
        num_docs: Number of documents, including documents without tokens, which have no tiles.
    """

    tile: int
    firsts: torch.Tensor
    sizes: torch.Tensor
    documents: torch.Tensor
    bounds: torch.Tensor
    num_docs: int

    @property
    def num_programs(self) -> int:
        """Number of programs."""
        return len(self.bounds) - 1


def split_into_tiles(starts_N: torch.Tensor, ends_N: torch.Tensor, tile: int = TILE) -> Tiles:
    """Split documents into tiles.

    Args:
        starts_N: [N] int64, first token of each document.
        ends_N: [N] int64, end of its tokens.
        tile: Largest number of tokens of a tile.
    """
    counts = (ends_N - starts_N + tile - 1) // tile
    ends_in_tiles = counts.cumsum(0)
    documents = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    numbers = torch.arange(len(documents), device=counts.device)
    firsts = starts_N[documents] + tile * (numbers - (ends_in_tiles - counts)[documents])
    sizes = (ends_N[documents] - firsts).clamp(max=tile)
    # A run ends with the document of its last tile.
    run = max(1, min(MOST_TILES, len(documents) // PROGRAMS))
    last = torch.arange(run - 1, len(documents) + run - 1, run, device=counts.device).clamp(max=len(documents) - 1)
    bounds = torch.cat([counts.new_zeros(1), ends_in_tiles[documents[last]]])
    return Tiles(tile, firsts, sizes.int(), documents.int(), bounds.int(), len(counts))
