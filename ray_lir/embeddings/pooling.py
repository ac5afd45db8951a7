"""Token pooling: cluster a document's vectors and keep one vector per cluster (Clavié et al., 2024, arXiv 2409.14683)."""

import numpy as np

from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import one_blas_thread
from ray_lir.embeddings.token_embeddings import TokenEmbeddings

ROUNDING = 5e-3
"""Vectors with a norm this close to 1 count as unit vectors that float16 or bfloat16 has rounded."""


def pool_tokens(embeddings: TokenEmbeddings, factor: int, protected: int = 1) -> TokenEmbeddings:
    """Return the documents with about 1/`factor` of their vectors: hierarchical clusters (Ward, cosine distance), each averaged.

    Args:
        embeddings: Token embeddings of N documents.
        factor: Tokens of a document divided by the vectors that remain; 1 keeps all.
        protected: Number of first tokens of each document that are not pooled. ([CLS] represents the whole text.)

    Returns:
        Token embeddings without vocabulary ids, since a cluster has no single one. Clusters are in the order of their first tokens. A
        document keeps its protected tokens, and the other tokens divided by `factor`, rounded up. A pooled vector has the mean norm of its
        tokens. Its weight is the mean of their weights, because the pooled vector matches a query token once, as one of its tokens would.

    Raises:
        ConfigError: The factor is less than 1, or `protected` is negative.
    """
    if factor < 1 or protected < 0:
        raise ConfigError(f"the pooling factor must be at least 1 and protected at least 0, not {factor} and {protected}; change the value")
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

    def mean(column_T: np.ndarray) -> np.ndarray:
        return (np.bincount(owners_T, column_T, offsets[-1]) / np.bincount(owners_T, minlength=offsets[-1])).astype(np.float32)

    weights = None if embeddings.weights is None else mean(embeddings.weights)
    attention = None if embeddings.attention is None else np.stack([mean(column) for column in embeddings.attention.T], axis=1)
    return TokenEmbeddings(values, offsets, embeddings.doc_ids, weights=weights, attention=attention)


def _clusters(tokens_TD: np.ndarray, factor: int, protected: int) -> np.ndarray:
    """Return each token's cluster, [T] int64, numbered by first appearance."""
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
