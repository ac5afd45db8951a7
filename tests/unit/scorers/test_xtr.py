"""XTR training: golden vectors, published bugs that turn it into MaxSim training, and a pool of valid tokens."""

import numpy as np
import pytest
import torch

from ray_lir.base.errors import ConfigError
from ray_lir.scorers import maxsim, xtr
from ray_lir.scorers.batches import EmbeddedTexts
from tests.conformance.test_scorers import PRECISIONS, texts
from tests.support.golden_files import golden


def golden_texts(dtype: torch.dtype = torch.float64) -> tuple[EmbeddedTexts, EmbeddedTexts]:
    """Return queries, and documents in column order: the first document of query j is column jN."""
    values = golden("xtr_train")
    documents = values["d"].reshape(-1, *values["d"].shape[2:])
    return texts(values["q"], values["q_mask"], dtype=dtype), texts(documents, values["d_mask"].reshape(len(documents), -1), dtype=dtype)


@PRECISIONS
def test_xtr_gives_the_golden_scores_for_several_k_at_once(dtype: torch.dtype, tolerance: float) -> None:
    for k, scores in zip((12, 2, 5), xtr.scores(*golden_texts(dtype), k_train=(12, 2, 5)), strict=True):
        np.testing.assert_allclose(scores, golden("xtr_train")[f"scores_k{k}"], rtol=0, atol=tolerance)


def test_a_token_that_was_not_retrieved_adds_nothing() -> None:
    """The first published bug: the mask of retrieved tokens was computed and not used.

    Source: docs/algorithms.md#32-faults-of-published-code-avoided-here.
    """
    query = texts([[[1.0, 0.0], [0.0, 1.0]]])
    documents = texts([[[0.9, 0.1]], [[0.8, 0.6]], [[0.7, 0.2]]])
    (scores,) = xtr.scores(query, documents, (2,))
    # Token 1 retrieves documents 0 and 1, token 2 retrieves documents 1 and 2.
    np.testing.assert_allclose(scores, [[0.9, (0.8 + 0.6) / 2, 0.2]], rtol=1e-6)
    everything = maxsim.scores(query, documents) / 2
    assert not torch.allclose(scores, everything)
    (scores,) = xtr.scores(query, documents, (3,))
    torch.testing.assert_close(scores, everything)


def test_xtr_scores_normalised_vectors(tmp_path) -> None:
    """The second published bug: neither side was normalised. Our encoders normalise for every scorer."""
    from ray_lir.base.config import EncoderConfig
    from ray_lir.encoder.encoder import Encoder
    from tests.support.checkpoints import put_together

    encoder = Encoder.load(EncoderConfig(checkpoint=put_together("pylate", "expansion", tmp_path), precision="float32"))
    encoder = encoder.with_scorer("xtr")
    for embedded in (
        encoder.embed_queries(encoder.batch_queries(["the river", "a"])),
        encoder.embed_documents(encoder.batch_documents(["the bridge, on the river", "king"])),
    ):
        torch.testing.assert_close(embedded.vectors.norm(dim=-1), embedded.mask.float())


def test_padded_query_tokens_are_not_scored() -> None:
    """The third bug, which the paper does not name: the query mask was applied to an unused value."""
    documents = texts([[[0.9, 0.1], [0.1, 0.2]]])
    (alone,) = xtr.scores(texts([[[1.0, 0.0]]]), documents, (1,))
    (padded,) = xtr.scores(texts([[[1.0, 0.0], [0.0, 1.0]]], [[True, False]]), documents, (1,))
    assert alone.item() == padded.item() == pytest.approx(0.9)


def test_padding_of_documents_is_never_retrieved() -> None:
    """Padding is not a best token, although 0 exceeds a negative similarity, and displaces none."""
    query = texts([[[1.0, 0.0]]])
    documents = texts([[[-0.5, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.3, 0.1]]], [[True, False], [False, True]])
    (scores,) = xtr.scores(query, documents, (1,))
    np.testing.assert_allclose(scores, [[0.0, 0.3]], rtol=1e-6)
    with pytest.raises(ConfigError, match=r"--xtr.k_train 3 exceeds the 2 document tokens of a batch; lower it or raise --batch_size"):
        xtr.scores(query, documents, (3, 1))


def test_a_retrieved_negative_similarity_adds_nothing() -> None:
    query, documents = texts([[[1.0, 0.0]]]), texts([[[-0.5, 0.5]], [[0.5, 0.5]]])
    np.testing.assert_allclose(xtr.scores(query, documents, (2,))[0], [[0.0, 0.5]])


def test_other_documents_compete_for_the_top() -> None:
    query, documents = texts([[[1.0, 0.0]]]), [[[0.5, 0.5]], [[0.6, 0.1]], [[0.7, 0.1]]]
    assert xtr.scores(query, texts(documents[:1]), (1,))[0].item() == 0.5
    np.testing.assert_allclose(xtr.scores(query, texts(documents), (1,))[0], [[0.0, 0.0, 0.7]])


def test_equal_similarities_are_retrieved_in_the_order_of_the_pool() -> None:
    """A document twice in a batch (two queries share it) takes at most k places."""
    query = texts([[[1.0, 0.0]]])
    documents = texts([[[0.5, 0.1], [0.5, 0.2]], [[0.5, 0.1], [0.5, 0.2]], [[0.5, 0.3], [0.1, 0.0]]])
    for k, expected in ((1, [0.5, 0, 0]), (2, [0.5, 0, 0]), (3, [0.5, 0.5, 0]), (4, [0.5, 0.5, 0]), (5, [0.5, 0.5, 0.5])):
        assert xtr.scores(query, documents, (k,))[0].tolist() == [expected]


def test_scores_are_those_of_the_plain_definition_on_many_shapes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        num_queries, n, num_documents, m = rng.integers(1, 6, 4)
        queries = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(num_queries, n, 4))), dim=-1)
        documents = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(num_documents, m, 4))), dim=-1)
        query_mask, document_mask = (torch.from_numpy(rng.random(side.shape[:2]) < 0.7) for side in (queries, documents))
        document_mask[0, 0] = True
        k = int(rng.integers(1, document_mask.sum() + 1))
        (scores,) = xtr.scores(EmbeddedTexts(queries, query_mask), EmbeddedTexts(documents, document_mask), (k,))
        for i in range(num_queries):
            terms = np.zeros((n, num_documents))
            for token in range(n):
                values = np.where(document_mask, documents.numpy() @ queries[i, token].numpy(), -np.inf)
                kept = np.where(values >= np.sort(values.ravel())[-k], values, 0).max(1)
                terms[token] = np.maximum(kept, 0) * bool(query_mask[i, token])
            np.testing.assert_allclose(scores[i], terms.sum(0) / np.maximum((terms > 0).sum(0), 1), atol=1e-12)
