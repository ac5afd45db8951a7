"""The GPU kernels against the reference: on a GPU if there is one, otherwise under Triton's interpreter."""

import gc
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.base.errors import KernelUnavailable
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import SERVED, VECTOR_ENGINES
from ray_lir.engines.warp import WarpParams
from ray_lir.index.codec import ResidualCodec, random_rotation
from ray_lir.index.residuals import normalize
from ray_lir.kernels import VARIABLE, Kernels, select
from ray_lir.kernels.reference import REFERENCE
from ray_lir.search.searcher import Searcher
from tests.conformance.test_native_kernels import check_compression, made_up, related
from tests.support.synthetic import collection, queries_about
from tests.support.triton_interpreter import cuda_kernels

triton = pytest.importorskip("triton", reason="Triton is not installed: pip install 'ray_lir[gpu]'")
SHAPE = {"num_docs": 12, "num_query_tokens": 5, "dim": 32, "nbits": 4, "num_centroids": 33, "max_tokens": 50, "seed": 0}


@pytest.fixture(scope="module")
def cuda():
    with cuda_kernels() as kernels:
        yield kernels


def check_maxsim(cuda: Kernels, shard, codec, queries, weights, documents=None) -> np.ndarray:
    expected = REFERENCE.residual_maxsim(queries, weights, [], shard, codec, documents)
    scores = cuda.residual_maxsim(queries, weights, [], shard, codec, documents)
    np.testing.assert_allclose(scores, expected, atol=1e-3 * max(1, *(row.sum() for row in weights)))
    return scores


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
@pytest.mark.parametrize("dim", [8, 32, 96])
def test_one_query_scores_like_the_reference_at_every_nbits(cuda, nbits, dim):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"nbits": nbits, "dim": dim, "num_docs": 5})
    check_maxsim(cuda, shard, codec, [query], [weights])


@pytest.mark.parametrize("num_queries", [2, 9])
@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_queries_scored_together_and_alone_have_equal_scores(cuda, num_queries, nbits):
    shard, codec, query, weights, rng = made_up(**SHAPE | {"nbits": nbits, "num_docs": 4})
    queries = [normalize(rng.normal(size=(n, 32)).astype(np.float32)) for n in rng.integers(1, 20, num_queries - 1)]
    queries, importance = [query, *queries], [weights, *(np.ones(len(q), np.float32) for q in queries)]
    together = check_maxsim(cuda, shard, codec, queries, importance)
    alone = cuda.residual_maxsim(queries[:1], importance[:1], [], shard, codec)
    np.testing.assert_allclose(alone[0], together[0], atol=2e-3 * weights.sum())


@pytest.mark.parametrize("num_query_tokens", [1, 17, 300])
def test_queries_of_one_token_and_of_more_than_a_block_score_like_the_reference(cuda, num_query_tokens):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"num_query_tokens": num_query_tokens, "num_docs": 3})
    check_maxsim(cuda, shard, codec, [query], [weights])
    check_maxsim(cuda, shard, codec, [query[:1], query], [weights[:1], weights])


def test_documents_longer_than_a_tile_and_documents_without_tokens(cuda):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"max_tokens": 150, "num_docs": 6, "seed": 3})
    offsets = np.sort(np.concatenate([shard.doc_offsets, shard.doc_offsets[[0, 2, 2, -1]]]))
    shard = replace(shard, doc_offsets=offsets)
    assert shard.lengths(np.arange(shard.num_docs)).max() > 64
    scores = check_maxsim(cuda, shard, codec, [query, query[:2]], [weights, weights[:2]])
    empty = np.diff(offsets) == 0
    assert empty[0] and empty[-1] and (np.isneginf(scores) == empty).all()


def test_given_documents_are_scored_in_their_order(cuda):
    shard, codec, query, weights, rng = made_up(**SHAPE)
    chosen = rng.permutation(shard.num_docs)[:7]
    some = check_maxsim(cuda, shard, codec, [query], [weights], chosen)
    np.testing.assert_array_equal(some, cuda.residual_maxsim([query], [weights], [], shard, codec)[:, chosen])
    assert cuda.residual_maxsim([query], [weights], [], shard, codec, chosen[:0]).shape == (1, 0)


def test_scores_of_nearest_tokens_are_exact_scores(cuda):
    shard, codec, query, weights, _ = made_up(**SHAPE)
    table, some = cuda.scan_table(cuda.centroid_scores(query, codec)), np.array([1, 4, 7])
    expected = cuda.residual_maxsim([query], [weights], [], shard, codec, some)[0]
    np.testing.assert_array_equal(cuda.nearest_maxsim(query, weights, table, shard, codec, some), expected)


def test_a_shard_without_tokens_scores_minus_infinity(cuda):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"max_tokens": 0, "num_docs": 3})
    assert np.isneginf(cuda.residual_maxsim([query], [weights], [], shard, codec)).all()
    assert np.isneginf(cuda.scan_codes(cuda.scan_table(cuda.centroid_scores(query, codec)), weights, shard)).all()


def test_vectors_of_any_length_are_scored_with_half_precision_products(cuda):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"num_docs": 3})
    for factor in (1e-6, 1e6):
        expected = REFERENCE.residual_maxsim([query * factor], [weights], [], shard, codec)
        scores = cuda.residual_maxsim([query * factor], [weights], [], shard, codec)
        np.testing.assert_allclose(scores, expected, atol=1e-3 * factor * weights.sum())


@pytest.mark.parametrize("num_query_tokens", [1, 6, 260])
def test_centroid_interaction_equals_the_reference(cuda, num_query_tokens):
    shard, codec, query, weights, rng = made_up(**SHAPE | {"num_query_tokens": num_query_tokens, "num_docs": 9})
    table = cuda.centroid_scores(query, codec)
    best = [table[shard.codes[a:b]].max(initial=-np.inf) for a, b in pairwise(shard.doc_offsets)]
    order = np.argsort(best)
    threshold, chosen = (
        float(np.mean(np.sort(best)[2:4])),
        np.append(order[:2], rng.permutation(order[2:])[:3]),
    )  # some documents have no tokens left
    np.testing.assert_allclose(table, REFERENCE.centroid_scores(query, codec), atol=1e-5)
    for arguments in [(table, weights, shard), (table, weights, shard, threshold), (table, weights, shard, threshold, chosen)]:
        np.testing.assert_allclose(cuda.centroid_maxsim(*arguments), REFERENCE.centroid_maxsim(*arguments), rtol=1e-5, atol=1e-4)
    np.testing.assert_array_equal(cuda.scan_codes(cuda.scan_table(table), weights, shard), cuda.centroid_maxsim(table, weights, shard))


@pytest.mark.parametrize("floor", [False, True])
def test_probing_and_posting_scores_equal_the_reference(cuda, floor):
    shard, codec, query, weights, _ = made_up(**SHAPE | {"num_docs": 30})
    table, sizes = REFERENCE.centroid_scores(query, codec), np.diff(shard.posting_offsets)
    table[5] = table[3]  # ties go to the lower number
    probed = cuda.probe(table, len(query), sizes, 4, 9, 100)
    for found, expected in zip(probed, REFERENCE.probe(table, len(query), sizes, 4, 9, 100), strict=True):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(cuda.candidates(np.unique(probed[0]), shard), REFERENCE.candidates(np.unique(probed[0]), shard))
    scores, documents = cuda.posting_scores(query, weights, *probed, floor, shard, codec)
    expected, numbers = REFERENCE.posting_scores(query, weights, *probed, floor, shard, codec)
    np.testing.assert_array_equal(documents, numbers)
    np.testing.assert_allclose(scores, expected, atol=1e-3)


@pytest.mark.parametrize("halves", [False, True])
def test_assignment_rotation_and_compression_equal_the_reference(cuda, halves):
    _, codec, _, _, rng = made_up(**SHAPE)
    vectors = normalize(rng.normal(size=(70, 32)).astype(np.float32)).astype(np.float16 if halves else np.float32)
    for euclidean in (False, True):
        codes, near = cuda.assign(vectors, codec.centroids_f32, euclidean)
        expected, nearness = REFERENCE.assign(vectors, codec.centroids_f32, euclidean)
        np.testing.assert_array_equal(codes, expected)
        np.testing.assert_allclose(near, nearness, atol=1e-5)
    cells, offsets = codec.centroids_f32[::9], np.array([0, 9, 9, 27, 33])  # the second cell holds none
    for nprobe in (1, 2, 4):
        probes = cuda.nearest_cells(vectors, cells, nprobe)
        np.testing.assert_array_equal(probes, REFERENCE.nearest_cells(vectors, cells, nprobe))
        expected = REFERENCE.assign_in_cells(vectors, codec.centroids_f32, offsets, probes)
        np.testing.assert_array_equal(cuda.assign_in_cells(vectors, codec.centroids_f32, offsets, probes), expected)
    rotation = random_rotation(32, 0)
    np.testing.assert_allclose(cuda.rotate(vectors, rotation), REFERENCE.rotate(vectors, rotation), atol=1e-6)
    for token_scale in (False, True):
        check_compression(cuda, vectors, codes, ResidualCodec(codec.centroids, codec.cutoffs, codec.weights, token_scale=token_scale))


def test_maxsim_of_plain_vectors_equals_the_reference(cuda):
    shard, _, query, weights, rng = made_up(**SHAPE | {"seed": 4})
    tokens = rng.normal(size=(len(shard.codes), 32)).astype(np.float16)
    arguments = ([query, query[:2]], [weights, weights[:2]], tokens, shard.doc_offsets)
    np.testing.assert_allclose(cuda.maxsim(*arguments), REFERENCE.maxsim(*arguments), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("num_query_tokens", [2, 40])
def test_token_weights_apply_to_winning_tokens(cuda, num_query_tokens):
    shard, codec, query, weights, rng = made_up(**SHAPE | {"num_query_tokens": num_query_tokens, "max_tokens": 80})
    shard = replace(shard, weights=rng.uniform(-0.5, 1, len(shard.codes)).astype(np.float16))
    expected = REFERENCE.residual_maxsim([query, query[:1]], [weights, weights[:1]], [], shard, codec)
    scores = cuda.residual_maxsim([query, query[:1]], [weights, weights[:1]], [], shard, codec)
    assert np.isclose(scores, expected, atol=2e-3 * weights.sum()).mean() > 0.9  # of two nearly equal tokens either may win
    table, sizes = REFERENCE.centroid_scores(query, codec), np.diff(shard.posting_offsets)
    probed = REFERENCE.probe(table, len(query), sizes, 4, 9, 100)
    for floor in (False, True):
        totals, documents = cuda.posting_scores(query, weights, *probed, floor, shard, codec)
        expected_totals, numbers = REFERENCE.posting_scores(query, weights, *probed, floor, shard, codec)
        np.testing.assert_array_equal(documents, numbers)
        np.testing.assert_allclose(totals, expected_totals, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("by_cosine", [False, True])
@pytest.mark.parametrize("has_weights", [False, True])
@pytest.mark.parametrize("from_first_token", [False, True])
def test_relations_equal_the_reference(cuda, by_cosine, has_weights, from_first_token):
    shard, codec, query, weights, rng = made_up(**SHAPE | {"num_query_tokens": 9, "dim": 24, "num_docs": 7})
    codec = related(codec, 0.3, by_cosine, rng)
    codec = replace(codec, scorer_data=replace(codec.scorer_data, from_first_token=from_first_token))
    shard = replace(shard, weights=rng.uniform(-0.5, 1, len(shard.codes)).astype(np.float16)) if has_weights else shard
    terms, chosen = codec.scorer_data.of_query(query), rng.permutation(shard.num_docs)[:3]
    expected = REFERENCE.relation_maxsim(query, weights, terms, None, shard, codec)
    scores = cuda.relation_maxsim(query, weights, terms, None, shard, codec)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(cuda.relation_maxsim(query, weights, terms, None, shard, codec, chosen), scores[chosen])


@pytest.mark.parametrize("by_cosine", [False, True])
@pytest.mark.parametrize("nearest", [1, 3, 60])
@pytest.mark.parametrize("has_selectors", [False, True])
def test_relations_of_the_nearest_tokens_equal_the_reference(cuda, nearest, by_cosine, has_selectors):
    shard, codec, query, weights, rng = made_up(**SHAPE | {"num_query_tokens": 9, "dim": 24, "num_docs": 7})
    codec = related(codec, 0.3, by_cosine, rng)
    terms = codec.scorer_data.of_query(query)
    selectors = query + 0.3 * rng.normal(size=query.shape).astype(np.float32) if has_selectors else None
    expected, everything = (
        REFERENCE.relation_maxsim(query, weights, terms, None, shard, codec, None, each, selectors) for each in (nearest, None)
    )
    scores = cuda.relation_maxsim(query, weights, terms, None, shard, codec, None, nearest, selectors)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-3)
    assert nearest > 1 or np.abs(expected - everything)[np.isfinite(expected)].max() > 0.02


def test_inconsistent_inputs_are_refused(cuda):
    shard, codec, query, weights, _ = made_up(**SHAPE)
    for documents in (np.array([12]), np.array([-1])):
        with pytest.raises(ValueError, match="not in the shard"):
            cuda.residual_maxsim([query], [weights], [], shard, codec, documents)
    with pytest.raises(ValueError, match="other dimensions"):
        cuda.residual_maxsim([query[:, :16]], [weights], [], shard, codec)
    with pytest.raises(ValueError, match="cluster"):
        cuda.candidates(np.array([99]), shard)


def test_device_memory_of_a_shard_is_freed_with_the_shard(cuda):
    from ray_lir.kernels.cuda.memory import shard_memory

    gc.collect()
    before = len(shard_memory)
    shard, codec, query, weights, _ = made_up(**SHAPE | {"num_docs": 2})
    cuda.residual_maxsim([query], [weights], [], shard, codec)
    assert len(shard_memory) == before + 1
    del shard
    gc.collect()
    assert len(shard_memory) == before


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ray_lir.kernels.cuda.programs import code_programs, residual_programs
from ray_lir.kernels.cuda.relations import relation_programs

def build(program, constants, capability, num_warps=8):
    kinds = dict(queries="*fp16", weights="*fp32", rows="*fp16", values="*fp16", codes="*i16", residuals="*u8", scales="*fp16",
                 table="*fp32", kept="*i8", firsts="*i64", sizes="*i32", documents="*i32", bounds="*i32", scores="*fp32",
                 token_weights="*fp16", offsets="*i64", cosines="*fp32", before="*fp32", after="*fp32", scale="*fp32", shift="*fp32",
                 products="*fp32", constants="*fp32")
    signature = {name: "constexpr" if name in constants else kinds.get(name, "i32") for name in program.arg_names}
    constexprs = {(program.arg_names.index(name),): value for name, value in constants.items()}
    aligned = {(number,): [["tt.divisibility", 16]] for number, kind in enumerate(signature.values()) if kind[0] == "*"}
    source = ASTSource(program, signature, constexprs, aligned)
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps, "enable_fp_fusion": True})
    print(program.__name__, capability, len(built.asm["cubin"]))

for capability in (80, 90):
    shared = dict(CODE_MASK=0xFFFF, TILE=32)
    residual = dict(NBITS=4, BYTES=64, DIM=128, QUERY_TOKENS=32)
    build(residual_programs, shared | residual | dict(COLUMNS=32, FROM_TABLE=True, WEIGHTED=False), capability, 4)
    build(residual_programs, shared | residual | dict(COLUMNS=256, FROM_TABLE=False, WEIGHTED=True), capability)
    build(relation_programs, dict(DIM=128, TILE=32, BY_COSINE=False, LIMITED=True, WEIGHTED=True), capability, 4)
    build(code_programs, shared | dict(COLUMNS=32, PRUNED=True), capability)
"""


def test_gpu_kernels_compile_without_a_gpu():
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 8


@pytest.mark.parametrize("built_with", ["auto", "cuda"])
def test_an_index_is_built_and_answers_as_with_the_reference(cuda, tmp_path, monkeypatch, built_with):
    documents = collection(40, max_tokens=12)
    queries = queries_about(documents, [3, 17])
    root = str(tmp_path / "index")
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, built_with)
        assert (select() == select("cuda")) == (built_with == "cuda")
        build_index(documents, root, IndexConfig(clustering=ClusteringConfig(num_centroids=32)))
    by_reference, searcher = Searcher.open(root, kernels="reference"), Searcher.open(root, kernels="cuda")
    for engine in (*[name for name in SERVED if name in VECTOR_ENGINES], "auto"):
        for expected, found in zip(by_reference.search(queries, 5, engine), searcher.search(queries, 5, engine), strict=True):
            np.testing.assert_allclose(found.scores, expected.scores, atol=0.01)
            assert found.documents[0] == expected.documents[0]


def test_vectors_of_several_lengths_score_like_the_reference(cuda, tmp_path):
    rng = np.random.default_rng(5)
    plain = collection(30, max_tokens=10)
    documents = TokenEmbeddings.of([doc.astype(np.float64) * np.exp(rng.uniform(-5, 5, (len(doc), 1))) for doc in plain])
    queries = TokenEmbeddings.of([40 * query.astype(np.float64) for query in queries_about(plain, [3, 17])])
    root = str(tmp_path / "index")
    assert not build_index(documents, root, IndexConfig(clustering=ClusteringConfig(num_centroids=16))).unit_norms
    by_reference, searcher = Searcher.open(root, kernels="reference"), Searcher.open(root, kernels="cuda")
    for engine in ("exact", "scan", "plaid", WarpParams(rescore=0)):
        for expected, found in zip(by_reference.search(queries, 5, engine), searcher.search(queries, 5, engine), strict=True):
            np.testing.assert_allclose(found.scores, expected.scores, rtol=0.01)
            assert found.documents[0] == expected.documents[0]


def test_cuda_kernels_without_a_gpu_are_refused_with_the_fix(cuda, monkeypatch):
    from ray_lir.kernels.cuda import memory

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(KernelUnavailable, match="use auto"):
        memory.device()


def test_cuda_kernels_without_triton_are_refused_with_the_install_command():
    program = "import sys; sys.modules['triton'] = None; from ray_lir.kernels import select; select('cuda')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert "KernelUnavailable" in done.stderr and "pip install 'ray_lir[gpu]'" in done.stderr.splitlines()[-1]


def test_the_gpu_benchmark_finds_no_difference_under_the_interpreter():
    done = subprocess.run([sys.executable, "-m", "bench.gpu", "--interpret"], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    worst = json.loads(done.stdout.splitlines()[-1])
    assert {"4 bits, 1 queries", "4 bits, 9 queries", "centroids"} <= set(worst) and max(worst.values()) < 1e-3
