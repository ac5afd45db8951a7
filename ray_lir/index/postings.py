"""Posting lists: the tokens of a shard by centroid, which plaid and warp probe.

They follow from the codes and are not stored: a process that probes sorts them once, in seconds for 50 million tokens.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

BLOCK_TOKENS = 1 << 18
"""Tokens that are sorted together. The memory of a block is 10 MB, for shards of any size."""


def offsets_of(codes: np.ndarray, num_centroids: int) -> np.ndarray:
    """Return the offsets of the centroids in the posting lists, [C + 1] int64.

    Args:
        codes: [T] uint16 or uint32.
        num_centroids: Number of centroids C.
    """
    sizes = np.zeros(num_centroids, np.int64)
    for start in range(0, len(codes), BLOCK_TOKENS):
        sizes += np.bincount(codes[start : start + BLOCK_TOKENS], minlength=num_centroids)
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)


def by_centroid(
    codes: np.ndarray,
    offsets: np.ndarray,
    values_of: Callable[[int, int], np.ndarray],
    out: np.ndarray,
    part_tokens: int | None = None,
) -> np.ndarray:
    """Write a value of every token into the posting lists, in the order of the tokens within each list.

    Args:
        codes: [T] uint16 or uint32.
        offsets: [C + 1] int64, from `offsets_of`.
        values_of: (first, end) -> the values of these tokens, [end - first].
        out: [T], filled and returned.
        part_tokens: Fill parts of `out` with about this many values one after another, each in a pass over all codes. Writes all over a
            file that is larger than the memory take minutes instead. None: one pass.
    """
    starts = np.arange(0, len(codes), part_tokens or len(codes) or 1)
    bounds = np.unique([*np.searchsorted(offsets, starts), len(offsets) - 1]).tolist()
    free = offsets[:-1].copy()
    for lowest, highest in pairwise(bounds):
        for start in range(0, len(codes), BLOCK_TOKENS):
            block = codes[start : start + BLOCK_TOKENS]
            values = values_of(start, start + len(block))
            if len(bounds) > 2:
                inside = (block >= lowest) & (block < highest)
                block, values = block[inside], values[inside]
            _append(block, values, free, out)
    return out


def _append(codes: np.ndarray, values: np.ndarray, free: np.ndarray, out: np.ndarray) -> None:
    """Write the values of a block of tokens into their lists.

    Args:
        codes: [n] centroids of the tokens.
        values: [n] values of the tokens.
        free: [C] next free place of each list; moved on.
        out: [T], filled in these places.
    """
    if not len(codes):
        return
    order = _sorting(codes)
    ordered = codes[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    counts = np.diff(first, append=len(codes))
    clusters = ordered[first]
    out[np.repeat(free[clusters] - first, counts) + np.arange(len(codes))] = values[order]
    free[clusters] += counts


def _sorting(codes: np.ndarray) -> np.ndarray:
    """Return the stable order of codes. NumPy sorts 16-bit numbers in linear time."""
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    if codes.dtype == np.uint16:
        return order
    return order[np.argsort((codes >> 16).astype(np.uint16)[order], kind="stable")]
