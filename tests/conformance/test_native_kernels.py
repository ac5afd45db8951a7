"""The compiled kernels against the reference, on every instruction set of this processor, with random shapes."""

import os
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_lir.base.errors import KernelUnavailable
from ray_lir.embeddings.relation import Relation
from ray_lir.engines.cost import COSTS
from ray_lir.index.codec import ResidualCodec, random_rotation
from ray_lir.index.relation import RelationEncoder, mish
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels, native, select
from ray_lir.kernels.reference import REFERENCE

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed")
SETS = native.instruction_sets()
FEWER = int(os.environ.get("FEWER_EXAMPLES", "1"))
"""Divisor of the number of random shapes, because an emulated processor is slow (tests/emulation/arm.sh)."""
SHAPES = {
    "num_docs": st.integers(1, 30),
    "num_query_tokens": st.integers(1, 70),
    "dim": st.sampled_from([8, 24, 40, 64, 96, 128, 200]),
    "nbits": st.sampled_from([1, 2, 4, 8]),
    "num_centroids": st.sampled_from([1, 7, 33, 300]),
    "max_tokens": st.sampled_from([1, 5, 50, 120]),
    "seed": st.integers(0, 1000),
    "memory": st.sampled_from([None, 0, 3]),
    "byte_dims": st.sampled_from([None, None, 2, 3.4, 4.3, 6.7, 8]),
}


WORDS = 2e-4
"""Largest difference of a product of two vectors of length one in 16-bit words from that in float32: 1.2e-4 measured."""


def unit(rows: np.ndarray) -> np.ndarray:
    return normalize(rows.astype(np.float32))


def made_up(
    num_docs: int,
    num_query_tokens: int,
    dim: int,
    nbits: int,
    num_centroids: int,
    max_tokens: int,
    seed: int,
    memory: int | None = None,
    byte_dims: float | None = None,
):
    """Return a shard with some empty documents, its codec, a query and its weights, and the random generator.

    With `memory` and 1 or 2 bits, the codec has a trellis that remembers this number of bits. With `byte_dims` too, its bytes have about
    this number of dimensions, and its tokens refer to pairs of scales.
    """
    rng = np.random.default_rng(seed)
    doc_offsets = np.concatenate([[0], np.cumsum(rng.integers(0, max_tokens + 1, num_docs))]).astype(np.int64)
    num_tokens = int(doc_offsets[-1])
    weights = np.sort(rng.normal(size=2**nbits)).astype(np.float32)
    cutoffs = (weights[1:] + weights[:-1]) / 2
    if memory is not None and nbits <= 2:
        num_bytes = min(dim // 2, round(-(-dim // byte_dims))) if byte_dims else dim * nbits // 8
        cutoffs, weights = cutoffs[:0], rng.normal(size=(256 << memory, -(-dim // num_bytes))).astype(np.float32)
    has_pairs = byte_dims is not None and weights.ndim == 2
    codec = ResidualCodec(unit(rng.normal(size=(num_centroids, dim))).astype(np.float16), cutoffs, weights)
    if has_pairs:
        pairs = np.stack([rng.uniform(0.7, 1, 256), rng.uniform(0, 0.5 / np.sqrt(dim), 256)], axis=1).astype(np.float32)
        codec = replace(codec, residual_bytes=num_bytes, scale_pairs=pairs, token_scale=True)
    codes = rng.integers(0, num_centroids, num_tokens).astype(codec.code_dtype)
    residuals = rng.integers(0, 256, (num_tokens, codec.packed_bytes)).astype(np.uint8)
    scales = np.stack([rng.uniform(0.7, 1, num_tokens), rng.uniform(0, 0.5 / np.sqrt(dim), num_tokens)], axis=1).astype(np.float16)
    scales = rng.integers(0, 256, num_tokens).astype(np.uint8) if has_pairs else scales
    shard = IndexShard(0, doc_offsets, codes, residuals, scales, pa.table({}), num_centroids)
    query = unit(rng.normal(size=(num_query_tokens, dim)))
    return shard, codec, query, rng.uniform(0, 2, num_query_tokens).astype(np.float32), rng


def tolerance(codec: ResidualCodec, weights: np.ndarray) -> float:
    """Return the largest change of a score by rounding: bucket weights have 7 bits, and residuals at most half the length of a vector."""
    # Errors of 128 dimensions average out: the largest of 360 cases is a third of this.
    return max(1, weights.sum()) * (3e-3 + np.abs(codec.weights).max() / 504)


def agree(scores: np.ndarray, expected: np.ndarray, atol: float) -> None:
    """Assert that nearly all scores agree; if two tokens differ by less than the rounding, either may win and change later terms."""
    close = np.isclose(scores, expected, atol=atol)
    assert (~close).sum() <= max(2, 0.1 * close.size)
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(expected))


def between(values: np.ndarray, share: float) -> float:
    """Return a threshold above about this fraction of the values, half way between two values that are not nearly equal if possible."""
    ordered = np.sort(values)
    gaps = np.diff(ordered) - 1e-2 * np.abs(np.arange(1, len(ordered)) / len(ordered) - share)
    return float(ordered[: 1 + len(gaps)][gaps.argmax() :][:2].mean()) if len(gaps) else float(ordered[0]) - 1


def every_set(check) -> None:
    """Run a check for every instruction set, with one thread and with three; all must agree to the bit."""
    results = [check(select(f"native:{name}", threads)) for name in SETS for threads in (1, 3)]
    for result in results[1:]:
        for array, first in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(array, first)


def weighed(shard: IndexShard, rng: np.random.Generator) -> IndexShard:
    """Return the shard with token weights from 0.5 to 2, equal within a document.

    If two tokens of a document are equally good, rounding decides which one wins. test_weighted_engines.py has a weight for each token.
    """
    return replace(shard, weights=np.repeat(rng.uniform(-0.5, 1, shard.num_docs), np.diff(shard.doc_offsets)).astype(np.float16))


def related(codec: ResidualCodec, strength: float, by_cosine: bool, rng: np.random.Generator) -> ResidualCodec:
    """Return the codec with a relation encoder that gives relations of about `strength`."""
    dim = codec.dim
    inner, outer = rng.normal(size=(dim, 2 * dim)) / np.sqrt(dim), rng.normal(size=(dim, dim)) / dim
    rows = rng.normal(size=(3, dim)) * 0.1 + np.array([[0], [1], [0]])
    relation = Relation(
        inner, rows[0], rows[1], rows[2], outer, rng.normal(size=dim) / dim, strength, "cosine" if by_cosine else "combined"
    )
    return replace(codec, scorer_data=RelationEncoder.of(relation, None))


@settings(max_examples=60 // FEWER, deadline=None)
@given(**SHAPES, has_weights=st.booleans())
def test_maxsim_from_codes_and_residuals_equals_the_reference(has_weights, **shape):
    shard, codec, query, weights, rng = made_up(**shape)
    shard = weighed(shard, rng) if has_weights else shard
    chosen = rng.permutation(shard.num_docs)[: rng.integers(0, shard.num_docs + 1)]
    queries, importance = [query, query[:3], query[:1] * 0], [weights, weights[:3], weights[:1]]
    tables = [REFERENCE.centroid_scores(q, codec) for q in queries]
    expected = REFERENCE.residual_maxsim(queries, importance, tables, shard, codec)

    def check(kernels: Kernels):
        tables = [kernels.centroid_scores(q, codec) for q in queries]
        scores = kernels.residual_maxsim(queries, importance, tables, shard, codec)
        some = kernels.residual_maxsim(queries, importance, tables, shard, codec, chosen)
        np.testing.assert_allclose(scores, expected, atol=(1 + has_weights) * tolerance(codec, weights))
        np.testing.assert_array_equal(some, scores[:, chosen])
        return scores, some

    every_set(check)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_queries_with_equal_values_equal_the_reference(nbits):
    """With 127 for every value, the sums of 4 products would be above 2^15, and AVX2 adds them in 16 bits."""
    shard, codec, _, _, rng = made_up(20, 1, 128, nbits, 33, 50, 7)
    signs = np.stack([np.ones(128), -np.ones(128), np.resize([1, -1], 128), np.repeat(np.resize([1, -1], 64), 2), np.arange(128) < 8])
    query = unit(np.concatenate([signs, signs + rng.normal(size=signs.shape) / 10]))
    weights = np.ones(len(query), np.float32)
    expected = REFERENCE.residual_maxsim([query], [weights], [REFERENCE.centroid_scores(query, codec)], shard, codec)

    def check(kernels: Kernels):
        scores = kernels.residual_maxsim([query], [weights], [kernels.centroid_scores(query, codec)], shard, codec)
        np.testing.assert_allclose(scores, expected, atol=tolerance(codec, weights))
        return scores

    every_set(check)


@settings(max_examples=60 // FEWER, deadline=None)
@given(**SHAPES)
def test_centroid_interaction_equals_the_reference(**shape):
    shard, codec, query, weights, rng = made_up(**shape)
    chosen = rng.permutation(shard.num_docs)[: rng.integers(0, shard.num_docs + 1)]
    table = REFERENCE.centroid_scores(query, codec)
    threshold = between(table.max(axis=1), 0.4)

    def check(kernels: Kernels):
        wide = kernels.centroid_scores(query, codec)
        np.testing.assert_allclose(wide[:, : len(query)], table, atol=5e-4)
        everything = kernels.centroid_maxsim(wide, weights, shard)
        kept = kernels.centroid_maxsim(wide, weights, shard, threshold, chosen)
        np.testing.assert_allclose(everything, REFERENCE.centroid_maxsim(table, weights, shard), atol=3e-4 * max(1, weights.sum()))
        np.testing.assert_allclose(
            kept, REFERENCE.centroid_maxsim(table, weights, shard, threshold, chosen), atol=3e-4 * max(1, weights.sum())
        )
        scanned = kernels.scan_codes(kernels.scan_table(wide), weights, shard)
        np.testing.assert_allclose(scanned, everything, atol=0.01 * max(1, weights.sum()))  # one step of a byte is up to 2 / 255
        return wide, everything, kept, scanned

    every_set(check)


@settings(max_examples=60 // FEWER, deadline=None)
@given(**SHAPES, has_weights=st.booleans())
def test_maxsim_of_the_nearest_tokens_equals_the_reference(has_weights, **shape):
    shard, codec, query, weights, rng = made_up(**shape)
    shard = weighed(shard, rng) if has_weights else shard
    query[len(query) // 2], weights[len(query) // 3] = 0, 0  # a masked token, and one without weight
    chosen = np.sort(rng.permutation(shard.num_docs)[: rng.integers(0, shard.num_docs + 1)])

    def check(kernels: Kernels):
        table = kernels.scan_table(kernels.centroid_scores(query, codec))
        scores = kernels.nearest_maxsim(query, weights, table, shard, codec, np.arange(shard.num_docs))
        rounded = table.lows + table.bytes[:, : len(table.lows)] * table.steps  # equal bytes are equal scores
        expected = REFERENCE.nearest_maxsim(query, weights, rounded[:, : len(query)], shard, codec, np.arange(shard.num_docs))
        np.testing.assert_allclose(scores, expected, atol=(1 + has_weights) * tolerance(codec, weights))
        some = kernels.nearest_maxsim(query, weights, table, shard, codec, chosen)
        np.testing.assert_array_equal(some, scores[chosen])
        return scores, some

    every_set(check)


@pytest.mark.parametrize("num_tokens", [255, 256, 257, 700])
def test_nearest_tokens_of_long_documents_equal_the_reference(num_tokens):
    shard, codec, query, weights, _ = made_up(3, 40, 64, 4, 5, 1, 0)
    rng = np.random.default_rng(num_tokens)
    shard = replace(
        shard,
        doc_offsets=np.array([0, num_tokens, num_tokens, 2 * num_tokens]),
        codes=rng.integers(0, 5, 2 * num_tokens).astype(codec.code_dtype),
        residuals=rng.integers(0, 256, (2 * num_tokens, 32)).astype(np.uint8),
        scales=np.full((2 * num_tokens, 2), [0.9, 0.05], np.float16),
    )
    every = np.arange(3)

    def check(kernels: Kernels):
        table = kernels.scan_table(kernels.centroid_scores(query, codec))
        scores = kernels.nearest_maxsim(query, weights, table, shard, codec, every)
        rounded = table.lows + table.bytes[:, :40] * table.steps
        expected = REFERENCE.nearest_maxsim(query, weights, rounded, shard, codec, every)
        np.testing.assert_allclose(scores, expected, atol=tolerance(codec, weights))
        return (scores,)

    every_set(check)


@settings(max_examples=60 // FEWER, deadline=None)
@given(**SHAPES)
def test_distinct_codes_keep_the_order_of_each_documents_tokens(**shape):
    shard, *_ = made_up(**shape)
    codes, offsets = native.distinct_codes(shard)
    assert codes.dtype == shard.codes.dtype
    documents = [shard.codes[shard.doc_offsets[d] : shard.doc_offsets[d + 1]].tolist() for d in range(shard.num_docs)]
    assert [codes[offsets[d] : offsets[d + 1]].tolist() for d in range(shard.num_docs)] == [list(dict.fromkeys(each)) for each in documents]
    assert native.distinct_codes(shard)[0] is codes


def test_a_code_without_a_centroid_is_refused():
    with pytest.raises(ValueError, match="a code without a centroid"):
        native.module().distinct_codes(np.array([0, 7], np.uint16), np.array([0, 2]), 7)


@settings(max_examples=60 // FEWER, deadline=None)
@given(
    **SHAPES,
    strength=st.sampled_from([0.0, 0.01, 0.3]),
    by_cosine=st.booleans(),
    from_first_token=st.booleans(),
    has_weights=st.booleans(),
)
def test_relations_from_codes_and_residuals_equal_the_reference(strength, by_cosine, from_first_token, has_weights, **shape):
    shard, codec, query, weights, rng = made_up(**shape)
    shard = weighed(shard, rng) if has_weights else shard
    codec = related(codec, strength, by_cosine, rng)
    codec = replace(codec, scorer_data=replace(codec.scorer_data, from_first_token=from_first_token))
    chosen = rng.permutation(shard.num_docs)[: rng.integers(0, shard.num_docs + 1)]
    terms = codec.scorer_data.of_query(query)
    expected = REFERENCE.relation_maxsim(query, weights, terms, REFERENCE.centroid_scores(query, codec), shard, codec)

    def check(kernels: Kernels):
        table = kernels.centroid_scores(query, codec)
        scores = kernels.relation_maxsim(query, weights, terms, table, shard, codec)
        some = kernels.relation_maxsim(query, weights, terms, table, shard, codec, chosen)
        agree(scores, expected, (1 + has_weights) * tolerance(codec, weights))
        np.testing.assert_array_equal(some, scores[chosen])
        if strength == 0 and not has_weights:
            maxsim = kernels.residual_maxsim([query], [weights], [table], shard, codec)[0]
            np.testing.assert_allclose(scores, maxsim, atol=1e-5 * max(1, weights.sum()))
        return scores, some

    every_set(check)


def surely_nearest(shard: IndexShard, codec: ResidualCodec, selectors: np.ndarray, nearest: int) -> np.ndarray:
    """Return whether rounding cannot change the nearest tokens of any query token, for each document."""
    sure = np.ones(shard.num_docs, bool)
    for number in range(shard.num_docs):
        tokens, _ = shard.tokens(np.array([number]))
        vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec)
        ordered = np.sort(selectors[1:] @ vectors.T, axis=1)[:, ::-1]  # the first query token is compared with all tokens
        if len(tokens) > nearest and len(ordered):
            sure[number] = (ordered[:, nearest - 1] - ordered[:, nearest]).min() > 4 * tolerance(codec, np.ones(1))
    return sure


@settings(max_examples=60 // FEWER, deadline=None)
@given(
    **SHAPES,
    strength=st.sampled_from([0.01, 0.3]),
    by_cosine=st.booleans(),
    has_weights=st.booleans(),
    nearest=st.sampled_from([1, 2, 3, 8, 40, 2**40]),
    has_selectors=st.booleans(),
    from_first_token=st.booleans(),
)
def test_relations_of_the_nearest_tokens_equal_the_reference(
    strength, by_cosine, has_weights, nearest, has_selectors, from_first_token, **shape
):
    shard, codec, query, weights, rng = made_up(**shape)
    shard = weighed(shard, rng) if has_weights else shard
    codec = related(codec, strength, by_cosine, rng)
    codec = replace(codec, scorer_data=replace(codec.scorer_data, from_first_token=from_first_token))
    chosen = rng.permutation(shard.num_docs)[: rng.integers(0, shard.num_docs + 1)]
    terms = codec.scorer_data.of_query(query)
    wide = replace(terms, upper=terms.upper + 100)
    selectors = unit(query + 0.05 * rng.normal(size=query.shape)) if has_selectors else None
    expected = REFERENCE.relation_maxsim(query, weights, terms, np.zeros(0), shard, codec, None, nearest, selectors)
    sure = surely_nearest(shard, codec, selectors if has_selectors else query, nearest)

    def check(kernels: Kernels):
        table = kernels.centroid_scores(query, codec)
        limits = (nearest, selectors, kernels.centroid_scores(selectors, codec)) if has_selectors else (nearest,)
        scores = kernels.relation_maxsim(query, weights, terms, table, shard, codec, None, *limits)
        some = kernels.relation_maxsim(query, weights, terms, table, shard, codec, chosen, *limits)
        agree(scores[sure], expected[sure], (1 + has_weights) * tolerance(codec, weights))
        np.testing.assert_array_equal(some, scores[chosen])
        np.testing.assert_array_equal(kernels.relation_maxsim(query, weights, wide, table, shard, codec, None, *limits), scores)
        if nearest >= shape["max_tokens"]:
            np.testing.assert_array_equal(scores, kernels.relation_maxsim(query, weights, terms, table, shard, codec))
        return scores, some

    every_set(check)


@pytest.mark.parametrize("nearest", [1, 2, 3, 5, 60])
def test_of_equally_near_tokens_the_first_are_related(nearest):
    """The query does not see the second half of the dimensions, so many tokens have equal cosines but different relations."""
    dim, num_tokens = 64, 70
    rng = np.random.default_rng(1)
    seen, unseen = unit(rng.normal(size=(7, dim // 2))), unit(rng.normal(size=(10, dim // 2)))
    centroids = np.concatenate([np.repeat(seen, 10, axis=0), np.tile(unseen, (7, 1))], axis=1) / np.sqrt(2)
    buckets = np.zeros(16, np.float32)
    codec = related(ResidualCodec(centroids.astype(np.float16), buckets[1:], buckets), 5.0, False, rng)
    codes, scales = rng.permutation(num_tokens).astype(np.uint16), np.repeat(np.float16([[1, 0]]), num_tokens, axis=0)
    shard = IndexShard(0, np.array([0, num_tokens]), codes, np.zeros((num_tokens, dim // 2), np.uint8), scales, pa.table({}), num_tokens)
    query = unit(np.concatenate([rng.normal(size=(12, dim // 2)), np.zeros((12, dim // 2))], axis=1))
    weights, terms = np.ones(len(query), np.float32), codec.scorer_data.of_query(query)
    expected, everything = (
        REFERENCE.relation_maxsim(query, weights, terms, REFERENCE.centroid_scores(query, codec), shard, codec, None, each)
        for each in (nearest, None)
    )
    assert nearest == 60 or abs(expected[0] - everything[0]) > 0.1

    def check(kernels: Kernels):
        scores = kernels.relation_maxsim(query, weights, terms, kernels.centroid_scores(query, codec), shard, codec, None, nearest)
        np.testing.assert_allclose(scores, expected, atol=0.1)
        return [scores]

    every_set(check)


def test_a_negative_number_of_nearest_tokens_is_refused():
    shard, codec, query, weights, rng = made_up(3, 4, 32, 4, 9, 20, 0)
    codec = related(codec, 0.1, False, rng)
    kernels, terms = select("native"), codec.scorer_data.of_query(query)
    with pytest.raises(ValueError, match="below 0"):
        kernels.relation_maxsim(query, weights, terms, kernels.centroid_scores(query, codec), shard, codec, None, -1)


def test_selectors_of_another_shape_are_refused():
    shard, codec, query, weights, rng = made_up(3, 4, 32, 4, 9, 20, 0)
    codec = related(codec, 0.1, False, rng)
    kernels, terms = select("native"), codec.scorer_data.of_query(query)
    table = kernels.centroid_scores(query, codec)
    for limits in ((2, query[:3], table), (2, query, table[:5]), (2, query), (None, query, table)):
        with pytest.raises(ValueError, match="selectors"):
            kernels.relation_maxsim(query, weights, terms, table, shard, codec, None, *limits)


@settings(max_examples=40 // FEWER, deadline=None)
@given(st.sampled_from([8, 40, 128]), st.sampled_from([0.0, 1.0, 3.0]), st.sampled_from([0.0, 0.1, 2.0]), st.integers(0, 1000))
def test_no_relation_is_above_its_bound(dim, lift, shift, seed):
    """Gradient ascent on the output of the norm finds the largest relation of any tokens."""
    rng = np.random.default_rng(seed)
    eye, rows = np.eye(dim, 2 * dim), [rng.normal(size=dim), rng.normal(size=dim) + lift, shift * rng.normal(size=dim)]
    relation = Relation(eye, *rows, rng.normal(size=(dim, dim)) / dim, rng.normal(size=dim) / dim, 1.0, "combined")
    encoder = RelationEncoder.of(relation, None)
    part = encoder.of_query(unit(rng.normal(size=(4, dim))))
    for products, constant, upper in zip(part.products, part.constants, part.upper, strict=True):
        slopes, z = products.astype(np.float64) * encoder.scale, rng.normal(size=dim) + 1e-9
        for _ in range(100):
            z = z - z.mean()
            z *= np.sqrt(dim) / np.linalg.norm(z)
            assert mish(z * encoder.scale + encoder.shift) @ products + constant <= upper
            y = z * encoder.scale + encoder.shift
            step = slopes * (mish(y + 1e-3) - mish(y - 1e-3))
            z += 0.3 * np.sqrt(dim) * step / max(np.linalg.norm(step), 1e-9)


def test_pruning_does_not_change_relations():
    """Wide bounds compute every pair; the true bounds compute only pairs that can win. The scores are the same to the bit."""
    shard, codec, query, weights, rng = made_up(12, 20, 64, 4, 33, 120, 1)
    for strength in (0.003, 0.03):
        codec = related(codec, strength, False, rng)
        terms = codec.scorer_data.of_query(query)
        wide = replace(terms, upper=terms.upper + 100)
        for name in SETS:
            kernels = select(f"native:{name}")
            table = kernels.centroid_scores(query, codec)
            scores = [kernels.relation_maxsim(query, weights, each, table, shard, codec) for each in (terms, wide)]
            np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("dim", [32, 128, 192])
def test_approximate_relations_are_within_two_percent_of_the_spread(dim):
    """With documents of one token, no other token can win."""
    shard, codec, query, _, rng = made_up(8, 2, dim, 4, 100, 400, 1)
    codec = related(codec, 0.1, False, rng)
    shard = replace(shard, doc_offsets=np.arange(len(shard.codes) + 1))
    terms, weights = codec.scorer_data.of_query(query), np.float32([0, 1])
    none = replace(terms, products=0 * terms.products, constants=0 * terms.constants)

    def relations(kernels: Kernels) -> np.ndarray:
        scores = [
            kernels.relation_maxsim(query, weights, each, kernels.centroid_scores(query, codec), shard, codec) for each in (terms, none)
        ]
        return scores[0] - scores[1]

    expected = relations(select("reference"))
    for name in SETS:
        errors = relations(select(f"native:{name}")) - expected
        assert errors.std() < 0.02 * expected.std() and abs(errors.mean()) < 0.01 * expected.std()


@settings(max_examples=60 // FEWER, deadline=None)
@given(**SHAPES, floor=st.booleans(), has_weights=st.booleans())
def test_posting_scores_equal_the_reference(floor, has_weights, **shape):
    shard, codec, query, weights, rng = made_up(**shape)
    shard = weighed(shard, rng) if has_weights else shard
    nprobe = int(rng.integers(1, codec.num_centroids + 1))
    bound, t_prime = int(rng.integers(nprobe, codec.num_centroids + 1)), int(rng.integers(1, len(shard.codes) + 2))
    table = select("native").centroid_scores(query, codec)
    sizes = np.diff(shard.posting_offsets)
    cells, cell_scores, imputed = REFERENCE.probe(table, len(query), sizes, nprobe, bound, t_prime)
    arguments = (query, weights, cells, cell_scores, imputed, floor, shard, codec)
    expected, numbers = REFERENCE.posting_scores(*arguments)

    def check(kernels: Kernels):
        found, scores, at = kernels.probe(table, len(query), sizes, nprobe, bound, t_prime)
        np.testing.assert_array_equal(found, cells)
        np.testing.assert_array_equal(scores, cell_scores)
        np.testing.assert_array_equal(at, imputed)
        np.testing.assert_array_equal(kernels.candidates(np.unique(cells), shard), REFERENCE.candidates(np.unique(cells), shard))
        scores, documents = kernels.posting_scores(*arguments)
        np.testing.assert_array_equal(documents, numbers)
        np.testing.assert_allclose(scores, expected, atol=(1 + has_weights) * tolerance(codec, weights))
        return scores, documents

    every_set(check)


@settings(max_examples=40 // FEWER, deadline=None)
@given(**SHAPES, halves=st.booleans(), euclidean=st.booleans())
def test_assignment_and_compression_equal_the_reference(halves, euclidean, **shape):
    _, codec, _, _, rng = made_up(**shape)
    vectors = unit(rng.normal(size=(int(rng.integers(1, 80)), codec.dim))).astype(np.float16 if halves else np.float32)
    rotation = random_rotation(codec.dim, 0)
    nearness = unit(vectors) @ codec.centroids_f32.T

    def check(kernels: Kernels):
        codes, near = kernels.assign(vectors, codec.centroids_f32, euclidean)
        best = nearness - (np.square(codec.centroids_f32).sum(axis=1) / 2 if euclidean else 0)
        np.testing.assert_allclose(np.take_along_axis(best, codes[:, None], axis=1)[:, 0], best.max(axis=1), atol=WORDS)
        np.testing.assert_allclose(near, best.max(axis=1), atol=WORDS)
        cells, offsets = codec.centroids_f32[::9], np.minimum(9 * np.arange(len(codec.centroids_f32[::9]) + 1), codec.num_centroids)
        every_cell = kernels.nearest_cells(vectors, cells, len(cells))
        np.testing.assert_array_equal(np.sort(every_cell), np.broadcast_to(np.arange(len(cells)), every_cell.shape))
        in_all_cells = kernels.assign_in_cells(vectors, codec.centroids_f32, offsets, np.sort(every_cell))
        np.testing.assert_array_equal(in_all_cells, kernels.assign(vectors, codec.centroids_f32, True)[0])
        in_one_cell = kernels.assign_in_cells(vectors, codec.centroids_f32, offsets, every_cell[:, :1])
        expected = REFERENCE.assign_in_cells(vectors, codec.centroids_f32, offsets, every_cell[:, :1])
        assert (in_one_cell == expected).mean() >= 0.9 or (in_one_cell != expected).sum() <= 1  # nearly equal distances may change places
        rotated = kernels.rotate(vectors, rotation)
        np.testing.assert_allclose(rotated, REFERENCE.rotate(vectors, rotation), atol=1e-6)
        np.testing.assert_array_equal(rotated[-1:], kernels.rotate(vectors[-1:], rotation))
        results = [codes, near, rotated, in_one_cell]
        for token_scale in (False, True) if codec.scale_pairs is None else (True,):
            results += list(check_compression(kernels, vectors, codes, replace(codec, token_scale=token_scale)))
        return results

    every_set(check)


@settings(max_examples=40 // FEWER, deadline=None)
@given(**SHAPES, halves=st.booleans(), length=st.sampled_from([0.01, 0.3, 3.0, 100.0]))
def test_assignment_compares_directions_whatever_the_length_of_vectors(halves, length, **shape):
    """Vectors of other lengths get the codes, values and cells of the same vectors at length one, in every set."""
    _, codec, _, _, rng = made_up(**shape)
    lengths = length * rng.uniform(0.5, 2, (50, 1))
    vectors = (lengths * unit(rng.normal(size=(50, codec.dim)))).astype(np.float16 if halves else np.float32)
    centroids = codec.centroids_f32 * rng.uniform(0.5, 1, (codec.num_centroids, 1)).astype(np.float32)
    products = unit(vectors) @ centroids.T
    nearness = products - np.square(centroids).sum(axis=1) / 2
    nprobe = min(5, len(centroids))
    ordered = -np.sort(-nearness, axis=1)

    def value(codes: np.ndarray) -> np.ndarray:
        return np.take_along_axis(nearness, codes.reshape(len(vectors), -1), axis=1)

    def check(kernels: Kernels):
        codes, near = kernels.assign(vectors, centroids, euclidean=True)
        np.testing.assert_allclose(value(codes), ordered[:, :1], atol=WORDS)
        np.testing.assert_allclose(near, ordered[:, 0], atol=WORDS)
        np.testing.assert_allclose(kernels.assign(vectors, centroids)[1], products.max(axis=1), atol=WORDS)
        cells = kernels.nearest_cells(vectors, centroids, nprobe)
        np.testing.assert_allclose(value(cells), ordered[:, :nprobe], atol=WORDS)
        own = kernels.assign_in_cells(vectors, centroids, np.arange(len(centroids) + 1), cells)
        np.testing.assert_allclose(value(own), ordered[:, :1], atol=WORDS)
        return codes, near, cells, own

    check(REFERENCE)
    every_set(check)


def check_compression(kernels: Kernels, vectors: np.ndarray, codes: np.ndarray, codec: ResidualCodec) -> tuple[np.ndarray, ...]:
    packed, scales, norms = kernels.compress(vectors, codes, codec)
    expected_packed, expected_scales, expected_norms = REFERENCE.compress(vectors, codes, codec)
    np.testing.assert_allclose(norms, expected_norms, atol=1e-5)
    # A value on a cutoff may fall on either side by its last bit; the scales of such a token change a little too.
    same = (packed == expected_packed).all(axis=1)
    assert same.mean() >= 0.9 or (~same).sum() <= 1
    np.testing.assert_allclose(scales[same], expected_scales[same], rtol=1e-4, atol=1e-6)
    return packed, scales, norms


@settings(max_examples=40 // FEWER, deadline=None)
@given(**SHAPES, halves=st.booleans())
def test_maxsim_of_plain_vectors_equals_the_reference(halves, **shape):
    shard, codec, query, weights, rng = made_up(**shape)
    tokens = rng.normal(size=(len(shard.codes), codec.dim)).astype(np.float16 if halves else np.float32)
    expected = REFERENCE.maxsim([query, query[:2]], [weights, weights[:2]], tokens, shard.doc_offsets)

    def check(kernels: Kernels):
        scores = kernels.maxsim([query, query[:2]], [weights, weights[:2]], tokens, shard.doc_offsets)
        np.testing.assert_allclose(scores, expected, rtol=5e-4, atol=1e-3 * max(1, weights.sum()))
        return (scores,)

    every_set(check)


@given(st.lists(st.integers(-3, 3) | st.just(-np.inf), max_size=400), st.integers(1, 50))
def test_top_k_equals_the_reference(values, k):
    scores = np.array(values, np.float32)
    documents = np.random.default_rng(len(values)).permutation(len(values))
    for array, expected in zip(select("native").top_k(scores, documents, k), REFERENCE.top_k(scores, documents, k), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_arrays_of_inconsistent_sizes_are_refused_without_reading_past_their_ends():
    shard, codec, query, weights, _ = made_up(5, 4, 64, 4, 7, 20, 0)
    kernels = select("native")
    table = kernels.centroid_scores(query, codec)
    for documents in (np.array([5]), np.array([-1])):
        with pytest.raises(ValueError, match="not in the shard"):
            kernels.residual_maxsim([query], [weights], [table], shard, codec, documents)
    with pytest.raises(ValueError, match="other dimensions"):
        kernels.residual_maxsim([query[:, :32]], [weights], [table], shard, codec)
    with pytest.raises(ValueError, match="another query"):
        kernels.residual_maxsim([np.tile(query, (9, 1))], [np.tile(weights, 9)], [table], shard, codec)
    with pytest.raises(ValueError, match="cluster"):
        kernels.candidates(np.array([99]), shard)


def test_every_instruction_set_can_be_selected_by_name_and_has_costs():
    assert SETS[0] == "portable"
    for name in SETS:
        assert select(f"native:{name}").name == f"native:{name}"
        assert f"native:{name}" in COSTS
    with pytest.raises(KernelUnavailable, match="portable"):
        select("native:sse9")


@pytest.mark.parametrize("instruction_set", native.instruction_sets())
def test_probing_continues_if_the_nearest_clusters_hold_few_tokens(instruction_set):
    """The best clusters of the first 8 query tokens are nearly empty, so t_prime is reached much later than usual."""
    rng = np.random.default_rng(3)
    table = rng.random((3000, 16)).astype(np.float16).astype(np.float32)
    table[:, :8] = np.linspace(1, 0, 3000, dtype=np.float16)[:, None]
    sizes = np.where(np.arange(3000) < 900, 1, 500)
    expected = REFERENCE.probe(table, 16, sizes, 4, 1500, 3000)
    assert (expected[2][:8] < 0.71).all() and (expected[2][8:] > 0.9).all()
    found = select(f"native:{instruction_set}").probe(table.astype(np.float16), 16, sizes, 4, 1500, 3000)
    for array, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, reference)
