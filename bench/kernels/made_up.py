"""Synthetic input of any size: shards of random codes and residuals to time kernels, and documents near topics for indexes."""

import numpy as np
import pyarrow as pa

from ray_lir.index.codec import ResidualCodec
from ray_lir.index.residuals import normalize
from ray_lir.index.shard import IndexShard

DIM = 128
QUERY_TOKENS = 32


def made_up(num_docs: int, mean_tokens: int, num_centroids: int, nbits: int = 4) -> tuple[IndexShard, ResidualCodec]:
    """Return a shard of random codes and residuals, and its codec.

    Args:
        num_docs: Documents of the shard.
        mean_tokens: Mean tokens of a document; lengths are uniform from 0 to twice the mean.
        num_centroids: Centroids of the codec.
        nbits: Bits a dimension of a residual.
    """
    rng = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, 2 * mean_tokens + 1, num_docs))]).astype(np.int64)
    centroids = normalize(rng.normal(size=(num_centroids, DIM)).astype(np.float32)).astype(np.float16)
    weights = np.linspace(-2.7, 2.7, 2**nbits).astype(np.float32)
    codec = ResidualCodec(centroids, (weights[1:] + weights[:-1]) / 2, weights, token_scale=True)
    codes = rng.integers(0, num_centroids, offsets[-1]).astype(codec.code_dtype)
    residuals = np.frombuffer(rng.bytes(int(offsets[-1]) * DIM * nbits // 8), np.uint8).reshape(len(codes), -1)
    scales = np.full((len(codes), 2), [0.9, 0.04], np.float16)
    return IndexShard(0, offsets, codes, residuals, scales, pa.table({}), num_centroids), codec


def made_up_queries(number: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return queries of random unit vectors, and their weights of one."""
    rng = np.random.default_rng(1)
    queries = [normalize(rng.normal(size=(QUERY_TOKENS, DIM)).astype(np.float32)) for _ in range(number)]
    return queries, [np.ones(QUERY_TOKENS, np.float32)] * number


def documents_near_topics(num_tokens: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return documents of 200 tokens, [200, D] float16, near a few of many topics, and queries with noisy copies of some tokens."""
    rng = np.random.default_rng(2)
    topics = rng.normal(size=(4000, DIM)).astype(np.float32)
    documents = []
    for _ in range(num_tokens // 200):
        near = topics[rng.integers(0, len(topics), 200)] + 0.5 * rng.normal(size=(1, DIM)) + 0.6 * rng.normal(size=(200, DIM))
        documents.append(normalize(near.astype(np.float32)).astype(np.float16))
    chosen = rng.integers(0, len(documents), 64)
    noisy = [documents[i][:QUERY_TOKENS].astype(np.float32) + 0.03 * rng.normal(size=(QUERY_TOKENS, DIM)) for i in chosen]
    return documents, [normalize(query.astype(np.float32)) for query in noisy]
