"""Small synthetic collections of token embeddings with clusters, like real ones."""

import numpy as np

from ray_lir.embeddings.token_embeddings import TokenEmbeddings


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def collection(num_docs: int = 300, dim: int = 32, topics: int = 60, seed: int = 0, max_tokens: int = 40) -> TokenEmbeddings:
    """Return documents of 1 to max_tokens tokens, drawn near a few topics."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(topics, dim))
    matrices = []
    for _ in range(num_docs):
        near = centres[rng.integers(0, topics, rng.integers(1, max_tokens + 1))]
        matrices.append(unit(near + 0.5 * rng.normal(size=(1, dim)) + 0.4 * rng.normal(size=near.shape)))
    return TokenEmbeddings.of(matrices, [f"doc-{i}" for i in range(num_docs)])


def queries_about(documents: TokenEmbeddings, numbers: list[int], num_tokens: int = 6, seed: int = 1) -> TokenEmbeddings:
    """Return queries that are noisy copies of the first tokens of some documents."""
    rng = np.random.default_rng(seed)
    heads = [documents[i][:num_tokens].astype(np.float32) for i in numbers]
    return TokenEmbeddings.of([unit(head + 0.1 * rng.normal(size=head.shape)) for head in heads])


def exact_scores(query: np.ndarray, documents: TokenEmbeddings) -> np.ndarray:
    """Return [N] MaxSim scores of one query by the definition, one document at a time, in float64."""
    query = query.astype(np.float64)
    return np.array([(query @ tokens.astype(np.float64).T).max(axis=1).sum() if len(tokens) else -np.inf for tokens in documents])
