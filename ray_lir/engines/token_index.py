"""TokenIndex: a FAISS index over a shard's decompressed tokens, which finds the best of them for a query token.

It is an inverted file whose lists are the codec's cells, so that the same cells hold the same tokens however the index is sharded, and
to look into all of them is to look at every token. It takes 4 D + 8 bytes of memory a token, and is made when it is first asked for.
"""

import threading
from typing import TYPE_CHECKING

import numpy as np

from ray_lir.base.forking import fork_safe
from ray_lir.base.parallel import num_cores, threads
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.faiss_threads import one_faiss_thread
from ray_lir.index.residuals import decompress
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.reference import tokens_of

if TYPE_CHECKING:
    import faiss

BLOCK_TOKENS = 1 << 16
"""Tokens that are decompressed at a time."""
ROUNDING = 1e-5
"""FAISS adds up products of unit vectors (of longer ones: times both lengths) within this, in an order that depends on a token's place."""

BLOCK_QUERIES = 32
"""Query tokens that are searched with at a time."""

_lock = fork_safe(threading.Lock())


class TokenIndex:
    """Over the tokens of one shard.

    Attributes:
        shard, codec: whose tokens they are, for scores that do not depend on how FAISS adds.
    """

    def __init__(self, shard: IndexShard, codec: ResidualCodec, lists: "faiss.IndexIVFFlat", longest: float):
        self.shard = shard
        self.codec = codec
        self._lists = lists
        self._longest = longest

    @classmethod
    def build(cls, shard: IndexShard, codec: ResidualCodec) -> "TokenIndex":
        import faiss  # only engine xtr needs it

        centroids = faiss.IndexFlatIP(codec.dim)
        centroids.add(codec.centroids_f32)
        lists = faiss.IndexIVFFlat(centroids, codec.dim, codec.num_centroids, faiss.METRIC_INNER_PRODUCT)
        lists.own_fields = True
        centroids.this.disown()
        lists.is_trained = True
        longest = 1.0
        for start in range(0, len(shard.codes), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            vectors = decompress(shard.codes[block], shard.residuals[block], shard.scales[block], codec)
            longest = max(longest, float(np.linalg.norm(vectors, axis=1).max()))
            codes = shard.codes[block].astype(np.int64)
            numbers = np.arange(start, start + len(codes))
            with one_faiss_thread():
                lists.add_core(len(codes), faiss.swig_ptr(vectors), faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
        return cls(shard, codec, lists, longest)

    def search(
        self, queries_nD: np.ndarray, k: int, cells: np.ndarray | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The k best tokens of each query token, one query token after another, best first and of equals the first.

        Args:
            cells: [n, nprobe] to look into; None for all.
            allowed: token numbers that may be found; None for all.

        Returns:
            Query tokens [hits] int64, token numbers [hits] int64, scores [hits] float32.
        """
        cells = (
            np.broadcast_to(np.arange(self.codec.num_centroids), (len(queries_nD), self.codec.num_centroids)) if cells is None else cells
        )
        found = []
        for start in range(0, len(queries_nD), BLOCK_QUERIES):
            block = slice(start, start + BLOCK_QUERIES)
            found += self._search(queries_nD[block], k, cells[block], allowed)
        rows = np.repeat(np.arange(len(found)), [len(tokens) for tokens, _ in found])
        tokens = np.concatenate([np.zeros(0, np.int64), *(tokens for tokens, _ in found)])
        return rows, tokens, np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in found)])

    def _search(self, queries_nD: np.ndarray, k: int, cells: np.ndarray, allowed: np.ndarray | None) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token numbers and scores for each query token.

        FAISS finds a few more than k, whose scores are made anew in float64; the k best of those are kept.
        """
        guessed = self._nearest_with_slack(queries_nD, k, cells, allowed)
        tokens = np.unique(np.concatenate(guessed))
        shard = self.shard
        vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], self.codec)
        scores_nT = (queries_nD.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
        found = []
        for scores_T, mine in zip(scores_nT, guessed, strict=True):
            mine = np.sort(mine)
            scores = scores_T[np.searchsorted(tokens, mine)]
            best = np.argsort(-scores, kind="stable")[:k]
            found.append((mine[best], scores[best]))
        return found

    def _nearest_with_slack(self, queries_nD: np.ndarray, k: int, cells: np.ndarray, allowed: np.ndarray | None) -> list[np.ndarray]:
        """For each query token numbers of tokens among which the k best are for certain: whatever FAISS leaves out is no better than its
        last, and cannot be among the k best where that is clear of the k-th."""
        sizes = np.diff(self.shard.posting_offsets)[cells].sum(axis=1)
        most = int(sizes.max(initial=0)) if allowed is None else min(int(sizes.max(initial=0)), len(allowed))
        slack = 2 * ROUNDING * self._longest * np.linalg.norm(queries_nD, axis=1)
        wanted = k + max(64, k // 16)
        while wanted < most:
            tokens, scores = self._nearest(queries_nD, wanted, cells, allowed)
            if ((tokens[:, -1] < 0) | (scores[:, k - 1] > scores[:, -1] + slack)).all():
                return [row[row >= 0] for row in tokens]
            wanted *= 2
        everything = [tokens_of(row, self.shard) for row in cells]
        return everything if allowed is None else [tokens[np.isin(tokens, allowed)] for tokens in everything]

    def _nearest(self, queries_nD: np.ndarray, k: int, cells: np.ndarray, allowed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """[n, k] token numbers, -1 past those that there are, and [n, k] scores."""
        import faiss

        parameters = faiss.SearchParametersIVF(nprobe=cells.shape[1])
        if allowed is not None:
            marks = np.zeros(len(self.shard.codes), bool)
            marks[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
            parameters = faiss.SearchParametersIVF(nprobe=cells.shape[1], sel=selector)
        queries, cells = np.ascontiguousarray(queries_nD, np.float32), np.ascontiguousarray(cells, np.int64)
        distances = np.zeros(cells.shape, np.float32)
        scores, tokens = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def search(rows: slice) -> None:
            pointers = (faiss.swig_ptr(array[rows]) for array in (cells, distances, scores, tokens))
            with one_faiss_thread():
                self._lists.search_preassigned_c(rows.stop - rows.start, faiss.swig_ptr(queries[rows]), k, *pointers, False, parameters)

        step = -(-len(queries) // num_cores())
        blocks = [slice(start, min(start + step, len(queries))) for start in range(0, len(queries), step)]
        list((threads if len(blocks) > 1 else map)(search, blocks))
        return tokens, scores


def token_index(shard: IndexShard, codec: ResidualCodec) -> TokenIndex:
    """The shard's, made when first asked for and kept as long as the shard."""
    with _lock:
        kept = shard.__dict__.get("_token_index")
        if kept is None or kept.codec is not codec:
            kept = TokenIndex.build(shard, codec)
            shard.__dict__["_token_index"] = kept
        return kept
