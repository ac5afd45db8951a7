"""Postings: the tokens of a shard grouped by centroid, which plaid and warp probe.

They follow from the codes and are not stored: 50 million tokens take seconds to sort, once, in the processes that probe.
"""

import numpy as np


def group(codes: np.ndarray, num_centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """The token numbers of a shard by centroid, those of centroid 0 first, ascending within a centroid.

    Args:
        codes: [T] uint16 or uint32.

    Returns:
        token numbers [T] uint32, and where each centroid's begin [C + 1] int64.
    """
    offsets = np.concatenate([[0], np.cumsum(np.bincount(codes, minlength=num_centroids))]).astype(np.int64)
    order = np.argsort(codes.astype(np.uint16), kind="stable")  # NumPy sorts numbers of 16 bits in linear time
    if num_centroids > 1 << 16:
        order = order[np.argsort((codes >> 16).astype(np.uint16)[order], kind="stable")]
    return order.astype(np.uint32), offsets
