"""Token pooling: a document's vectors clustered, and each cluster kept as one vector (Clavié et al., 2024, arXiv 2409.14683)."""

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import one_blas_thread
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

ROUNDING = 5e-3
"""Vectors whose length differs from one by less are unit vectors that float16 or bfloat16 has rounded."""


def pool_tokens(embeddings: TokenEmbeddings, factor: int, protected: int = 1) -> TokenEmbeddings:
    """Documents with about a `factor`-th of their tokens: hierarchical clusters (Ward, over cosine distances), averaged.

    Args:
        factor: tokens of a document over those that are kept; 1 keeps all.
        protected: first tokens of each document that stay as they are ([CLS] holds the whole text).

    Returns:
        Vectors in the order of each cluster's first token, as long as its tokens are on average. A document keeps its protected tokens and
        the rest over `factor`, rounded up. A cluster's weight is the mean of its tokens' weights, since its vector wins a query token once
        as any of them would have; vocabulary ids are dropped, for a cluster has no one.

    Raises:
        ConfigError: if the factor is less than 1 or `protected` is negative.
    """
    if factor < 1 or protected < 0:
        raise ConfigError(f"tokens are pooled by a factor of at least 1 with 0 or more protected, not {factor} and {protected}")
    if factor == 1:
        return embeddings
    norms_T = np.linalg.norm(embeddings.values.astype(np.float32), axis=1)
    norms_T[np.abs(norms_T - 1) <= ROUNDING] = 1
    directions_TD = embeddings.values if (norms_T == 1).all() else embeddings.values / np.maximum(norms_T, 1e-12)[:, None]
    documents = np.split(directions_TD, embeddings.offsets[1:-1]) if len(embeddings) else []
    with one_blas_thread():
        clusters = [_clusters(tokens.astype(np.float32), factor, protected) for tokens in documents]
    counts = np.array([clusters_T.max(initial=-1) + 1 for clusters_T in clusters])
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    owners_T = np.concatenate([*clusters, np.zeros(0, np.int64)]) + np.repeat(offsets[:-1], embeddings.lengths)
    order = np.argsort(owners_T, kind="stable")
    starts = np.searchsorted(owners_T[order], np.arange(offsets[-1]))
    sums = np.add.reduceat(embeddings.values[order].astype(np.float64), starts, axis=0)
    lengths = np.bincount(owners_T, norms_T, offsets[-1]) / np.bincount(owners_T, minlength=offsets[-1])
    values = (lengths[:, None] * (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12))).astype(np.float16)
    weights = None
    if embeddings.weights is not None:
        weights = (np.bincount(owners_T, embeddings.weights, offsets[-1]) / np.bincount(owners_T, minlength=offsets[-1])).astype(np.float32)
    return TokenEmbeddings(values, offsets, embeddings.doc_ids, weights=weights)


def _clusters(tokens_TD: np.ndarray, factor: int, protected: int) -> np.ndarray:
    """[T] int64: each token's cluster, numbered by first appearance."""
    free = tokens_TD[protected:]
    kept = -(-len(free) // factor)
    if len(free) <= max(kept, 1):
        return np.arange(len(tokens_TD))
    from scipy.cluster.hierarchy import fcluster, linkage  # takes half a second to load
    from scipy.spatial.distance import squareform

    distances = 1 - free @ free.T
    np.fill_diagonal(distances, 0)
    tree = linkage(squareform(np.maximum(distances, 0), checks=False), method="ward")
    labels = fcluster(tree, kept, criterion="maxclust")
    _, first, of = np.unique(labels, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(first))
    return np.concatenate([np.arange(protected), protected + rank[of]])
