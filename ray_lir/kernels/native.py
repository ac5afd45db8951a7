"""The compiled kernels: C++ in native/, built as the module ray_lir_native.

Bucket weights are rounded to 7 bits, query tokens to 8 and centroids to 15; products are summed in integers, and tables of centroid scores
are float16. A token's score is within about 1e-3 of the reference. It is the same to the bit on every instruction set, for every batch and
every shard. Relations are computed in 16-bit integers and are within about 1% of their standard deviation.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ray_lir.base.cache_sizes import cache_sizes
from ray_lir.base.compiled import available as available
from ray_lir.base.compiled import module
from ray_lir.base.derived import derived
from ray_lir.base.errors import KernelUnavailable
from ray_lir.base.paging import scratch_rows
from ray_lir.base.parallel import one_blas_thread
from ray_lir.embeddings.relation import EPSILON
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import QueryRelation, relation_of
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.protocol import ByteTable, Kernels, ScanTable

logger = logging.getLogger(__name__)

MIN_BLOCK_ROWS, MAX_BLOCK_ROWS = 8, 32
"""Document tokens that a kernel decodes together. Products of more than 8 rows are computed 2 to 8 rows at a time."""
BLOCK_DOCUMENTS = 1 << 14
"""Documents with distinct codes that are found together, if residuals stay on the disk."""


@cache
def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this processor runs, slowest first. Sets that fail the self-test are left out."""
    if not available():
        return ()
    names = module().instruction_sets()
    expected = _self_test(names[0])
    correct = tuple(name for name in names if np.array_equal(_self_test(name), expected))
    for name in set(names) - set(correct):
        logger.error("the kernels for %s give wrong results on this processor and are disabled; please report it", name)
    return correct


@cache
def kernels(instruction_set: str, threads: int) -> Kernels:
    """Return the compiled kernels.

    Args:
        instruction_set: One of `instruction_sets()`; empty for the fastest.
        threads: Largest number of threads that one call uses.
    Raises:
        KernelUnavailable: The module is not installed, or the processor cannot run the instruction set.
    """
    module()
    if instruction_set and instruction_set not in instruction_sets():
        raise KernelUnavailable(f"this processor cannot run {instruction_set!r}; use one of {', '.join(instruction_sets())}, or auto")
    return _NativeKernels(instruction_set or instruction_sets()[-1], threads)


@dataclass(frozen=True)
class _NativeKernels:
    isa: str
    threads: int

    @property
    def name(self) -> str:
        return f"native:{self.isa}"

    @property
    def queries_together(self) -> int:
        return 1

    @property
    def uses_blas(self) -> bool:
        return False

    def assign(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False) -> tuple[np.ndarray, np.ndarray]:
        return module().assign(self.isa, _rows(vectors_TD), _floats(centroids_CD), euclidean, self.threads)

    def nearest_cells(self, vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
        return module().nearest_cells(self.isa, _rows(vectors_TD), _floats(cells_BD), nprobe, self.threads)

    def assign_in_cells(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray) -> np.ndarray:
        return module().assign_in_cells(
            self.isa, _rows(vectors_TD), _floats(centroids_CD), _numbers(offsets), _numbers(probes_Tp), self.threads
        )

    def rotate(self, vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
        return module().rotate(self.isa, _rows(vectors_TD), rotation_DD, self.threads)

    def compress(self, vectors_TD: np.ndarray, codes_T: np.ndarray, codec: ResidualCodec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        codes_T = codes_T.astype(np.int64, copy=False)
        return module().compress(
            self.isa,
            _rows(vectors_TD),
            codes_T,
            codec.centroids_f32,
            codec.cutoffs,
            codec.weights,
            codec.token_scale,
            codec.packed_bytes,
            codec.scale_pairs is not None,
            self.threads,
        )

    def maxsim(
        self, queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        return module().maxsim(
            self.isa, [_floats(q) for q in queries], [_floats(w) for w in weights], _rows(tokens_TD), _numbers(offsets), self.threads
        )

    def centroid_scores(self, query_nD: np.ndarray, codec: ResidualCodec) -> np.ndarray:
        return module().centroid_scores(self.isa, _floats(query_nD), codec.centroid_words, self.threads).view(np.float16)

    def residual_maxsim(
        self,
        queries: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        tables: Iterable[np.ndarray],
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
        return module().residual_maxsim(
            self.isa,
            [_floats(q) for q in queries],
            [_floats(w) for w in weights],
            [_halves(table) for table in tables],
            *_tokens(shard, codec),
            codec.weights,
            None if documents is None else _numbers(documents),
            block_rows(codec.dim, max(map(len, queries))),
            self.threads,
        )

    def nearest_maxsim(
        self,
        query_nD: np.ndarray,
        weights_n: np.ndarray,
        table: ScanTable,
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray,
    ) -> np.ndarray:
        assert isinstance(table, ByteTable)
        return module().nearest_maxsim(
            self.isa,
            _floats(query_nD),
            _floats(weights_n),
            *table,
            *_tokens(shard, codec),
            *distinct_codes(shard),
            codec.weights,
            _numbers(documents),
            block_rows(codec.dim, len(query_nD)),
            self.threads,
        )

    def relation_maxsim(
        self,
        query_nD: np.ndarray,
        weights_n: np.ndarray,
        relation: QueryRelation,
        table_CL: np.ndarray,
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray | None = None,
        nearest_tokens: int | None = None,
        selectors_nD: np.ndarray | None = None,
        selector_table_CL: np.ndarray | None = None,
    ) -> np.ndarray:
        (encoder, centroids), first = relation_encoder(codec), relation_of(codec).from_first_token
        return module().relation_maxsim(
            self.isa,
            _floats(query_nD),
            _floats(weights_n),
            _halves(table_CL),
            relation.products,
            relation.constants,
            relation.upper,
            *_tokens(shard, codec),
            encoder,
            centroids,
            relation_of(codec).by_cosine,
            None if documents is None else _numbers(documents),
            self.threads,
            first,
            nearest_tokens or 0,
            None if selectors_nD is None else _floats(selectors_nD),
            _halves(selector_table_CL),
        )

    def centroid_maxsim(
        self,
        table_CL: np.ndarray,
        weights_n: np.ndarray,
        shard: IndexShard,
        threshold: float | None = None,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
        documents = None if documents is None else _numbers(documents)
        return module().centroid_maxsim(
            self.isa, _halves(table_CL), _floats(weights_n), 0.0, *distinct_codes(shard), threshold, documents, self.threads
        )

    def scan_table(self, table_CL: np.ndarray) -> ScanTable:
        return ByteTable(*module().byte_table(self.isa, _halves(table_CL)))

    def scan_codes(self, table: ScanTable, weights_n: np.ndarray, shard: IndexShard, documents: np.ndarray | None = None) -> np.ndarray:
        assert isinstance(table, ByteTable)
        weights_n, documents = _floats(weights_n), None if documents is None else _numbers(documents)
        base = float(weights_n.astype(np.float64) @ table.lows[: len(weights_n)])
        factors = weights_n * table.steps[: len(weights_n)]
        return module().byte_maxsim(self.isa, table.bytes, factors, base, *distinct_codes(shard), None, documents, self.threads)

    def probe(
        self, table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return module().probe(self.isa, _halves(table_CL), num_tokens, _numbers(cluster_sizes), nprobe, bound, t_prime)

    def candidates(self, clusters: np.ndarray, shard: IndexShard) -> np.ndarray:
        documents = shard.posting_documents
        shard.prefetch_lists(clusters, documents)
        # The module compares only the length of the first array with the offsets.
        return module().candidates(_numbers(clusters), documents, shard.posting_offsets, documents, shard.num_docs)

    def posting_scores(
        self,
        query_nD: np.ndarray,
        weights_n: np.ndarray,
        clusters: np.ndarray,
        cluster_scores: np.ndarray,
        imputed_n: np.ndarray,
        floor: bool,
        shard: IndexShard,
        codec: ResidualCodec,
    ) -> tuple[np.ndarray, np.ndarray]:
        scales = shard.posting_ratios if codec.scale_pairs is None else shard.posting_pairs
        shard.prefetch_lists(clusters, shard.postings, shard.posting_documents, scales)
        return module().posting_scores(
            self.isa,
            _floats(query_nD),
            _floats(weights_n),
            _numbers(clusters),
            _floats(cluster_scores),
            _floats(imputed_n),
            floor,
            shard.postings,
            shard.posting_offsets,
            shard.posting_documents,
            None if scales.dtype == np.uint8 else scales,
            scales if scales.dtype == np.uint8 else None,
            codec.scale_pairs,
            shard.residuals,
            _halves(shard.weights),
            shard.num_docs,
            codec.weights,
        )

    def top_k(self, scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        return module().top_k(_floats(scores), _numbers(documents), k)


@cache
def block_rows(dim: int, num_query_tokens: int) -> int:
    """Return how many document tokens a kernel decodes together; scores do not depend on it.

    Two blocks of decoded tokens, the query and the products of a block share three quarters of the first-level cache. Blocks are not
    smaller than MIN_BLOCK_ROWS, below which a loop's fixed costs count.

    Args:
        dim: Dimensions of a vector.
        num_query_tokens: Tokens of the query.
    """
    row_bytes, lanes = -(-dim // 64) * 64, min(32, num_query_tokens)
    rows = (cache_sizes().first * 3 // 4 - lanes * row_bytes) // (2 * row_bytes + 4 * lanes)
    return max(MIN_BLOCK_ROWS, min(MAX_BLOCK_ROWS, rows // MIN_BLOCK_ROWS * MIN_BLOCK_ROWS))


@derived
@one_blas_thread()
def relation_encoder(codec: ResidualCodec) -> tuple[Any, np.ndarray]:
    """Return the relation encoder in fixed-point numbers, and the halves of the hidden layer of every centroid.

    Returns:
        The compiled module's RelationEncoder, and [C, 2 D rounded up] int16: a centroid as the first and as the second token of a pair.
    """
    relation = relation_of(codec)
    unit, width = relation.unit, -(-codec.dim // 64) * 64
    halves = unit * np.stack([relation.before, relation.after])
    step = np.abs(halves).max() / 2 / 126 or 1
    whole = np.zeros((2 * width, codec.dim), np.float32)
    whole.reshape(2, width, -1)[:, : codec.dim] = step * _rounded(halves / 2 / step)
    encoder = module().RelationEncoder(
        whole[_register_order(2 * width)], step, unit * relation.bias, relation.scale, relation.shift, unit**2 * EPSILON, codec.weights
    )
    centroids = np.zeros((codec.num_centroids, 2, width), np.int16)
    for number, half in enumerate(halves):
        centroids[:, number, : codec.dim] = np.round(codec.centroids_f32 @ half.T)
    return encoder, centroids.reshape(codec.num_centroids, 2 * width)


def _register_order(count: int) -> np.ndarray:
    """Return the row of each register lane, [count], such that packing two registers to words gives the order of rows.

    Among 32 rows, the first registers hold the rows that are 0 to 3 modulo 8.
    """
    return np.arange(count).reshape(-1, 4, 2, 4).transpose(0, 2, 1, 3).ravel()


def _rounded(halves: np.ndarray) -> np.ndarray:
    """Round an array [2, D, D] so that its sums over the second axis stay 0.

    Values are rounded in the other direction until the sum is 0, first the values for which this adds the smallest error.
    """
    rounded = np.round(halves)
    excess = rounded.sum(axis=1, keepdims=True)
    order = np.argsort((halves - rounded) * np.sign(excess), axis=1).argsort(axis=1)
    return rounded - np.sign(excess) * (order < np.abs(excess))


@derived
def distinct_codes(shard: IndexShard) -> tuple[np.ndarray, np.ndarray]:
    """Return each document's centroids without repetition, and the offsets of documents in them.

    About half of a text's tokens share their centroid with another token of the same text. This takes
    nanoseconds a token and is done when the shard is first scanned. If residuals stay on the disk, the centroids are in a temporary file.
    """
    if not shard.on_disk:
        return module().distinct_codes(shard.codes, shard.doc_offsets, shard.num_centroids)
    ends = [np.zeros(1, np.int64)]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, shard.num_docs, BLOCK_DOCUMENTS):
            offsets = shard.doc_offsets[start : start + BLOCK_DOCUMENTS + 1]
            codes, found = module().distinct_codes(shard.codes[offsets[0] : offsets[-1]], offsets - offsets[0], shard.num_centroids)
            ends.append(ends[-1][-1] + found[1:])
            yield codes

    with shard.whole_pass():
        codes = scratch_rows(blocks(), shard.codes.dtype)
    return codes, np.concatenate(ends)


def _floats(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.float32)


def _halves(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else values.view(np.uint16)


def _tokens(shard: IndexShard, codec: ResidualCodec) -> tuple[np.ndarray | None, ...]:
    """Return codes, residuals, scales, pairs of scales, weights and document offsets of a shard's tokens, as compiled kernels take them."""
    scales = shard.scales if shard.scales.dtype == np.uint8 else shard.scales.view(np.uint16)  # numbers of pairs stay as they are
    return shard.codes, shard.residuals, scales, codec.scale_pairs, _halves(shard.weights), shard.doc_offsets


def _numbers(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, np.int64)


def _rows(values: np.ndarray) -> np.ndarray:
    """Return float16 rows as uint16, which the module reads as float16, and other rows as float32."""
    return np.ascontiguousarray(values).view(np.uint16) if values.dtype == np.float16 else _floats(values)


def _self_test(isa: str) -> np.ndarray:
    """Return the scores of a small random index, as one array.

    It has more query tokens and longer documents than any block of the kernels, and vectors wider and narrower than a matrix unit.
    """
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
        module().residual_maxsim(isa, [query], [ones], [table], codes, residuals, scales, None, each, offsets, weights, None, 32, 1).ravel()
        for each in (None, factors)
    ]
    layer, rows = 20 * rng.normal(size=(2 * dim, dim)).astype(np.float32), rng.normal(size=(3, dim)).astype(np.float32)
    products = rng.normal(size=query.shape).astype(np.float32)
    terms, shard = (products, 0 * ones, 1e3 * ones), (codes, residuals, scales, None, factors, offsets)
    encoder = module().RelationEncoder(layer, 3.0, *rows, 1.0, weights)
    added = rng.integers(-9999, 9999, (num_centroids, 2 * dim)).astype(np.int16)
    scores.append(module().relation_maxsim(isa, query, ones, table, *terms, *shard, encoder, added, False, None, 1))
    half = module().centroid_scores(isa, _floats(query[:, :128]), np.ascontiguousarray(words[:, :128]), 1)
    nearest = module().assign(isa, _floats(query[:, :128]), _floats(words[:, :128]) / 2**16, True, 1)
    return np.concatenate([*scores, table.ravel(), half.ravel(), *nearest])
