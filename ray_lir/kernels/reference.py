"""The reference kernels in NumPy: they define what every other kernel set must compute.

Products are summed in float64 and scores are rounded to float32 once. A document's score must not depend on the shard or batch that it is
scored in; the last bit of a float32 matrix product depends on the other rows in the matrix.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import QueryRelation, align, relation_of
from ray_lir.index.residuals import byte_widths, decompress, normalize, pack, residual_values
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.protocol import Kernels, ScanTable

NEVER = np.float32(-np.inf)
BLOCK_TOKENS = 4096
"""Number of tokens to decompress at a time: a block fits the processor's cache, and the next block uses the same memory."""
SMALLEST_COSINE = 0.25
"""Smallest cosine between a residual and its decoded form by which the decoded form is lengthened."""


@dataclass(frozen=True)
class _ReferenceKernels:
    name: str = "reference"
    threads: int = 1
    queries_together: int = 1
    uses_blas: bool = True

    def assign(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False) -> tuple[np.ndarray, np.ndarray]:
        codes, nearness = np.empty(len(vectors_TD), np.int64), np.empty(len(vectors_TD), np.float32)
        halves = np.einsum("cd,cd->c", centroids_CD, centroids_CD) / 2 if euclidean else 0
        for start in range(0, len(vectors_TD), BLOCK_TOKENS):
            block = normalize(vectors_TD[start : start + BLOCK_TOKENS].astype(np.float32))
            scores = block @ centroids_CD.T - halves
            best = scores.argmax(axis=1)
            codes[start : start + len(block)] = best
            nearness[start : start + len(block)] = np.take_along_axis(scores, best[:, None], axis=1)[:, 0]
        return codes, nearness

    def nearest_cells(self, vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
        distances = np.einsum("bd,bd->b", cells_BD, cells_BD) / 2 - normalize(vectors_TD.astype(np.float32)) @ cells_BD.T
        return np.argsort(distances, axis=1, kind="stable")[:, :nprobe]

    def assign_in_cells(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray) -> np.ndarray:
        nprobe = probes_Tp.shape[1]
        order = np.argsort(probes_Tp, axis=None, kind="stable")
        cells, starts = np.unique(probes_Tp.ravel()[order], return_index=True)
        codes = np.full(probes_Tp.size, -1, np.int64)
        nearness = np.full(probes_Tp.size, NEVER)
        for cell, places in zip(cells, np.split(order, starts[1:]), strict=True):  # one matrix product a cell
            members = centroids_CD[offsets[cell] : offsets[cell + 1]]
            if len(members):
                best, nearness[places] = self.assign(vectors_TD[places // nprobe], members, euclidean=True)
                codes[places] = offsets[cell] + best
        best_probe = nearness.reshape(probes_Tp.shape).argmax(axis=1)
        return np.take_along_axis(codes.reshape(probes_Tp.shape), best_probe[:, None], axis=1)[:, 0]

    def rotate(self, vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
        return (vectors_TD.astype(np.float64) @ rotation_DD.astype(np.float64)).astype(np.float32)

    def compress(self, vectors_TD: np.ndarray, codes_T: np.ndarray, codec: ResidualCodec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        vectors_TD, centroids_TD = vectors_TD.astype(np.float32), codec.centroids_f32[codes_T]
        squared_T = (
            np.einsum("td,td->t", centroids_TD, centroids_TD, dtype=np.float64) if codec.scale_pairs is not None else np.zeros(len(codes_T))
        )
        from_nearest_T, squared_T = squared_T > 0, np.where(squared_T > 0, squared_T, 1)
        multiples_T = np.where(from_nearest_T, np.einsum("td,td->t", vectors_TD, centroids_TD, dtype=np.float64) / squared_T, 1)
        residuals_TD = vectors_TD - multiples_T[:, None].astype(np.float32) * centroids_TD
        norms_T = np.sqrt(np.einsum("td,td->t", residuals_TD, residuals_TD, dtype=np.float64))
        units_T = np.ones(len(norms_T))
        if codec.token_scale:
            units_T = np.where(norms_T > 0, norms_T / np.sqrt(vectors_TD.shape[1]), 1).astype(np.float32)
        if codec.has_trellis:
            packed_TP = _nearest_bytes(residuals_TD / units_T[:, None].astype(np.float32), codec.weights, codec.packed_bytes)
        else:
            buckets_TD = np.searchsorted(codec.cutoffs, residuals_TD / units_T[:, None], side="left").astype(np.uint8)
            packed_TP = pack(buckets_TD, codec.nbits)
        decoded_TD = residual_values(packed_TP, codec.weights, codec.dim).astype(np.float64)
        factors_T, scales_T = np.ones(len(norms_T)), np.ones(len(norms_T))
        if codec.token_scale:
            along_T = np.einsum("td,td->t", decoded_TD, residuals_TD)
            squares_T = np.einsum("td,td->t", decoded_TD, decoded_TD)
            scales_T = np.where(along_T > 0, norms_T / np.sqrt(np.maximum(squares_T, 1e-24)), 0)
            if codec.scale_pairs is not None:
                over_T = np.einsum("td,td->t", centroids_TD, decoded_TD) / squared_T
                across_T = np.sqrt(np.maximum(squares_T - over_T**2 * squared_T, 1e-24))
                cosines_T = along_T / np.maximum(norms_T * across_T, 1e-24)
                nearest_T = np.where(cosines_T > 0, norms_T / across_T / np.sqrt(np.maximum(cosines_T, SMALLEST_COSINE)), 0)
                scales_T = np.where(from_nearest_T, nearest_T, scales_T)
                factors_T = np.where(from_nearest_T, multiples_T - scales_T * over_T, 1)
        decoded_TD = factors_T[:, None] * centroids_TD + scales_T[:, None] * decoded_TD
        inverse_T = 1 / np.sqrt(np.maximum(np.einsum("td,td->t", decoded_TD, decoded_TD), 1e-24))
        scales_T2 = np.stack([inverse_T * factors_T, inverse_T * scales_T], axis=1).astype(np.float32)
        return packed_TP, scales_T2, np.sqrt(norms_T**2 + (1 - multiples_T) ** 2 * squared_T).astype(np.float32)

    def maxsim(
        self, queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        return _maxsim(queries, weights, tokens_TD, offsets, None)

    def centroid_scores(self, query_nD: np.ndarray, codec: ResidualCodec) -> np.ndarray:
        return codec.centroids_f32 @ query_nD.T

    def residual_maxsim(
        self,
        queries: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        tables: Iterable[np.ndarray],
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
        offsets, token_numbers = shard.doc_offsets, None
        if documents is not None:
            token_numbers, offsets = shard.tokens(documents)
        scores = np.empty((len(queries), len(offsets) - 1), np.float32)
        for start, stop, first, last in document_blocks(offsets):
            block = slice(first, last) if token_numbers is None else token_numbers[first:last]
            vectors = decompress(shard.codes[block], shard.residuals[block], shard.scales[block], codec)
            scores[:, start:stop] = _maxsim(queries, weights, vectors, offsets[start : stop + 1] - first, shard.token_weights(block))
        return scores

    def nearest_maxsim(
        self,
        query_nD: np.ndarray,
        weights_n: np.ndarray,
        table: ScanTable,
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray,
    ) -> np.ndarray:
        scores = np.full(len(documents), NEVER, np.float32)
        assert isinstance(table, np.ndarray)
        table_Cn, active_n = table[:, : len(query_nD)], (weights_n > 0) & query_nD.any(axis=1)
        for place, number in enumerate(documents):
            tokens = slice(*shard.doc_offsets[number : number + 2])
            codes_T = shard.codes[tokens]
            if not len(codes_T):
                continue
            centroids_Kn = -np.sort(-table_Cn[np.unique(codes_T)], axis=0)
            nearest_Tn = table_Cn[codes_T] == centroids_Kn[0]
            second_n = centroids_Kn[1] if len(centroids_Kn) > 1 else NEVER
            vectors_TD = decompress(codes_T, shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
            scores_nT = np.where(nearest_Tn, vectors_TD @ query_nD.T.astype(np.float64), NEVER).T
            best_n, weights_T = scores_nT.max(axis=1), shard.token_weights(tokens)
            weighted_n = best_n if weights_T is None else best_n * weights_T[scores_nT.argmax(axis=1)]
            terms_n = weighted_n + np.maximum(second_n - best_n, 0) / 2
            scores[place] = weights_n[active_n].astype(np.float64) @ terms_n[active_n]
        return scores

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
        offsets, token_numbers = shard.doc_offsets, np.arange(len(shard.codes))
        if documents is not None:
            token_numbers, offsets = shard.tokens(documents)
        scores = np.full(len(offsets) - 1, NEVER)
        for number in np.flatnonzero(np.diff(offsets)):
            tokens = token_numbers[offsets[number] : offsets[number + 1]]
            vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec).astype(np.float64)
            best_n, relations_n = align(query_nD, relation, vectors, relation_of(codec), nearest_tokens, selectors_nD)
            similarities_n = np.einsum("nd,nd->n", query_nD.astype(np.float64), vectors[best_n])
            token_weights = shard.token_weights(tokens[best_n])
            if token_weights is not None:
                similarities_n *= token_weights
            scores[number] = weights_n.astype(np.float64) @ (similarities_n + relations_n)
        return scores

    def centroid_maxsim(
        self,
        table_CL: np.ndarray,
        weights_n: np.ndarray,
        shard: IndexShard,
        threshold: float | None = None,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
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

    def scan_table(self, table_CL: np.ndarray) -> ScanTable:
        return table_CL

    def scan_codes(self, table: ScanTable, weights_n: np.ndarray, shard: IndexShard, documents: np.ndarray | None = None) -> np.ndarray:
        assert isinstance(table, np.ndarray)
        return self.centroid_maxsim(table, weights_n, shard, None, documents)

    def probe(
        self, table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        clusters = np.zeros((num_tokens, nprobe), np.int64)
        imputed = np.zeros(num_tokens, np.float32)
        for token in range(num_tokens):
            order: np.ndarray = np.lexsort((np.arange(len(table_CL)), -table_CL[:, token]))[:bound]
            clusters[token] = order[:nprobe]
            passed = np.cumsum(cluster_sizes[order])
            imputed[token] = table_CL[order[min(int(np.searchsorted(passed, t_prime)), len(order) - 1)], token]
        return clusters, np.take_along_axis(table_CL.T[:num_tokens], clusters, axis=1).astype(np.float32), imputed

    def candidates(self, clusters: np.ndarray, shard: IndexShard) -> np.ndarray:
        tokens = tokens_of(clusters, shard)
        return np.unique(np.searchsorted(shard.doc_offsets, tokens, side="right") - 1)

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
        totals = np.zeros(shard.num_docs)
        seen = np.zeros(shard.num_docs, bool)
        for row, weight in enumerate(weights_n.astype(np.float64)):
            tokens = tokens_of(clusters[row], shard)
            sizes = shard.posting_offsets[clusters[row] + 1] - shard.posting_offsets[clusters[row]]
            scales = codec.scales_of(shard.scales[tokens]).astype(np.float64)
            values = residual_values(shard.residuals[tokens], codec.weights, codec.dim).astype(np.float64)
            scores = np.repeat(cluster_scores[row], sizes) + values @ query_nD[row].astype(np.float64) * scales[:, 1] / scales[:, 0]
            if codec.scale_pairs is not None:
                scores *= scales[:, 0]
            numbers = np.searchsorted(shard.doc_offsets, tokens, side="right") - 1
            best = np.full(shard.num_docs, -np.inf)
            np.maximum.at(best, numbers, scores)
            found = best > -np.inf
            if shard.weights is not None:
                winners = np.flatnonzero(scores == best[numbers])
                _, first = np.unique(numbers[winners], return_index=True)
                best[found] *= shard.token_weights(tokens[winners[first]])
            totals[found] += weight * ((np.maximum(best[found], imputed_n[row]) if floor else best[found]) - imputed_n[row])
            seen |= found
        documents = np.flatnonzero(seen)
        return (totals[documents] + weights_n.astype(np.float64) @ imputed_n).astype(np.float32), documents

    def top_k(self, scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if k < len(scores):
            cut = np.partition(scores, len(scores) - k)[len(scores) - k]
            candidates = np.flatnonzero((scores >= cut) & (scores > NEVER))
        else:
            candidates = np.flatnonzero(scores > NEVER)
        order = np.lexsort((documents[candidates], -scores[candidates]))[:k]
        return scores[candidates][order], documents[candidates][order]


REFERENCE: Kernels = _ReferenceKernels()


def _nearest_bytes(values_TD: np.ndarray, trellis_KG: np.ndarray, num_bytes: int) -> np.ndarray:
    """Return the packed bytes [T, P] uint8 with the values nearest to the given ones, by the Viterbi algorithm.

    The state before a byte is the last bits of the byte before. Ties go to the lowest state, then to the lowest byte.
    """
    num_states = len(trellis_KG) // 256
    packed_TP = np.empty((len(values_TD), num_bytes), np.uint8)
    widths = byte_widths(values_TD.shape[1], num_bytes).tolist()
    columns_GK = trellis_KG.T.astype(np.float32)
    halves_of = {width: np.einsum("gk,gk->k", columns_GK[:width], columns_GK[:width]) / 2 for width in set(widths)}
    for start in range(0, len(values_TD), BLOCK_TOKENS // 8):
        block_TD = values_TD[start : start + BLOCK_TOKENS // 8]
        rows = np.arange(len(block_TD))
        states_TS = np.full((len(block_TD), num_states), -1e30, np.float32)
        states_TS[:, 0] = 0
        paths: list[tuple[np.ndarray, np.ndarray]] = []
        first = 0
        for width in widths:
            scores_TSB = (block_TD[:, first : first + width] @ columns_GK[:width] - halves_of[width]).reshape(
                len(block_TD), num_states, 256
            )
            first += width
            scores_TSB += states_TS[:, :, None]
            before_TB = scores_TSB.argmax(axis=1)
            # Bytes of the same state are the columns of [T, 256 / S, S].
            best_TBS = scores_TSB.max(axis=1).reshape(len(block_TD), -1, num_states)
            bytes_TS = best_TBS.argmax(axis=1) * num_states + np.arange(num_states)
            states_TS = best_TBS.max(axis=1)
            paths.append((before_TB, bytes_TS))
        state_T = states_TS.argmax(axis=1)
        for number in range(len(paths) - 1, -1, -1):
            before_TB, bytes_TS = paths[number]
            byte_T = bytes_TS[rows, state_T]
            packed_TP[start : start + len(block_TD), number] = byte_T
            state_T = before_TB[rows, byte_T]
    return packed_TP


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


def _weighted_sum(best_nN: np.ndarray, weights_n: np.ndarray, empty_N: np.ndarray) -> np.ndarray:
    """Return the sums over query tokens, [N] float32; -inf for documents without tokens, whatever the weights."""
    best_nN[:, empty_N] = 0
    return np.where(empty_N, NEVER, (weights_n.astype(np.float64) @ best_nN.astype(np.float64)).astype(np.float32))


def best_in_documents(scores_nT: np.ndarray, offsets: np.ndarray, token_weights_T: np.ndarray | None = None) -> np.ndarray:
    """Return each query token's best score in each document, [n, N]; -inf for a document without tokens.

    With token weights, the best score is multiplied by its token's weight; ties go to the first token.

    Source: docs/algorithms.md#61-score.

    Args:
        scores_nT: [n, T].
        offsets: [N + 1] int64.
        token_weights_T: [T]; None if every token has weight one.
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


def tokens_of(clusters: np.ndarray, shard: IndexShard) -> np.ndarray:
    """Return the token numbers of several clusters, one cluster after another."""
    spans = [shard.postings[shard.posting_offsets[c] : shard.posting_offsets[c + 1]] for c in clusters]
    return np.concatenate(spans).astype(np.int64) if spans else np.zeros(0, np.int64)


def document_blocks(offsets: np.ndarray, block_tokens: int = BLOCK_TOKENS) -> list[tuple[int, int, int, int]]:
    """Split N documents into blocks of about `block_tokens` tokens, and return (first document, end, first token, end) of each block."""
    num_docs = len(offsets) - 1
    starts, start = [], 0
    while start < num_docs:
        starts.append(start)
        start = max(start + 1, int(np.searchsorted(offsets, offsets[start] + block_tokens, side="right")) - 1)
    ends = [*starts[1:], num_docs][: len(starts)]
    return [(a, b, int(offsets[a]), int(offsets[b])) for a, b in zip(starts, ends, strict=True)]
