"""Postings: the tokens of a shard grouped by centroid, which plaid and warp probe.

`postings` [T] uint32 lists the shard's token numbers, those of centroid 0 first, ascending within a centroid;
`posting_offsets` [C + 1] int64 says where each centroid's begin. Residuals are not stored a second time.
"""

import numpy as np


def layout(codes: np.ndarray, num_centroids: int) -> dict[str, np.ndarray]:
    """The two arrays for a shard's codes [T]."""
    sizes = np.bincount(codes, minlength=num_centroids)
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return {"postings": np.argsort(codes, kind="stable").astype(np.uint32), "posting_offsets": offsets}
