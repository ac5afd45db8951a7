"""Training and search compute the same function, for every scorer, on random inputs of many shapes."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lir.base.config import AttentionConfig, Config, TrialConfig, XtrConfig
from ray_lir.embeddings.relation import Relation, load_relation
from ray_lir.engines.exact import SCORE_ALL, ExactParams
from ray_lir.engines.plan import Query, QueryPlan
from ray_lir.engines.scoring.registry import SEARCH_SCORERS
from ray_lir.index.codec import ResidualCodec, random_rotation
from ray_lir.index.relation import RelationEncoder
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels, native, select
from ray_lir.scorers import SCORERS, Scorer
from ray_lir.scorers.batches import EmbeddedTexts
from tests.support.golden_files import golden
from tests.unit.scorers.test_trial import golden_trial

SETTINGS: dict[str, Config] = {
    "maxsim": Config(),
    "xtr": XtrConfig(),
    "trial": TrialConfig(relation_weight=0.5),
    "attention": AttentionConfig(),
}
SHAPES = {
    "num_docs": st.integers(1, 9),
    "num_query_tokens": st.integers(1, 40),
    "num_masked": st.integers(0, 3),
    "dim": st.sampled_from([8, 24, 64, 128]),
    "max_tokens": st.sampled_from([1, 7, 60]),
    "rotated": st.booleans(),
    "seed": st.integers(0, 1000),
}


def test_every_scorer_is_compared():
    assert set(SETTINGS) == set(SCORERS)


def made_up(num_docs: int, num_query_tokens: int, num_masked: int, dim: int, max_tokens: int, rotated: bool, seed: int):
    """Return a shard of 4 bits with token weights, its codec, and a query with masked tokens at random positions."""
    rng = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(rng.integers(0, max_tokens + 1, num_docs))]).astype(np.int64)
    num_tokens = int(offsets[-1])
    buckets = np.sort(rng.normal(size=16)).astype(np.float32)
    rotation = random_rotation(dim, seed) if rotated else None
    centroids = normalize(rng.normal(size=(20, dim)))
    codec = ResidualCodec(centroids.astype(np.float16), (buckets[1:] + buckets[:-1]) / 2, buckets, rotation)
    scales = np.stack([rng.uniform(0.7, 1, num_tokens), rng.uniform(0, 0.5 / np.sqrt(dim), num_tokens)], axis=1).astype(np.float16)
    codes, residuals = rng.integers(0, 20, num_tokens).astype(np.uint16), rng.integers(0, 256, (num_tokens, dim // 2)).astype(np.uint8)
    shard = IndexShard(0, offsets, codes, residuals, scales, pa.table({}), 20, weights=rng.uniform(0, 0.4, num_tokens).astype(np.float16))
    vectors = normalize(rng.normal(size=(num_query_tokens + num_masked, dim))).astype(np.float32)
    vectors[rng.choice(len(vectors), num_masked, replace=False)] = 0
    return shard, codec, vectors, rng.uniform(0, 2, len(vectors)).astype(np.float32)


def padded(shard: IndexShard, codec: ResidualCodec) -> EmbeddedTexts:
    """Return the shard's documents as training sees them: float64, rotated back."""
    vectors = decompress(shard.codes, shard.residuals, shard.scales, codec).astype(np.float64)
    vectors = vectors if codec.rotation is None else vectors @ codec.rotation.T.astype(np.float64)
    lengths = np.diff(shard.doc_offsets)
    mask = np.arange(max(1, lengths.max(initial=0)))[None] < lengths[:, None]
    result, weights = np.zeros((*mask.shape, codec.dim)), np.zeros(mask.shape)
    result[mask], weights[mask] = vectors, shard.weights.astype(np.float64) + 1
    return EmbeddedTexts(torch.from_numpy(result), torch.from_numpy(mask), torch.from_numpy(weights))


def searched(
    codec: ResidualCodec, scorer: Scorer, shard: IndexShard, query: np.ndarray, weights: np.ndarray, kernels: Kernels
) -> np.ndarray:
    """Return the [N] scores of engine exact on an index of the scorer."""
    if scorer.name == "trial":
        codec = ResidualCodec(
            codec.centroids,
            codec.cutoffs,
            codec.weights,
            codec.rotation,
            scorer_data=RelationEncoder.of(scorer.to_arrays(), codec.rotation),
        )
    plan_of = Query(codec.rotate(query, kernels), weights)
    terms = SEARCH_SCORERS[scorer.name].terms(plan_of, codec)
    plan = QueryPlan(plan_of, ExactParams(), (shard.num_docs,), scorer_terms=terms)
    [(scores, numbers)] = SCORE_ALL.run([plan], shard, codec, kernels, [None])
    result = np.full(shard.num_docs, -np.inf)
    result[numbers] = scores
    return result


def of_kind(name: str, alignment: str, dim: int, first_match: str = "best") -> Scorer:
    torch.manual_seed(dim)
    trial = TrialConfig(relation_weight=0.5, alignment=alignment, first_match=first_match)
    settings_of = trial if name == "trial" else SETTINGS[name]
    scorer = SCORERS[name](dim, settings_of).eval()
    for parameter in scorer.parameters():
        torch.nn.init.normal_(parameter, std=dim**-0.5)
    return scorer


@pytest.mark.parametrize("name", SETTINGS)
@settings(max_examples=40, deadline=None)
@given(
    **SHAPES,
    alignment=st.sampled_from(["combined", "cosine"]),
    first_match=st.sampled_from(["best", "first_token"]),
    has_weights=st.booleans(),
)
def test_the_torch_form_and_search_agree(name, alignment, first_match, has_weights, **shape):
    shard, codec, query, weights = made_up(**shape)
    scorer = of_kind(name, alignment, codec.dim, first_match)
    has_weights = name == "attention" or (name == "trial" and has_weights)
    if not has_weights:
        shard = IndexShard(0, shard.doc_offsets, shard.codes, shard.residuals, shard.scales, shard.documents, shard.num_centroids)
    documents = padded(shard, codec) if has_weights else _unweighed(shard, codec)
    queries = EmbeddedTexts(
        torch.from_numpy(query.astype(np.float64))[None],
        torch.from_numpy(query.any(axis=1))[None],
        torch.from_numpy(weights.astype(np.float64))[None],
    )
    with torch.no_grad():
        expected = scorer.double()(queries, documents)[0].numpy()
    np.testing.assert_allclose(searched(codec, scorer.float(), shard, query, weights, select("reference")), expected, rtol=1e-5, atol=1e-5)
    if native.available():  # within the rounding of 8-bit products, another token may win
        scores = searched(codec, scorer, shard, query, weights, select("native"))
        assert (~np.isclose(scores, expected, atol=6e-3 * max(1, weights.sum()))).sum() <= max(1, 0.1 * len(scores))


def _unweighed(shard: IndexShard, codec: ResidualCodec) -> EmbeddedTexts:
    weighed = IndexShard(
        0,
        shard.doc_offsets,
        shard.codes,
        shard.residuals,
        shard.scales,
        shard.documents,
        20,
        weights=np.zeros(len(shard.codes), np.float16),
    )
    texts = padded(weighed, codec)
    return EmbeddedTexts(texts.vectors, texts.mask)


def golden_shard(vectors: np.ndarray, mask: np.ndarray, weights: np.ndarray | None) -> tuple[IndexShard, ResidualCodec]:
    """Return documents in which every token is its own centroid."""
    codec = ResidualCodec(vectors[mask], np.zeros(1), np.zeros(2, np.float32))
    num_tokens, offsets = int(mask.sum()), np.concatenate([[0], np.cumsum(mask.sum(axis=1))])
    codes, residuals = np.arange(num_tokens, dtype=np.uint16), np.zeros((num_tokens, codec.dim // 8), np.uint8)
    token_weights = None if weights is None else weights[mask]
    return IndexShard(
        0, offsets, codes, residuals, np.ones((num_tokens, 2), np.float16), pa.table({}), num_tokens, weights=token_weights
    ), codec


@pytest.mark.parametrize("alignment", ["combined", "cosine"])
def test_search_gives_the_golden_scores_of_trial(alignment):
    g = golden("trial")
    shard, codec = golden_shard(g["d"], g["d_mask"], None)
    scores = searched(
        codec, golden_trial(torch.float32, alignment), shard, g["q"].astype(np.float32), g["w"].astype(np.float32), select("reference")
    )
    np.testing.assert_allclose(scores, g[f"scores_{alignment}"], atol=2e-5)


def test_search_gives_the_golden_scores_of_colbert_att():
    """Weights are float64 here; an index stores weight - 1 in float16."""
    g = golden("colbert_att")
    query = np.where(g["q_mask"][:, None], g["q"], 0).astype(np.float32)
    ones = np.ones(len(query), np.float32)
    importances = {
        "scores": (np.exp(g["att_q"]), g["delta"]),
        "scores_delta1": (np.exp(g["att_q"]), ones[:4]),
        "scores_doc_only": (ones, ones[:4]),
    }
    for name, (importance, delta) in importances.items():
        shard, codec = golden_shard(g["d"], g["d_mask"], np.exp(delta[:, None] * g["att_column_mean"]) - 1)
        scorer = of_kind("attention", "combined", codec.dim)
        scores = searched(codec, scorer, shard, query, importance.astype(np.float32), select("reference"))
        np.testing.assert_allclose(scores, g[name], atol=2e-5)
    assert np.abs(g["scores"] - g["scores_max_of_product"]).max() > 1e-3


def test_a_trained_relation_is_saved_and_loaded_unchanged(tmp_path):
    relation = golden_trial(torch.float32, "cosine").to_arrays()
    (tmp_path / "relation").write_bytes(relation.to_bytes())
    again = load_relation(str(tmp_path / "relation"), relation.dim)
    assert isinstance(again, Relation) and again.alignment == "cosine" and again.weight == relation.weight
    np.testing.assert_array_equal(again.inner_weight, relation.inner_weight)
    np.testing.assert_array_equal(again.outer_bias, relation.outer_bias)
