"""ColBERT-Att: the attention of the last layer, the weights made from it, and scores against golden vectors."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import ModernBertConfig, ModernBertModel, T5Config, T5EncoderModel

from ray_lir.base.config import AttentionConfig, EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.encoder.encoder import Encoder
from ray_lir.scorers import maxsim
from ray_lir.scorers import received_attention as attention
from ray_lir.scorers.attention import Attention, delta
from ray_lir.scorers.interaction import best_tokens
from ray_lir.scorers.received_attention import AttentionRecorder, LastAttention
from tests.conformance.test_scorers import PRECISIONS, texts
from tests.fixtures.tiny import DOCUMENTS, QUERIES
from tests.support.checkpoints import put_together
from tests.support.golden_files import golden


def last_attention(dtype: torch.dtype) -> LastAttention:
    values = golden("colbert_att")
    query, key = (torch.from_numpy(values[name]).to(dtype) for name in ("head_q", "head_k"))
    return LastAttention(query, key, None, query.shape[-1] ** -0.5, torch.from_numpy(values["d_mask"]))


@PRECISIONS
@pytest.mark.parametrize("rows_at_once", [128, 3])
def test_attention_is_the_golden_one(rows_at_once: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "ROWS_AT_ONCE", rows_at_once)
    found = last_attention(dtype)
    np.testing.assert_allclose(found.column_mean(), golden("colbert_att")["att_column_mean"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(found.first_row(), golden("colbert_att")["att_first_row"], rtol=0, atol=tolerance)


@PRECISIONS
@pytest.mark.parametrize(("sides", "expected"), [("both", "scores"), ("queries", "scores_query_only"), ("documents", "scores_doc_only")])
def test_attention_gives_the_golden_scores(sides: str, expected: str, dtype: torch.dtype, tolerance: float) -> None:
    values = golden("colbert_att")
    delta_length = int(values["l"]) if sides == "both" else None
    scorer = Attention(8, AttentionConfig(sides=sides, delta_length=delta_length)).eval()
    query_weights = np.exp(values["att_q"])[None] if sides != "documents" else None
    query = texts(values["q"][None], values["q_mask"][None], query_weights, dtype=dtype)
    documents = texts(values["d"], values["d_mask"], scorer.document_weights(None, last_attention(dtype)), dtype=dtype)
    scores = scorer(query, documents)[0]
    np.testing.assert_allclose(scores, values[expected], rtol=0, atol=tolerance)
    assert np.abs(scores.numpy() - values["scores_max_of_product"]).max() > 1e-3


def test_winning_tokens_equal_the_golden_ones() -> None:
    values = golden("colbert_att")
    query, documents = texts(values["q"][None], values["q_mask"][None]), texts(values["d"], values["d_mask"])
    assert np.array_equal(best_tokens(query, documents)[0], values["winners"])


def test_delta_is_the_golden_one() -> None:
    values = golden("colbert_att")
    np.testing.assert_allclose(delta(torch.from_numpy(values["doc_len"]), int(values["l"])), values["delta"], rtol=0, atol=1e-12)


def test_delta_applies_after_training_only() -> None:
    found, settings = last_attention(torch.float64), AttentionConfig(delta_length=8)
    scorer = Attention(8, settings)
    column_mean = found.column_mean()
    assert torch.equal(scorer.train().document_weights(None, found), column_mean.exp())
    shorter = column_mean * torch.tensor([1, 7 / 8, 4 / 8, 1 / 8])[:, None]
    torch.testing.assert_close(scorer.eval().document_weights(None, found), shorter.exp())
    assert torch.equal(scorer.query_weights(None, found), column_mean.exp())
    always = Attention(8, AttentionConfig(delta_length=None)).eval()
    assert torch.equal(always.document_weights(None, found), column_mean.exp())


def test_attention_settings_choose_side_reading_and_gradient() -> None:
    found = last_attention(torch.float32)
    found.query.requires_grad_()
    assert Attention(8, AttentionConfig(sides="queries")).document_weights(None, found) is None
    assert Attention(8, AttentionConfig(sides="documents")).query_weights(None, found) is None
    by_first_row = Attention(8, AttentionConfig(reading="cls_row")).query_weights(None, found)
    assert torch.equal(by_first_row, found.first_row().exp())
    by_first_row.sum().backward()
    assert found.query.grad.abs().sum() > 0
    assert not Attention(8, AttentionConfig(detach=True)).query_weights(None, found).requires_grad


def bert(folder: Path) -> torch.nn.Module:
    return Encoder.load(EncoderConfig(checkpoint=put_together("pylate", "expansion", folder), precision="float32")).model.backbone


def modern_bert(folder: Path) -> torch.nn.Module:
    config = ModernBertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=4, num_attention_heads=2, pad_token_id=0, local_attention=4
    )
    return ModernBertModel(config)


def t5(folder: Path) -> torch.nn.Module:
    return T5EncoderModel(T5Config(vocab_size=50, d_model=16, d_kv=4, d_ff=16, num_layers=3, num_heads=4))


@pytest.mark.parametrize("make", [bert, modern_bert, t5])
def test_recorded_attention_is_what_the_eager_model_returns(make, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = make(tmp_path).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3)  # makes attention uneven
    ids = torch.randint(5, 50, (3, 12))
    mask = torch.arange(12)[None] < torch.tensor([12, 7, 1])[:, None]
    with AttentionRecorder() as recorder:
        plain = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    found = recorder.last(mask)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(plain, model(input_ids=ids, attention_mask=mask.long()).last_hidden_state)
    model.set_attn_implementation("eager")
    probabilities = model(input_ids=ids, attention_mask=mask.long(), output_attentions=True).attentions[-1].mean(1)
    for text in range(3):
        valid = mask[text]
        torch.testing.assert_close(found.column_mean()[text], probabilities[text][valid].mean(0) * valid, rtol=0, atol=1e-6)
        torch.testing.assert_close(found.first_row()[text], probabilities[text, 0] * valid, rtol=0, atol=1e-6)


def test_a_model_with_unsupported_attention_is_refused() -> None:
    with AttentionRecorder() as recorder:
        torch.zeros(1) + 1
    with pytest.raises(ConfigError, match="scorer attention needs a bidirectional model .*; give another checkpoint"):
        recorder.last(torch.ones(1, 1))


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.load(EncoderConfig(checkpoint=put_together("pylate", "expansion", tmp_path / "pylate"), precision="float32"))


def test_encoded_texts_carry_their_attention_weights(encoder: Encoder) -> None:
    plain, weighed = encoder.encode_documents(DOCUMENTS), encoder.with_scorer("attention").encode_documents(DOCUMENTS)
    assert np.array_equal(plain.values, weighed.values) and plain.weights is None
    assert (weighed.weights >= 1).all() and weighed.weights.max() > 1.0005
    lengths = [len(ids) for ids in encoder.tokenizer.documents(DOCUMENTS)]
    whole = encoder.with_scorer("attention", AttentionConfig(delta_length=None)).encode_documents(DOCUMENTS)
    for number, length in enumerate(lengths):
        rows = slice(plain.offsets[number], plain.offsets[number + 1])
        np.testing.assert_allclose(weighed.weights[rows], whole.weights[rows] ** min(1, length / 150), rtol=1e-5)


def test_unattended_expansion_tokens_have_weight_1(encoder: Encoder) -> None:
    queries = encoder.with_scorer("attention").encode_queries(QUERIES)
    bare = [len(ids) for ids in encoder.tokenizer.bare_queries(QUERIES)]
    for number, length in enumerate(bare):
        weights = queries.weights[queries.offsets[number] : queries.offsets[number + 1]]
        assert (weights[:length] > 1).all() and (weights[length:] == 1).all()
        assert np.log(weights).sum() == pytest.approx(1, abs=1e-4)


def test_attention_weights_change_scores_slightly(encoder: Encoder) -> None:
    other = encoder.with_scorer("attention")
    queries, documents = other.embed_queries(other.batch_queries(QUERIES)), other.embed_documents(other.batch_documents(DOCUMENTS))
    weighed = other.model.scorer(queries, documents)
    plain = maxsim.scores(texts(queries.vectors, queries.mask), texts(documents.vectors, documents.mask))
    ratio = (weighed / plain).detach().numpy()
    assert (ratio > 1).all() and (ratio < 1.5).all()
