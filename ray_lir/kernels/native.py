"""The compiled kernels (C++ in native/, built as the module ray_lir_native), with the signatures of kernels.reference.

Bucket weights are rounded to 7 bits, query tokens to 8 and centroids to 15, products are summed in integers, and tables of centroid
scores are float16: a token's score is within about 1e-3 of the reference's, and the same to the bit on every instruction set, for
every batch and every shard. TRIAL's relations are arithmetic of 16 bits and within about 1% of their standard deviation.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.errors import KernelUnavailable
from ray_lir.base.parallel import one_blas_thread
from ray_lir.embeddings.relation import EPSILON

if TYPE_CHECKING:
    from ray_lir.index.codec import ResidualCodec
    from ray_lir.index.relation import PairTerms
    from ray_lir.index.shard import IndexShard

logger = logging.getLogger(__name__)
ABI = 7
"""What this file and the compiled module agree on; raised with every change of a compiled function's arguments."""


@cache
def module() -> ModuleType | None:
    """The compiled module, or None, with one line that says why."""
    try:
        import ray_lir_native
    except ImportError as error:
        logger.warning("the compiled kernels are not here (%s): using the slower reference kernels; a C++ compiler builds them", error)
        return None
    if ray_lir_native.ABI != ABI:
        logger.warning("the compiled kernels are of another version: using the slower reference kernels; install ray_lir again")
        return None
    return ray_lir_native


def available() -> bool:
    return module() is not None


@cache
def instruction_sets() -> tuple[str, ...]:
    """What this processor can run, slowest first. A set whose scores differ from portable code's is left out."""
    if module() is None:
        return ()
    names = module().instruction_sets()
    expected = _known_answer(names[0])
    sound = tuple(name for name in names if np.array_equal(_known_answer(name), expected))
    for name in set(names) - set(sound):
        logger.error("the kernels for %s give wrong results on this processor and are not used; please report it", name)
    return sound


def choose(name: str) -> str:
    """The instruction set called `name`, or the fastest.

    Raises:
        KernelUnavailable: if it cannot run here.
    """
    if module() is None:
        raise KernelUnavailable("the compiled kernels are not installed; install ray_lir where there is a C++ compiler, or use reference")
    if name and name not in instruction_sets():
        raise KernelUnavailable(f"this processor cannot run {name!r}; use one of {', '.join(instruction_sets())}, or auto")
    return name or instruction_sets()[-1]


def functions(instruction_set: str, threads: int, names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The kernels by name, for one instruction set and number of threads."""
    without = {"candidates": candidates, "top_k": top_k}
    return {name: without.get(name) or partial(globals()[name], instruction_set, threads) for name in names}


def assign(
    isa: str, threads: int, vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    return module().assign(isa, _rows(vectors_TD), _floats(centroids_CD), euclidean, threads)


def nearest_cells(isa: str, threads: int, vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
    return module().nearest_cells(isa, _rows(vectors_TD), _floats(cells_BD), nprobe, threads)


def assign_in_cells(
    isa: str, threads: int, vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray
) -> np.ndarray:
    return module().assign_in_cells(isa, _rows(vectors_TD), _floats(centroids_CD), _numbers(offsets), _numbers(probes_Tp), threads)


def rotate(isa: str, threads: int, vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
    return module().rotate(isa, _rows(vectors_TD), rotation_DD, threads)


def compress(
    isa: str, threads: int, vectors_TD: np.ndarray, codes_T: np.ndarray, codec: "ResidualCodec"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes_T = codes_T.astype(np.int64, copy=False)
    return module().compress(isa, _rows(vectors_TD), codes_T, codec.centroids_f32, codec.cutoffs, codec.weights, codec.token_scale, threads)


def maxsim(
    isa: str, threads: int, queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray
) -> np.ndarray:
    return module().maxsim(isa, [_floats(q) for q in queries], [_floats(w) for w in weights], _rows(tokens_TD), _numbers(offsets), threads)


def centroid_scores(isa: str, threads: int, query_nD: np.ndarray, codec: "ResidualCodec") -> np.ndarray:
    return module().centroid_scores(isa, _floats(query_nD), codec.centroid_words, threads).view(np.float16)


def residual_maxsim(
    isa: str,
    threads: int,
    queries: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    tables: Iterable[np.ndarray],
    shard: "IndexShard",
    codec: "ResidualCodec",
    documents: np.ndarray | None = None,
) -> np.ndarray:
    return module().residual_maxsim(
        isa,
        [_floats(q) for q in queries],
        [_floats(w) for w in weights],
        [_halves(table) for table in tables],
        shard.codes,
        shard.residuals,
        shard.scales.view(np.uint16),
        _halves(shard.weights),
        shard.doc_offsets,
        codec.weights,
        None if documents is None else _numbers(documents),
        threads,
    )


@derived
@one_blas_thread()
def relation_encoder(codec: "ResidualCodec") -> tuple[Any, np.ndarray]:
    pairs, unit, width = codec.pairs, codec.pairs.unit, -(-codec.dim // 64) * 64
    halves = unit * np.stack([pairs.before, pairs.after])
    step = np.abs(halves).max() / 2 / 126 or 1
    whole = np.zeros((2 * width, codec.dim), np.float32)
    whole.reshape(2, width, -1)[:, : codec.dim] = step * _whole(halves / 2 / step)
    encoder = module().RelationEncoder(
        whole[_register_order(2 * width)], step, unit * pairs.bias, pairs.scale, pairs.shift, unit**2 * EPSILON, codec.weights
    )
    centroids = np.zeros((codec.num_centroids, 2, width), np.int16)
    for which, half in enumerate(halves):
        centroids[:, which, : codec.dim] = np.round(codec.centroids_f32 @ half.T)
    return encoder, centroids.reshape(codec.num_centroids, 2 * width)


def _register_order(count: int) -> np.ndarray:
    """[count] the row whose products each lane has, so that two registers of them become words in the order of rows: of each 32 rows the
    first registers have those that are 0 to 3 modulo 8."""
    return np.arange(count).reshape(-1, 4, 2, 4).transpose(0, 2, 1, 3).ravel()


def _whole(halves: np.ndarray) -> np.ndarray:
    """[2, D, D] rounded so that sums over the second axis stay what they are, 0: as many as it takes to the other side, of those for which
    that makes the least difference."""
    rounded = np.round(halves)
    excess = rounded.sum(axis=1, keepdims=True)
    order = np.argsort((halves - rounded) * np.sign(excess), axis=1).argsort(axis=1)
    return rounded - np.sign(excess) * (order < np.abs(excess))


def relation_maxsim(
    isa: str,
    threads: int,
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    terms: "PairTerms",
    table_CL: np.ndarray,
    shard: "IndexShard",
    codec: "ResidualCodec",
    documents: np.ndarray | None = None,
) -> np.ndarray:
    encoder, centroids = relation_encoder(codec)
    return module().relation_maxsim(
        isa,
        _floats(query_nD),
        _floats(weights_n),
        _halves(table_CL),
        terms.products,
        terms.constants,
        terms.upper,
        shard.codes,
        shard.residuals,
        shard.scales.view(np.uint16),
        _halves(shard.weights),
        shard.doc_offsets,
        encoder,
        centroids,
        codec.pairs.by_cosine,
        None if documents is None else _numbers(documents),
        threads,
    )


def centroid_maxsim(
    isa: str,
    threads: int,
    table_CL: np.ndarray,
    weights_n: np.ndarray,
    shard: "IndexShard",
    threshold: float | None = None,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    documents = None if documents is None else _numbers(documents)
    return module().centroid_maxsim(isa, _halves(table_CL), _floats(weights_n), 0.0, *distinct_codes(shard), threshold, documents, threads)


class ByteTable(NamedTuple):
    """Centroid scores in bytes: of query token i byte b stands for lows[i] + b steps[i]."""

    bytes: np.ndarray
    lows: np.ndarray
    steps: np.ndarray


def scan_table(isa: str, threads: int, table_CL: np.ndarray) -> ByteTable:
    return ByteTable(*module().byte_table(isa, _halves(table_CL)))


def scan_codes(isa: str, threads: int, table: ByteTable, weights_n: np.ndarray, shard: "IndexShard") -> np.ndarray:
    weights_n = _floats(weights_n)
    base = float(weights_n.astype(np.float64) @ table.lows[: len(weights_n)])
    factors = weights_n * table.steps[: len(weights_n)]
    return module().byte_maxsim(isa, table.bytes, factors, base, *distinct_codes(shard), None, None, threads)


@derived
def distinct_codes(shard: "IndexShard") -> tuple[np.ndarray, np.ndarray]:
    """Return each document's centroids without repetition, and the offsets of documents in them.

    About half of a text's tokens share their centroid with another token of the same text. Made when the shard is first scanned, in
    nanoseconds a token.
    """
    return module().distinct_codes(shard.codes, shard.doc_offsets, shard.num_centroids)


def probe(
    isa: str, threads: int, table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return module().probe(isa, _halves(table_CL), num_tokens, _numbers(cluster_sizes), nprobe, bound, t_prime)


def candidates(cells: np.ndarray, shard: "IndexShard") -> np.ndarray:
    return module().candidates(_numbers(cells), shard.postings, shard.posting_offsets, shard.posting_documents, shard.num_docs)


def posting_scores(
    isa: str,
    threads: int,
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    cells: np.ndarray,
    cell_scores: np.ndarray,
    imputed_n: np.ndarray,
    floor: bool,
    shard: "IndexShard",
    codec: "ResidualCodec",
) -> tuple[np.ndarray, np.ndarray]:
    return module().posting_scores(
        isa,
        _floats(query_nD),
        _floats(weights_n),
        _numbers(cells),
        _floats(cell_scores),
        _floats(imputed_n),
        floor,
        shard.postings,
        shard.posting_offsets,
        shard.posting_documents,
        shard.posting_ratios,
        shard.residuals,
        _halves(shard.weights),
        shard.num_docs,
        codec.weights,
    )


def top_k(scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    return module().top_k(_floats(scores), _numbers(documents), k)


def _floats(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _halves(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.view(np.uint16)


def _numbers(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.int64)


def _rows(values: np.ndarray) -> np.ndarray:
    """float16 as the module takes it, anything else as float32."""
    return np.ascontiguousarray(values).view(np.uint16) if values.dtype == np.float16 else _floats(values)


def _known_answer(isa: str) -> np.ndarray:
    """Scores of a small random index, of more query tokens and more tokens a document than any block holds; of wider vectors than a matrix
    unit takes at a time, and of others."""
    rng = np.random.default_rng(0)
    dim, num_centroids, num_tokens = 192, 40, 300
    query = rng.normal(size=(53, dim)).astype(np.float32)
    words = rng.integers(-8000, 8000, (num_centroids, dim)).astype(np.int16)
    table = module().centroid_scores(isa, query, words, 1)
    codes = rng.integers(0, num_centroids, num_tokens).astype(np.uint16)
    residuals = rng.integers(0, 256, (num_tokens, dim // 2)).astype(np.uint8)
    scales = rng.random((num_tokens, 2)).astype(np.float16).view(np.uint16)
    offsets = np.array([0, 3, 3, 100, num_tokens])
    weights = np.linspace(-1, 1, 16, dtype=np.float32)
    ones = np.ones(len(query), np.float32)
    factors = np.linspace(0, 1, num_tokens, dtype=np.float16).view(np.uint16)
    scores = [
        module().residual_maxsim(isa, [query], [ones], [table], codes, residuals, scales, each, offsets, weights, None, 1).ravel()
        for each in (None, factors)
    ]
    layer, rows = 20 * rng.normal(size=(2 * dim, dim)).astype(np.float32), rng.normal(size=(3, dim)).astype(np.float32)
    products = rng.normal(size=query.shape).astype(np.float32)
    terms, shard = (products, 0 * ones, 1e3 * ones), (codes, residuals, scales, factors, offsets)
    encoder = module().RelationEncoder(layer, 3.0, *rows, 1.0, weights)
    added = rng.integers(-9999, 9999, (num_centroids, 2 * dim)).astype(np.int16)
    scores.append(module().relation_maxsim(isa, query, ones, table, *terms, *shard, encoder, added, False, None, 1))
    half = module().centroid_scores(isa, _floats(query[:, :128]), np.ascontiguousarray(words[:, :128]), 1)
    nearest = module().assign(isa, _floats(query[:, :128]), _floats(words[:, :128]) / 2**16, True, 1)
    return np.concatenate([*scores, table.ravel(), half.ravel(), *nearest])
