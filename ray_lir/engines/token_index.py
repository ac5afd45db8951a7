"""TokenIndex: a FAISS index over the decompressed tokens of a shard, which finds the best tokens for each query token.

It is an inverted file with one list for each cluster of the codec. The clusters are therefore the same for any number of shards, and a
search of all lists compares every token. A token takes 4 D + 8 bytes of memory. The FAISS index is built when it is first needed.
"""

from typing import TYPE_CHECKING

import numpy as np

from ray_lir.base.derived import derived
from ray_lir.base.parallel import num_cores, threads
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.faiss_gpu import GpuVectors, num_gpus
from ray_lir.index.faiss_threads import one_faiss_thread
from ray_lir.index.residuals import decompress
from ray_lir.index.shard import IndexShard
from ray_lir.kernels.reference import tokens_of

if TYPE_CHECKING:
    import faiss

BLOCK_TOKENS = 1 << 16
"""Tokens that are decompressed together."""
ROUNDING = 1e-5
"""Largest error of FAISS in the dot product of two unit vectors. For other vectors it is multiplied by both lengths. FAISS's order of
summation depends on a token's position, so equal tokens can get different scores."""
BLOCK_QUERIES = 32
"""Query tokens that are searched together."""


class TokenIndex:
    """The FAISS index of one shard.

    Attributes:
        codec: The codec that decompresses tokens, for scores that do not depend on FAISS's order of summation.
        lists: One inverted list for each cluster, with all tokens of the shard.
        longest: Length of the longest vector, at least 1.
        on_gpu: The same tokens on a GPU, if FAISS sees one; otherwise None. It serves searches of all clusters without filters.
    """

    def __init__(self, codec: ResidualCodec, lists: "faiss.IndexIVFFlat", longest: float, on_gpu: GpuVectors | None = None):
        self.codec = codec
        self.lists = lists
        self.longest = longest
        self.on_gpu = on_gpu

    @classmethod
    def build(cls, shard: IndexShard, codec: ResidualCodec) -> "TokenIndex":
        """Return the FAISS index of all tokens of a shard."""
        import faiss  # only engine xtr needs it

        centroids = faiss.IndexFlatIP(codec.dim)
        centroids.add(codec.centroids_f32)
        lists = faiss.IndexIVFFlat(centroids, codec.dim, codec.num_centroids, faiss.METRIC_INNER_PRODUCT)
        lists.own_fields = True
        centroids.this.disown()
        lists.is_trained = True
        longest = 1.0
        on_gpu = GpuVectors(codec.dim) if num_gpus() else None
        for start in range(0, len(shard.codes), BLOCK_TOKENS):
            block = slice(start, start + BLOCK_TOKENS)
            vectors = decompress(shard.codes[block], shard.residuals[block], shard.scales[block], codec)
            longest = max(longest, float(np.linalg.norm(vectors, axis=1).max()))
            if on_gpu is not None:
                on_gpu.add(vectors)
            codes = shard.codes[block].astype(np.int64)
            numbers = np.arange(start, start + len(codes))
            with one_faiss_thread():
                lists.add_core(len(codes), faiss.swig_ptr(vectors), faiss.swig_ptr(numbers), faiss.swig_ptr(codes))
        return cls(codec, lists, longest, on_gpu)

    def search(
        self, shard: IndexShard, queries_nD: np.ndarray, k: int, clusters: np.ndarray | None, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the k best tokens for each query token, grouped by query token, best first; ties go to the lower token number.

        Args:
            shard: The shard that the FAISS index was built from.
            queries_nD: [n, D] float32, the query tokens.
            k: Tokens for each query token; fewer are returned if fewer are allowed.
            clusters: [n, nprobe] int64, the clusters to search; None for all.
            allowed: [A] int64, token numbers that may be returned; None for all.

        Returns:
            Positions of query tokens [H] int64, token numbers inside the shard [H] int64, scores [H] float32.
        """
        num_clusters = self.codec.num_centroids
        clusters = np.broadcast_to(np.arange(num_clusters), (len(queries_nD), num_clusters)) if clusters is None else clusters
        found: list[tuple[np.ndarray, np.ndarray]] = []
        for start in range(0, len(queries_nD), BLOCK_QUERIES):
            block = slice(start, start + BLOCK_QUERIES)
            found += self._search(shard, queries_nD[block], k, clusters[block], allowed)
        rows = np.repeat(np.arange(len(found)), [len(tokens) for tokens, _ in found])
        tokens = np.concatenate([np.zeros(0, np.int64), *(tokens for tokens, _ in found)])
        return rows, tokens, np.concatenate([np.zeros(0, np.float32), *(scores for _, scores in found)])

    def _search(
        self, shard: IndexShard, queries_nD: np.ndarray, k: int, clusters: np.ndarray, allowed: np.ndarray | None
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Token numbers and scores for each query token. FAISS returns a few more than k tokens. Their scores are computed again in
        float64, and the k best are kept."""
        candidates = self._nearest_with_slack(shard, queries_nD, k, clusters, allowed)
        tokens = np.unique(np.concatenate(candidates))
        vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], self.codec)
        scores_nT = (queries_nD.astype(np.float64) @ vectors.T.astype(np.float64)).astype(np.float32)
        found = []
        for scores_T, numbers in zip(scores_nT, candidates, strict=True):
            numbers = np.sort(numbers)
            scores = scores_T[np.searchsorted(tokens, numbers)]
            best = np.argsort(-scores, kind="stable")[:k]
            found.append((numbers[best], scores[best]))
        return found

    def _nearest_with_slack(
        self, shard: IndexShard, queries_nD: np.ndarray, k: int, clusters: np.ndarray, allowed: np.ndarray | None
    ) -> list[np.ndarray]:
        """For each query token, token numbers that are certain to include the k best. A token that FAISS leaves out scores no better than
        the last token that FAISS returns. So none of the k best is missing if the last score is below the k-th by more than the rounding
        error."""
        sizes = np.diff(shard.posting_offsets)[clusters].sum(axis=1)
        most = int(sizes.max(initial=0)) if allowed is None else min(int(sizes.max(initial=0)), len(allowed))
        slack = 2 * ROUNDING * self.longest * np.linalg.norm(queries_nD, axis=1)
        num_tokens = k + max(64, k // 16)
        while num_tokens < most:
            tokens, scores = self._nearest(shard, queries_nD, num_tokens, clusters, allowed)
            if ((tokens[:, -1] < 0) | (scores[:, k - 1] > scores[:, -1] + slack)).all():
                return [row[row >= 0] for row in tokens]
            num_tokens *= 2
        everything = [tokens_of(row, shard) for row in clusters]
        return everything if allowed is None else [tokens[np.isin(tokens, allowed)] for tokens in everything]

    def _nearest(
        self, shard: IndexShard, queries_nD: np.ndarray, k: int, clusters: np.ndarray, allowed: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """FAISS's token numbers [n, k] int64, -1 if fewer are allowed, and scores [n, k] float32."""
        import faiss

        if self.on_gpu is not None and allowed is None and clusters.shape[1] == self.codec.num_centroids:
            return self.on_gpu.search(queries_nD, k)
        parameters = faiss.SearchParametersIVF(nprobe=clusters.shape[1])
        if allowed is not None:
            marks = np.zeros(len(shard.codes), bool)
            marks[allowed] = True
            selector = faiss.IDSelectorBitmap(np.packbits(marks, bitorder="little"))
            parameters = faiss.SearchParametersIVF(nprobe=clusters.shape[1], sel=selector)
        queries, clusters = np.ascontiguousarray(queries_nD, np.float32), np.ascontiguousarray(clusters, np.int64)
        distances = np.zeros(clusters.shape, np.float32)
        scores, tokens = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)

        def search(rows: slice) -> None:
            pointers = (faiss.swig_ptr(array[rows]) for array in (clusters, distances, scores, tokens))
            with one_faiss_thread():
                self.lists.search_preassigned_c(rows.stop - rows.start, faiss.swig_ptr(queries[rows]), k, *pointers, False, parameters)

        step = -(-len(queries) // num_cores())
        blocks = [slice(start, min(start + step, len(queries))) for start in range(0, len(queries), step)]
        list((threads if len(blocks) > 1 else map)(search, blocks))
        return tokens, scores


@derived
def token_index(shard: IndexShard, codec: ResidualCodec) -> TokenIndex:
    """Return the FAISS index of a shard. It is built at the first call and kept as long as the shard."""
    return TokenIndex.build(shard, codec)
