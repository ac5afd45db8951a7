"""Posting lists: the tokens of a shard by centroid, which plaid and warp probe.

They follow from the codes and are not stored: a process that probes sorts them once, in a second for 100 million tokens.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np

from ray_lir.base import compiled

BLOCK_TOKENS = 1 << 18
"""Tokens whose values are computed together. The memory of a block is at most 10 MB, for shards of any size."""


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
    codes: np.ndarray, offsets: np.ndarray, values_of: Callable[[int, int], np.ndarray], dtype: type, num_parts: int = 1
) -> Iterator[np.ndarray]:
    """Yield the posting lists, with a value of every token in the order of the tokens within each list.

    Args:
        codes: [T] integers; uint16 and uint32, the types of an index, are appended by compiled code.
        offsets: [C + 1] int64, from `offsets_of`.
        values_of: (first, end) -> the values of these tokens, [end - first].
        dtype: Type of the values.
        num_parts: About how many parts to yield, each of whole lists and after a pass over all codes. Only one part is in memory.
    """
    is_stored = codes.dtype in (np.uint16, np.uint32)
    append = compiled.module().append_postings if is_stored and compiled.available() else append_values
    starts = np.linspace(0, len(codes), num_parts, endpoint=False)
    bounds = np.unique([*np.searchsorted(offsets, starts), len(offsets) - 1]).tolist()
    for lowest, highest in pairwise(bounds):
        free = offsets[:-1] - offsets[lowest]
        part = np.empty(offsets[highest] - offsets[lowest], dtype)
        for start in range(0, len(codes), BLOCK_TOKENS):
            block = codes[start : start + BLOCK_TOKENS]
            append(block, values_of(start, start + len(block)), lowest, highest, free, part)
        yield part


def append_values(codes: np.ndarray, values: np.ndarray, lowest: int, highest: int, free: np.ndarray, out: np.ndarray) -> None:
    """Write the values of a block of tokens into some of the lists: the plain form of the compiled `append_postings`.

    Args:
        codes: [n] centroids of the tokens.
        values: [n] values of the tokens.
        lowest: First of the centroids with lists to fill.
        highest: Centroid after the last one.
        free: [C] next free place of each list; moved on.
        out: [n], filled in these places.
    """
    inside = (codes >= lowest) & (codes < highest)
    codes, values = codes[inside], values[inside]
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
