"""The kernels in plain vectorised NumPy: the definition that every faster set is tested against.

Shapes: T tokens, N documents, C centroids, D dimensions, n query tokens, K = 2^nbits buckets, P packed bytes a token.
Documents are ragged: `offsets` [N + 1] gives document i the tokens offsets[i] to offsets[i + 1].
Products are summed in float64 and scores rounded once, to float32: the last bit of a float32 matrix product depends on
which other rows are in it, and a document's score must not depend on the shard or batch it is scored in.
"""

import numpy as np

NEVER = np.float32(-np.inf)
BLOCK_TOKENS = 4096
"""Tokens decompressed at a time: a block of them stays in the processor's cache and in memory that is used again."""


def assign(vectors_TD: np.ndarray, centroids_CD: np.ndarray) -> np.ndarray:
    """[T] int64: the centroid with the largest dot product, the lowest on a tie (ALGORITHMS 2.2)."""
    codes = np.empty(len(vectors_TD), np.int64)
    for start in range(0, len(vectors_TD), BLOCK_TOKENS):
        block = vectors_TD[start : start + BLOCK_TOKENS].astype(np.float32)
        codes[start : start + len(block)] = (block @ centroids_CD.T).argmax(axis=1)
    return codes


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


def decompress(codes_T: np.ndarray, packed_TP: np.ndarray, centroids_CD: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """[T, D] float32: normalise(centroid + bucket weights) (ALGORITHMS 2.2)."""
    vectors_TD = residual_values(packed_TP, weights_K)
    vectors_TD += centroids_CD[codes_T]
    return normalize(vectors_TD)


def normalize(vectors_TD: np.ndarray) -> np.ndarray:
    """Rows of length one; zero stays zero."""
    norms = np.sqrt(np.einsum("td,td->t", vectors_TD, vectors_TD))
    return vectors_TD / np.maximum(norms, 1e-12)[:, None]


def best_in_documents(scores_nT: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[n, N]: each query token's best score among each document's tokens, -inf for a document without tokens."""
    best_nN = np.full((len(scores_nT), len(offsets) - 1), NEVER, scores_nT.dtype)
    present = np.flatnonzero(np.diff(offsets))
    if len(present):
        best_nN[:, present] = np.maximum.reduceat(scores_nT, offsets[:-1][present], axis=1)
    return best_nN


def maxsim(queries: list[np.ndarray], weights: list[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """[queries, N] float32: sum over query tokens i of weight_i max_j q_i . d_j; -inf for an empty document (ALGORITHMS 2.1)."""
    scores_nT = np.concatenate(queries).astype(np.float64) @ tokens_TD.astype(np.float64).T
    best_nN = best_in_documents(scores_nT, offsets)
    empty_N = offsets[:-1] == offsets[1:]
    totals = np.empty((len(queries), len(offsets) - 1), np.float32)
    start = 0
    for row, (query, weights_n) in enumerate(zip(queries, weights, strict=True)):
        totals[row] = _weighted_sum(best_nN[start : start + len(query)], weights_n, empty_N)
        start += len(query)
    return totals


def centroid_maxsim(
    scores_nC: np.ndarray, weights_n: np.ndarray, codes_T: np.ndarray, offsets: np.ndarray, keep_C: np.ndarray | None = None
) -> np.ndarray:
    """[N] float32: MaxSim with every token replaced by its centroid (PLAID's centroid interaction, ALGORITHMS 2.3).

    Args:
        scores_nC: query token by centroid.
        weights_n: importance of each query token (2.4: pruning looks at unweighted scores).
        keep_C: bool; other centroids' tokens are left out, and a document with none left scores -inf.
    """
    if keep_C is not None:
        kept = keep_C[codes_T]
        offsets = np.concatenate([[0], np.cumsum(kept)])[offsets]
        codes_T = codes_T[kept]
    totals = np.zeros(len(offsets) - 1, np.float32)
    for start, stop, first, last in document_blocks(offsets):
        best_nN = best_in_documents(np.take(scores_nC, codes_T[first:last], axis=1), offsets[start : stop + 1] - first)
        empty = offsets[start:stop] == offsets[start + 1 : stop + 1]
        totals[start:stop] = _weighted_sum(best_nN, weights_n, empty)
    return totals


def _weighted_sum(best_nN: np.ndarray, weights_n: np.ndarray, empty_N: np.ndarray) -> np.ndarray:
    """[N] float32: sum over query tokens; -inf for documents without tokens, whatever the weights."""
    best_nN[:, empty_N] = 0
    return np.where(empty_N, NEVER, (weights_n.astype(np.float64) @ best_nN.astype(np.float64)).astype(np.float32))


def posting_scores(query_D: np.ndarray, centroid_scores_T: np.ndarray, packed_TP: np.ndarray, weights_K: np.ndarray) -> np.ndarray:
    """[T] float64: WARP's token score, centroid score + q . bucket weights, not normalised (ALGORITHMS 4.1, step 3)."""
    return centroid_scores_T + residual_values(packed_TP, weights_K).astype(np.float64) @ query_D.astype(np.float64)


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
