"""The kernels in plain vectorised NumPy: the definition that every faster set is tested against.

Shapes: T tokens, N documents, C centroids, D dimensions, n query tokens, K = 2^nbits buckets, P packed bytes a token.
A table of centroid scores is [C, L]: L is n here, and n rounded up to what registers hold in faster sets.
Documents are ragged: `offsets` [N + 1] gives document i the tokens offsets[i] to offsets[i + 1].
Products are summed in float64 and scores rounded once, to float32: the last bit of a float32 matrix product depends on
which other rows are in it, and a document's score must not depend on the shard or batch it is scored in.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ray_lir.index.codec import ResidualCodec
    from ray_lir.index.relation import PairEncoder, PairTerms
    from ray_lir.index.shard import IndexShard

NEVER = np.float32(-np.inf)
BLOCK_TOKENS = 4096
"""Tokens decompressed at a time: a block of them stays in the processor's cache and in memory that is used again."""


def assign(vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The nearest centroid of each vector, the lowest on a tie, [T] int64, and how near it is, [T] float32.

    Source: docs/algorithms.md#22-residual-codec.

    Nearness is x . c; with `euclidean` x . c - |c|^2 / 2, which is largest where the distance is smallest.
    """
    codes, nearness = np.empty(len(vectors_TD), np.int64), np.empty(len(vectors_TD), np.float32)
    halves = np.einsum("cd,cd->c", centroids_CD, centroids_CD) / 2 if euclidean else 0
    for start in range(0, len(vectors_TD), BLOCK_TOKENS):
        block = vectors_TD[start : start + BLOCK_TOKENS].astype(np.float32)
        scores = block @ centroids_CD.T - halves
        best = scores.argmax(axis=1)
        codes[start : start + len(block)] = best
        nearness[start : start + len(block)] = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
    return codes, nearness


def nearest_cells(vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
    """[T, nprobe] int64: the cells whose centres are nearest (L2) to each vector, nearest first."""
    distances = np.einsum("bd,bd->b", cells_BD, cells_BD) / 2 - vectors_TD.astype(np.float32) @ cells_BD.T
    return np.argsort(distances, axis=1, kind="stable")[:, :nprobe]


def assign_in_cells(vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray) -> np.ndarray:
    """[T] int64: the nearest (L2) centroid among those of the cells that each vector probes; -1 if they hold none.

    Args:
        offsets: [cells + 1]; cell b owns centroids offsets[b] to offsets[b + 1].
        probes_Tp: the cells to look in. Vectors that probe the same cell are compared with it in one matrix product.
    """
    nprobe = probes_Tp.shape[1]
    pairs = np.argsort(probes_Tp, axis=None, kind="stable")
    cells, starts = np.unique(probes_Tp.ravel()[pairs], return_index=True)
    found = np.full(probes_Tp.size, -1, np.int64)
    nearness = np.full(probes_Tp.size, NEVER)
    for cell, mine in zip(cells, np.split(pairs, starts[1:]), strict=True):
        members = centroids_CD[offsets[cell] : offsets[cell + 1]]
        if len(members):
            best, nearness[mine] = assign(vectors_TD[mine // nprobe], members, euclidean=True)
            found[mine] = offsets[cell] + best
    best_probe = nearness.reshape(probes_Tp.shape).argmax(axis=1)
    return np.take_along_axis(found.reshape(probes_Tp.shape), best_probe[:, None], axis=1)[:, 0]


def rotate(vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
    """[T, D] float32: vectors @ rotation. The same bits for any block of vectors, on any thread."""
    return (vectors_TD.astype(np.float64) @ rotation_DD.astype(np.float64)).astype(np.float32)


def compress(vectors_TD: np.ndarray, codes_T: np.ndarray, codec: "ResidualCodec") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed residuals [T, P] uint8, scales [T, 2] float32, and norms [T] float32 of what the centroids left over.

    A token is decoded as scales[0] centroid + scales[1] bucket weights, and has length one (docs/algorithms.md#22-residual-codec). With
    `codec.token_scale` buckets are of the residual over its root mean square, and its scale is the least-squares one.
    """
    residuals_TD = vectors_TD.astype(np.float32) - codec.centroids_f32[codes_T]
    norms_T = np.sqrt(np.einsum("td,td->t", residuals_TD, residuals_TD, dtype=np.float64))
    units_T = (
        np.where(norms_T > 0, norms_T / np.sqrt(vectors_TD.shape[1]), 1).astype(np.float32) if codec.token_scale else np.ones(len(norms_T))
    )
    buckets_TD = np.searchsorted(codec.cutoffs, residuals_TD / units_T[:, None], side="left").astype(np.uint8)
    decoded_TD = codec.weights[buckets_TD].astype(np.float64)
    scales_T = np.ones(len(norms_T))
    if codec.token_scale:
        along_T = np.maximum(np.einsum("td,td->t", decoded_TD, residuals_TD), 0)
        scales_T = along_T / np.maximum(np.einsum("td,td->t", decoded_TD, decoded_TD), 1e-24)
    decoded_TD = codec.centroids_f32[codes_T] + scales_T[:, None] * decoded_TD
    inverse_T = 1 / np.sqrt(np.maximum(np.einsum("td,td->t", decoded_TD, decoded_TD), 1e-24))
    scales_T2 = np.stack([inverse_T, inverse_T * scales_T], axis=1).astype(np.float32)
    return pack(buckets_TD, codec.nbits), scales_T2, norms_T.astype(np.float32)


def pack(buckets_TD: np.ndarray, nbits: int) -> np.ndarray:
    """[T, D * nbits / 8] uint8: bucket numbers, the first dimension in the highest bits of each byte."""
    per_byte = 8 // nbits
    groups = buckets_TD.reshape(len(buckets_TD), -1, per_byte).astype(np.uint8)
    shifts = np.arange(8 - nbits, -1, -nbits, dtype=np.uint8)
    return np.bitwise_or.reduce(groups << shifts, axis=2)


def unpack(packed_TP: np.ndarray, nbits: int) -> np.ndarray:
    """[T, D] uint8: the inverse of `pack`."""
    shifts = np.arange(8 - nbits, -1, -nbits, dtype=np.uint8)
    return (packed_TP[:, :, None] >> shifts & np.uint8(2**nbits - 1)).reshape(len(packed_TP), -1)


def residual_values(packed_TP: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """[T, D] float32: the bucket weight of every dimension."""
    nbits = int(np.log2(len(weights_K)))
    weights_of_byte = weights_K.astype(np.float32)[unpack(np.arange(256, dtype=np.uint8)[:, None], nbits)]
    # All dimensions of a byte are fetched as one item: several times faster than one weight at a time.
    as_item = np.ascontiguousarray(weights_of_byte).view(f"V{weights_of_byte.shape[1] * 4}")[:, 0]
    return as_item[packed_TP].view(np.float32)


def decompress(codes_T: np.ndarray, packed_TP: np.ndarray, scales_T2: np.ndarray, codec: "ResidualCodec") -> np.ndarray:
    """[T, D] float32: scales[0] centroid + scales[1] bucket weights."""
    vectors_TD = residual_values(packed_TP, codec.weights)
    vectors_TD *= scales_T2[:, 1:].astype(np.float32)
    vectors_TD += codec.centroids_f32[codes_T] * scales_T2[:, :1].astype(np.float32)
    return vectors_TD


def normalize(vectors_TD: np.ndarray) -> np.ndarray:
    """Rows of length one; zero stays zero."""
    norms = np.sqrt(np.einsum("td,td->t", vectors_TD, vectors_TD))
    return vectors_TD / np.maximum(norms, 1e-12)[:, None]


def best_in_documents(scores_nT: np.ndarray, offsets: np.ndarray, token_weights_T: np.ndarray | None = None) -> np.ndarray:
    """[n, N]: each query token's best score among each document's tokens, -inf for a document without tokens.

    With token weights, that score times the weight of the token it was found at, the first of equals (docs/algorithms.md#61-score).
    """
    best_nN = np.full((len(scores_nT), len(offsets) - 1), NEVER, scores_nT.dtype)
    present = np.flatnonzero(np.diff(offsets))
    if len(present):
        starts = offsets[:-1][present]
        best_nN[:, present] = np.maximum.reduceat(scores_nT, starts, axis=1)
        if token_weights_T is not None:
            is_best_nT = scores_nT == np.repeat(best_nN, np.diff(offsets), axis=1)
            first_nN = np.minimum.reduceat(np.where(is_best_nT, np.arange(scores_nT.shape[1]), scores_nT.shape[1]), starts, axis=1)
            best_nN[:, present] *= token_weights_T[first_nN]
    return best_nN


def maxsim(queries: list[np.ndarray], weights: list[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[queries, N] float32: sum over query tokens i of weight_i max_j q_i . d_j; -inf for an empty document.

    Source: docs/algorithms.md#21-maxsim.
    """
    return _maxsim(queries, weights, tokens_TD, offsets, None)


def _maxsim(
    queries: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    tokens_TD: np.ndarray,
    offsets: np.ndarray,
    token_weights_T: np.ndarray | None,
) -> np.ndarray:
    scores_nT = np.concatenate(queries).astype(np.float64) @ tokens_TD.astype(np.float64).T
    best_nN = best_in_documents(scores_nT, offsets, token_weights_T)
    empty_N = offsets[:-1] == offsets[1:]
    totals = np.empty((len(queries), len(offsets) - 1), np.float32)
    start = 0
    for row, (query, weights_n) in enumerate(zip(queries, weights, strict=True)):
        totals[row] = _weighted_sum(best_nN[start : start + len(query)], weights_n, empty_N)
        start += len(query)
    return totals


def centroid_scores(query_nD: np.ndarray, codec: "ResidualCodec") -> np.ndarray:
    """[C, L] float32: the dot product of every centroid with every query token."""
    return codec.centroids_f32 @ query_nD.T


def residual_maxsim(
    queries: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
    tables: Iterable[np.ndarray],
    shard: "IndexShard",
    codec: "ResidualCodec",
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """[queries, N] float32: MaxSim of documents (all, or these) from their codes and residuals.

    sum over query tokens i of weight_i rho_j* q_i . d_j*, where j* is the token of the largest q_i . d_j and rho what it weighs, if the
    shard has weights.

    Args:
        tables: `centroid_scores` of every query, for sets that add them to products of residuals alone.
    """
    offsets, token_numbers = shard.doc_offsets, None
    if documents is not None:
        token_numbers, offsets = shard.tokens(documents)
    scores = np.empty((len(queries), len(offsets) - 1), np.float32)
    for start, stop, first, last in document_blocks(offsets):
        block = slice(first, last) if token_numbers is None else token_numbers[first:last]
        vectors = decompress(shard.codes[block], shard.residuals[block], shard.scales[block], codec)
        scores[:, start:stop] = _maxsim(queries, weights, vectors, offsets[start : stop + 1] - first, token_weights(shard, block))
    return scores


def token_weights(shard: "IndexShard", tokens: np.ndarray | slice) -> np.ndarray | None:
    """[tokens] float64: what these tokens weigh; None where every token weighs one."""
    return None if shard.weights is None else shard.weights[tokens].astype(np.float64) + 1


def relation_maxsim(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    terms: "PairTerms",
    table_CL: np.ndarray,
    shard: "IndexShard",
    codec: "ResidualCodec",
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """[N] float32: TRIAL's score of documents (all, or these) from their codes and residuals (docs/algorithms.md#51-score.4).

    Query tokens are aligned one after another: token i goes to the document token j of the largest q_i . d_j + relation of (p, j), where
    p is what token i - 1 was aligned to (with `codec.pairs.by_cosine` its token of the best cosine); of equals to the first. A document
    scores the sum of weight_i (rho_j q_i . d_j + relation), -inf without tokens.

    Args:
        query_nD: without masked tokens.
        terms: `codec.pairs.terms` of the query.
        table_CL: `centroid_scores` of the query, for sets that add them to products of residuals alone.
    """
    offsets, token_numbers = shard.doc_offsets, np.arange(len(shard.codes))
    if documents is not None:
        token_numbers, offsets = shard.tokens(documents)
    scores = np.full(len(offsets) - 1, NEVER)
    for number in np.flatnonzero(np.diff(offsets)):
        tokens = token_numbers[offsets[number] : offsets[number + 1]]
        vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
        best_n, relations_n = align(query_nD, terms, vectors, codec.pairs)
        worth_n = np.einsum("nd,nd->n", query_nD.astype(np.float64), vectors[best_n])
        if shard.weights is not None:
            worth_n *= token_weights(shard, tokens[best_n])
        scores[number] = weights_n.astype(np.float64) @ (worth_n + relations_n)
    return scores


def align(query_nD: np.ndarray, terms: "PairTerms", vectors_mD: np.ndarray, pairs: "PairEncoder") -> tuple[np.ndarray, np.ndarray]:
    """[n] int64: the document token that each query token wins; [n] float64: its relation to what the token before was aligned to."""
    cosines_nm, relations_nm = compare(query_nD, terms, vectors_mD, pairs)
    winners = (cosines_nm + relations_nm).argmax(axis=1)
    return winners, relations_nm[np.arange(len(winners)), winners]


def compare(query_nD: np.ndarray, terms: "PairTerms", vectors_mD: np.ndarray, pairs: "PairEncoder") -> tuple[np.ndarray, np.ndarray]:
    """Two [n, m] float64: the cosines, and the relations of every document token to what the query token before was aligned to."""
    cosines_nm = query_nD.astype(np.float64) @ vectors_mD.T
    before_mD, after_mD = vectors_mD @ pairs.before.T.astype(np.float64), vectors_mD @ pairs.after.T.astype(np.float64) + pairs.bias
    relations_nm = np.zeros_like(cosines_nm)
    for i in range(1, len(query_nD)):
        deciding_m = cosines_nm[i - 1] if pairs.by_cosine else cosines_nm[i - 1] + relations_nm[i - 1]
        relations_nm[i] = pairs.hidden(before_mD[deciding_m.argmax()], after_mD) @ terms.products[i] + terms.constants[i]
    return cosines_nm, relations_nm


def centroid_maxsim(
    table_CL: np.ndarray,
    weights_n: np.ndarray,
    shard: "IndexShard",
    threshold: float | None = None,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """[N] float32: MaxSim with every token replaced by its centroid (PLAID's centroid interaction, docs/algorithms.md#23-plaid).

    Token weights are left out (7): it is a centroid that wins here, which none of them belongs to.

    Args:
        table_CL: `centroid_scores` of the query.
        weights_n: importance of each query token (2.4: pruning looks at unweighted scores).
        threshold: tokens of centroids below it for every query token are left out, and a document with none left scores -inf.
        documents: whose scores are wanted; None for all.
    """
    codes_T, offsets = shard.codes, shard.doc_offsets
    if documents is not None:
        token_numbers, offsets = shard.tokens(documents)
        codes_T = codes_T[token_numbers]
    if threshold is not None:
        kept = (table_CL[:, : len(weights_n)].max(axis=1) >= np.float32(threshold))[codes_T]
        offsets = np.concatenate([[0], np.cumsum(kept)])[offsets]
        codes_T = codes_T[kept]
    scores_nC = table_CL.T[: len(weights_n)]
    totals = np.zeros(len(offsets) - 1, np.float32)
    for start, stop, first, last in document_blocks(offsets):
        best_nN = best_in_documents(np.take(scores_nC, codes_T[first:last], axis=1), offsets[start : stop + 1] - first)
        empty = offsets[start:stop] == offsets[start + 1 : stop + 1]
        totals[start:stop] = _weighted_sum(best_nN, weights_n, empty)
    return totals


def scan_table(table_CL: np.ndarray) -> Any:
    """What `scan_codes` looks scores up in, made once a query: the centroid scores, which faster sets write in bytes."""
    return table_CL


def scan_codes(table: Any, weights_n: np.ndarray, shard: "IndexShard") -> np.ndarray:
    """[N] float32: `centroid_maxsim` of all documents from the query's `scan_table`."""
    return centroid_maxsim(table, weights_n, shard)


def _weighted_sum(best_nN: np.ndarray, weights_n: np.ndarray, empty_N: np.ndarray) -> np.ndarray:
    """[N] float32: sum over query tokens; -inf for documents without tokens, whatever the weights."""
    best_nN[:, empty_N] = 0
    return np.where(empty_N, NEVER, (weights_n.astype(np.float64) @ best_nN.astype(np.float64)).astype(np.float32))


def probe(
    table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of the first `num_tokens` query tokens its nearest centroids and WARP's imputed score.

    Source: docs/algorithms.md#41-algorithm, step 1.

    Args:
        cluster_sizes: tokens of every centroid, over the whole index.
        nprobe: centroids wanted, best first, ties to the lower number.
        bound: centroids passed on the way to t_prime, at most.
        t_prime: the imputed score is that of the centroid at which this many tokens have been passed.

    Returns:
        Cells [n, nprobe] int64, their scores [n, nprobe] float32, imputed scores [n] float32.
    """
    cells = np.zeros((num_tokens, nprobe), np.int64)
    imputed = np.zeros(num_tokens, np.float32)
    for token in range(num_tokens):
        order = np.lexsort((np.arange(len(table_CL)), -table_CL[:, token]))[:bound]
        cells[token] = order[:nprobe]
        passed = np.cumsum(cluster_sizes[order])
        imputed[token] = table_CL[order[min(np.searchsorted(passed, t_prime), len(order) - 1)], token]
    return cells, np.take_along_axis(table_CL.T[:num_tokens], cells, axis=1).astype(np.float32), imputed


def candidates(cells: np.ndarray, shard: "IndexShard") -> np.ndarray:
    """Documents [N] int64, ascending, with a token in one of the cells."""
    tokens = tokens_of(cells, shard)
    return np.unique(np.searchsorted(shard.doc_offsets, tokens, side="right") - 1)


def posting_scores(
    query_nD: np.ndarray,
    weights_n: np.ndarray,
    cells: np.ndarray,
    cell_scores: np.ndarray,
    imputed_n: np.ndarray,
    floor: bool,
    shard: "IndexShard",
    codec: "ResidualCodec",
) -> tuple[np.ndarray, np.ndarray]:
    """WARP's scores [N] float32 of the documents [N] int64, ascending, with a token in the cells.

    Source: docs/algorithms.md#41-algorithm, steps 3 and 4.

    A token scores centroid score + q . bucket weights, in the residual's own scale and not brought to length one. A document
    adds the best of its tokens for each query token, times what that token weighs, or the imputed score where it has none; of equals
    the first counts, cell after cell.

    Args:
        cells: [n, nprobe] of each query token, with `cell_scores`.
        imputed_n: what a query token adds where it met no token.
        floor: let no seen score fall below the imputed one (4.3).
    """
    totals = np.zeros(shard.num_docs)
    seen = np.zeros(shard.num_docs, bool)
    for row, weight in enumerate(weights_n.astype(np.float64)):
        tokens = tokens_of(cells[row], shard)
        sizes = shard.posting_offsets[cells[row] + 1] - shard.posting_offsets[cells[row]]
        scales = shard.scales[tokens].astype(np.float64)
        residuals = residual_values(shard.residuals[tokens], codec.weights).astype(np.float64) @ query_nD[row].astype(np.float64)
        scores = np.repeat(cell_scores[row], sizes) + residuals * scales[:, 1] / scales[:, 0]
        numbers = np.searchsorted(shard.doc_offsets, tokens, side="right") - 1
        best = np.full(shard.num_docs, -np.inf)
        np.maximum.at(best, numbers, scores)
        met = best > -np.inf
        if shard.weights is not None:
            winners = np.flatnonzero(scores == best[numbers])
            _, first = np.unique(numbers[winners], return_index=True)
            best[met] *= token_weights(shard, tokens[winners[first]])
        totals[met] += weight * ((np.maximum(best[met], imputed_n[row]) if floor else best[met]) - imputed_n[row])
        seen |= met
    documents = np.flatnonzero(seen)
    return (totals[documents] + weights_n.astype(np.float64) @ imputed_n).astype(np.float32), documents


def tokens_of(cells: np.ndarray, shard: "IndexShard") -> np.ndarray:
    """The token numbers of several cells, one after another."""
    spans = [shard.postings[shard.posting_offsets[c] : shard.posting_offsets[c + 1]] for c in cells]
    return np.concatenate(spans).astype(np.int64) if spans else np.zeros(0, np.int64)


def document_blocks(offsets: np.ndarray, block_tokens: int = BLOCK_TOKENS) -> list[tuple[int, int, int, int]]:
    """Cuts N documents into runs of about `block_tokens`: (first document, end, first token, end) of each."""
    num_docs = len(offsets) - 1
    starts, start = [], 0
    while start < num_docs:
        starts.append(start)
        start = max(start + 1, int(np.searchsorted(offsets, offsets[start] + block_tokens, side="right")) - 1)
    ends = [*starts[1:], num_docs][: len(starts)]
    return [(a, b, int(offsets[a]), int(offsets[b])) for a, b in zip(starts, ends, strict=True)]


def top_k(scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best (scores, documents), best first, ties to the lower document number; -inf is never among them."""
    if k < len(scores):
        cut = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero((scores >= cut) & (scores > NEVER))
    else:
        candidates = np.flatnonzero(scores > NEVER)
    order = np.lexsort((documents[candidates], -scores[candidates]))[:k]
    return scores[candidates][order], documents[candidates][order]
