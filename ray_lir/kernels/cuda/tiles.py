"""How documents of any length are spread over programs: in tiles, and runs of tiles."""

from dataclasses import dataclass

import torch

TILE = 32
"""Tokens of a tile. A document's last tile is half empty on average: with 64 a document of 70 tokens would be 45% padding."""
MOST_TILES = 64
"""Tiles of a program, about: enough for loading its queries not to matter."""
PROGRAMS = 1024
"""A smaller number of programs would leave parts of a GPU idle, so they get fewer tiles then."""


@dataclass(frozen=True)
class Tiles:
    """Documents cut into tiles, in order; no tile holds tokens of two documents.

    Attributes:
        tile: tokens of a tile, at most.
        firsts: [tiles] int64, number of a tile's first token.
        sizes: [tiles] int32, its tokens.
        documents: [tiles] int32, its document's place among those that were cut.
        bounds: [programs + 1] int32; program p runs over tiles bounds[p] to bounds[p + 1], all tiles of its documents.
        num_docs: that were cut, those without tokens (and so without tiles) included.
    """

    tile: int
    firsts: torch.Tensor
    sizes: torch.Tensor
    documents: torch.Tensor
    bounds: torch.Tensor
    num_docs: int

    @property
    def num_programs(self) -> int:
        return len(self.bounds) - 1


def cut(starts_N: torch.Tensor, ends_N: torch.Tensor, tile: int = TILE) -> Tiles:
    """Tiles of the documents that own tokens starts[i] to ends[i], int64, on their device."""
    counts = (ends_N - starts_N + tile - 1) // tile
    ends_in_tiles = counts.cumsum(0)
    documents = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts)
    numbers = torch.arange(len(documents), device=counts.device)
    firsts = starts_N[documents] + tile * (numbers - (ends_in_tiles - counts)[documents])
    sizes = (ends_N[documents] - firsts).clamp(max=tile)
    # A run ends with the document that its last tile belongs to.
    share = max(1, min(MOST_TILES, len(documents) // PROGRAMS))
    last = torch.arange(share - 1, len(documents) + share - 1, share, device=counts.device).clamp(max=len(documents) - 1)
    bounds = torch.cat([counts.new_zeros(1), ends_in_tiles[documents[last]]])
    return Tiles(tile, firsts, sizes.int(), documents.int(), bounds.int(), len(counts))
