"""Token pooling: the tokens that remain of a document, and the tokens that each represents."""

import numpy as np
import pytest

from ray_lir.base.errors import ConfigError
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from tests.support.synthetic import collection, exact_scores, queries_about, unit

DOCUMENTS = collection(60, dim=16, topics=20)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_pooling_keeps_the_first_token_and_a_fraction_of_the_others(factor):
    pooled = pool_tokens(DOCUMENTS, factor)
    assert (pooled.lengths <= 1 + -(-(DOCUMENTS.lengths - 1) // factor)).all() and (pooled.lengths >= 1).all()
    assert pooled.num_tokens < 1.2 * (DOCUMENTS.num_tokens - len(DOCUMENTS)) / factor + len(DOCUMENTS)
    firsts = DOCUMENTS.values[DOCUMENTS.offsets[:-1]].astype(np.float32)
    assert np.array_equal(pooled.values[pooled.offsets[:-1]], firsts)
    assert np.allclose(np.linalg.norm(pooled.values.astype(np.float32), axis=1), 1, atol=1e-3)
    assert list(pooled.doc_ids) == list(DOCUMENTS.doc_ids)


def test_similar_tokens_become_their_mean_in_text_order():
    a, b = np.eye(2, 8)
    near = [a, unit(a + 0.1 * b), b, unit(b + 0.1 * a)]
    pooled = pool_tokens(TokenEmbeddings.of([np.stack([near[2], near[0], near[1], near[3]])]), 2, protected=0)
    assert pooled.num_tokens == 2
    assert np.allclose(pooled[0], [unit(near[2] + near[3]), unit(near[0] + near[1])], atol=1e-3)


def test_copies_are_pooled_without_changing_any_score():
    once = collection(40, dim=16, max_tokens=8)
    twice = TokenEmbeddings.of([np.repeat(tokens, 2, axis=0) for tokens in once], once.doc_ids)
    pooled = pool_tokens(twice, 2, protected=0)
    assert np.array_equal(pooled.offsets, once.offsets)
    query = queries_about(once, [5])[0]
    assert np.allclose(exact_scores(query, pooled), exact_scores(query, once), atol=1e-6)


def test_a_merged_cluster_has_the_mean_token_weight_and_no_vocabulary_ids():
    a, b = np.eye(2, 8)
    near = np.stack([a, unit(a + 0.1 * b), b, unit(b + 0.1 * a)])
    source = TokenEmbeddings(near.astype(np.float16), np.array([0, 4]), ["d"], np.zeros(4, np.int32), np.array([1, 3, 2, 5], np.float32))
    pooled = pool_tokens(source, 2, protected=0)
    assert pooled.weights.tolist() == [2, 3.5] and pooled.token_ids is None


def test_weighted_copies_are_pooled_without_changing_any_score():
    """Pooling of documents in which every token appears several times."""
    once = collection(40, dim=16, max_tokens=8)
    weights = np.random.default_rng(0).uniform(1, 2, once.num_tokens).astype(np.float32)
    copies = [np.repeat(tokens, 2, axis=0) for tokens in once]
    twice = TokenEmbeddings(np.concatenate(copies), 2 * once.offsets, once.doc_ids, weights=np.repeat(weights, 2))
    pooled = pool_tokens(twice, 2, protected=0)
    assert np.array_equal(pooled.offsets, once.offsets) and np.allclose(pooled.weights, weights)


def test_pooling_leaves_short_and_empty_documents_unchanged():
    source = TokenEmbeddings.of([np.zeros((0, 8)), np.eye(1, 8), np.eye(2, 8)], ["empty", "one", "two"])
    pooled = pool_tokens(source, 4)
    assert np.array_equal(pooled.offsets, source.offsets) and np.array_equal(pooled.values, source.values)
    assert pool_tokens(source, 1) is source
    with pytest.raises(ConfigError, match="at least 1"):
        pool_tokens(source, 0)
