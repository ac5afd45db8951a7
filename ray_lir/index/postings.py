"""Posting lists: the tokens of a shard by centroid, which plaid and warp probe.

They follow from the codes and are not stored: a process that probes sorts them once, in seconds for 50 million tokens.
"""

from collections.abc import Callable

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


def by_centroid(codes: np.ndarray, offsets: np.ndarray, values_of: Callable[[int, int], np.ndarray], out: np.ndarray) -> np.ndarray:
    """Write a value of every token into the posting lists, in the order of the tokens within each list.

    Args:
        codes: [T] uint16 or uint32.
        offsets: [C + 1] int64, from `offsets_of`.
        values_of: (first, end) -> the values of these tokens, [end - first].
        out: [T], filled and returned.
    """
    free = offsets[:-1].copy()
    for start in range(0, len(codes), BLOCK_TOKENS):
        block = codes[start : start + BLOCK_TOKENS]
        order = _sorting(block)
        ordered = block[order]
        first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
        counts = np.diff(first, append=len(block))
        clusters = ordered[first]
        out[np.repeat(free[clusters] - first, counts) + np.arange(len(block))] = values_of(start, start + len(block))[order]
        free[clusters] += counts
    return out


def _sorting(codes: np.ndarray) -> np.ndarray:
    """Return the stable order of codes. NumPy sorts 16-bit numbers in linear time."""
    order = np.argsort(codes.astype(np.uint16), kind="stable")
    if codes.dtype == np.uint16:
        return order
    return order[np.argsort((codes >> 16).astype(np.uint16)[order], kind="stable")]
