"""The document tokens that are most similar to query tokens, by comparison with all of them.

Shapes: n query tokens, T document tokens, D dimensions, k results.
"""

from collections.abc import Iterable

import numpy as np

from ray_lir.base.parallel import one_blas_thread

QUERY_TOKENS = 128
"""Query tokens to compare at once: a block of BLOCK_TOKENS similarities for each then takes 64 MB."""
BLOCK_TOKENS = 1 << 17
"""Document tokens of a block."""


@one_blas_thread()
def nearest_tokens(queries_nD: np.ndarray, blocks: Iterable[np.ndarray], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k document tokens with the largest products with each query token.

    Args:
        queries_nD: [n, D] float32.
        blocks: The vectors of all document tokens in order, [tokens, D] float32 each.
        k: Document tokens for each query token; fewer are returned if there are fewer.

    Returns:
        Token numbers [n, k] int64, and similarities [n, k] float32: best first, equal ones by number.
    """
    best, numbers = np.zeros((len(queries_nD), 0), np.float32), np.zeros((len(queries_nD), 0), np.int64)
    start = 0
    for vectors in blocks:
        scores, places = _largest(queries_nD @ vectors.T, k)
        best, numbers = np.concatenate([best, scores], axis=1), np.concatenate([numbers, start + places], axis=1)
        start += len(vectors)
        if best.shape[1] > 4 * k:
            best, places = _largest(best, k)
            numbers = np.take_along_axis(numbers, places, 1)
    order = np.lexsort((numbers, -best), axis=1)[:, :k]
    return np.take_along_axis(numbers, order, 1), np.take_along_axis(best, order, 1)


def _largest(scores_nT: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k largest values of each row, in any order, and their columns."""
    if scores_nT.shape[1] <= k:
        return scores_nT, np.broadcast_to(np.arange(scores_nT.shape[1]), scores_nT.shape)
    columns = np.argpartition(scores_nT, scores_nT.shape[1] - k, axis=1)[:, -k:]
    return np.take_along_axis(scores_nT, columns, 1), columns
