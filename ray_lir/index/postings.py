"""Posting lists: the tokens of a shard by centroid, which plaid and warp probe.

They follow from the codes and are not stored: a process that probes sorts them once, in seconds for 50 million tokens.
"""

import numpy as np


def group(codes: np.ndarray, num_centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """Group the tokens of a shard by centroid.

    Args:
        codes: [T] uint16 or uint32.
        num_centroids: Number of centroids C.
    Returns:
        Token numbers [T] uint32 by centroid, ascending within a centroid, and offsets [C + 1] int64 of the centroids in them.
    """
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=num_centroids))]).astype(np.int64)
    order = np.argsort(codes.astype(np.uint16), kind="stable")  # NumPy sorts 16-bit numbers in linear time
    if num_centroids > 1 << 16:
        order = order[np.argsort((codes >> 16).astype(np.uint16)[order], kind="stable")]
    return order.astype(np.uint32), offsets
