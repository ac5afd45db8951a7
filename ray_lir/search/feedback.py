"""ColBERT-PRF: pseudo-relevance feedback with token vectors (Wang et al., https://arxiv.org/abs/2106.11251).

The token vectors of the best documents of a first search are clustered. The clusters that are rare in the collection become further query
vectors, weighted by their rarity, and the query is searched again.
"""

from collections.abc import Sequence

import numpy as np
from scipy.cluster.vq import kmeans2

from ray_lir.base.arguments import number_list, whole_number
from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, check_embeddings
from ray_lir.index.residuals import decompress
from ray_lir.search.explain import shard_of
from ray_lir.search.searcher import Searcher

ITERATIONS = 10
"""Iterations of k-means over the feedback vectors."""


def expand_query(
    searcher: Searcher,
    query: TokenEmbeddings,
    documents: Sequence[int] | np.ndarray,
    num_clusters: int = 24,
    num_expansions: int = 10,
    beta: float = 1.0,
    seed: int = 42,
) -> TokenEmbeddings:
    """Return a query with expansion vectors from feedback documents.

    The rarity of a feedback centroid v is log((T + 1) / (T_v + 1)). T is the number of tokens of the index, and T_v the size of the index
    cluster nearest to v. This is the inverse collection term frequency of the paper's extension, with clusters in the place of terms,
    because an index stores no terms. An expansion vector has the length beta * rarity, so its matches count by that factor.

    Args:
        searcher: The opened index, of scorer maxsim.
        query: Token embeddings of one query.
        documents: Numbers of the feedback documents: the best of a first search. None of them: the query is returned unchanged.
        num_clusters: Clusters of the feedback vectors (K of the paper).
        num_expansions: Clusters to add to the query, the rarest first (f_e of the paper).
        beta: Weight of the expansion vectors relative to the query's own.
        seed: Seed of the clustering.

    Returns:
        The query with its own vectors first, then at most `num_expansions` further ones.

    Raises:
        ConfigError: There is more than one query, a number is not valid, or the index has another scorer than maxsim.
    """
    query = check_embeddings("query", query)
    num_clusters = whole_number("num_clusters", num_clusters, 1, 1 << 16)
    num_expansions = whole_number("num_expansions", num_expansions, 0, 1 << 16)
    if len(query) != 1:
        raise ConfigError(f"one query is expanded at a time, not {len(query)}; use query.slice(i, i + 1)")
    if searcher.manifest.contract.scorer != "maxsim":
        raise ConfigError(f"feedback is for scorer maxsim, and the index has {searcher.manifest.contract.scorer}")
    if not beta >= 0:
        raise ConfigError(f"beta must be 0 or more, not {beta}")
    vectors_TD = _vectors(searcher, number_list("documents", documents, searcher.manifest.num_numbers))
    if not len(vectors_TD) or not num_expansions or not beta:
        return query
    size = min(num_clusters, len(vectors_TD))
    centroids_KD, _ = kmeans2(vectors_TD, size, ITERATIONS, minit="++", seed=np.random.default_rng(seed), missing="warn")
    lengths_K = np.linalg.norm(centroids_KD, axis=1)
    centroids_KD = centroids_KD[lengths_K > 0] / lengths_K[lengths_K > 0, None]
    rarities_K = _rarities(searcher, centroids_KD)
    best = np.argsort(-rarities_K, kind="stable")[:num_expansions]
    expansions = centroids_KD[best] * (beta * rarities_K[best, None])
    rotation = searcher.planner.codec.rotation
    if rotation is not None:  # back to the space of the encoder, from that of the codec
        expansions = expansions @ rotation.T.astype(np.float64)
    values = np.concatenate([query.values, expansions.astype(query.values.dtype)])
    return TokenEmbeddings.of([values])


def _vectors(searcher: Searcher, documents: np.ndarray) -> np.ndarray:
    """Return the decompressed token vectors of documents, in the rotated space of the codec: [T, D] float64."""
    parts = [np.zeros((0, searcher.manifest.dim))]
    for number in documents.tolist():
        shard = shard_of(searcher.shards, number)
        tokens, _ = shard.tokens(np.array([number - shard.first_document]))
        codec = searcher.planner.codec
        parts.append(decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64))
    return np.concatenate(parts)


def _rarities(searcher: Searcher, vectors_KD: np.ndarray) -> np.ndarray:
    sizes = searcher.planner.statistics.cluster_sizes
    nearest = (vectors_KD @ searcher.planner.codec.centroids.astype(np.float64).T).argmax(axis=1)
    return np.log((sizes.sum() + 1) / (sizes[nearest] + 1))
