"""Kernels: the interface of the inner loops of building and search.

`reference.py` (NumPy) defines what each method computes; `native.py` (C++) and `cuda/` (Triton) must agree with it.

Letters in the names of arrays give their shapes: T tokens, N documents, C centroids, D dimensions and n query tokens. A packed residual has
P = D nbits / 8 bytes. A table of centroid scores has width L: n in the reference, and n rounded up to the width of a register elsewhere.
Documents have different lengths: document i owns the tokens offsets[i] to offsets[i + 1].
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import QueryRelation
from ray_lir.index.shard import IndexShard


class ByteTable(NamedTuple):
    """Centroid scores in one byte each: byte b of query token i stands for the score lows[i] + b steps[i].

    Attributes:
        bytes: [C, L] uint8.
        lows: [L] float32.
        steps: [L] float32.
    """

    bytes: np.ndarray
    lows: np.ndarray
    steps: np.ndarray


ScanTable = np.ndarray | ByteTable
"""The centroid scores of a query in the form that a kernel set scans with; pass it only to the set that made it."""


class Kernels(Protocol):
    """A kernel set. Sets can be pickled, and calls are safe in threads."""

    @property
    def name(self) -> str:
        """`reference`, `cuda`, or `native:` followed by the instruction set."""

    @property
    def threads(self) -> int:
        """Number of threads that one call uses at most."""

    @property
    def queries_together(self) -> int:
        """Number of queries to score in one pass over a shard."""

    @property
    def uses_blas(self) -> bool:
        """Whether calls use NumPy's BLAS, with its own number of threads."""

    def assign(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, euclidean: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest centroid of each vector, scaled to length one; ties go to the lowest number.

        The codec compresses directions, so all kernel sets ignore the lengths of vectors, but not those of centroids.

        Source: docs/algorithms.md#22-residual-codec.

        Args:
            vectors_TD: [T, D] float16 or float32.
            centroids_CD: [C, D] float32.
            euclidean: Compare by x . c - |c|^2 / 2, which is largest at the smallest distance, instead of x . c (x has length one).
        Returns:
            Codes [T] int64, and the value that was compared, [T] float32.
        """

    def nearest_cells(self, vectors_TD: np.ndarray, cells_BD: np.ndarray, nprobe: int) -> np.ndarray:
        """Find the cells with the nearest centres (L2) of each vector, scaled to length one.

        A cell is a group of centroids that assignment searches together.

        Args:
            vectors_TD: [T, D] float16 or float32.
            cells_BD: [B, D] float32, the centres of B cells.
            nprobe: Number of cells to find for each vector.
        Returns:
            [T, nprobe] int64, nearest first; ties go to the lowest number.
        """

    def assign_in_cells(self, vectors_TD: np.ndarray, centroids_CD: np.ndarray, offsets: np.ndarray, probes_Tp: np.ndarray) -> np.ndarray:
        """Find the nearest centroid (L2) of each vector, scaled to length one, among the centroids of its cells.

        Args:
            vectors_TD: [T, D] float16 or float32.
            centroids_CD: [C, D] float32, in the order of cells.
            offsets: [B + 1] int64; cell b owns the centroids offsets[b] to offsets[b + 1].
            probes_Tp: [T, p] int64, the cells to search for each vector.
        Returns:
            Codes [T] int64; -1 where the cells hold no centroid.
        """

    def rotate(self, vectors_TD: np.ndarray, rotation_DD: np.ndarray) -> np.ndarray:
        """Return vectors @ rotation, [T, D] float32. The bits do not depend on the block of vectors or on threads."""

    def compress(self, vectors_TD: np.ndarray, codes_T: np.ndarray, codec: ResidualCodec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Compress the residuals of unit vectors.

        A token decodes to scales[0] centroid + scales[1] bucket weights, which has length one. With `codec.token_scale` the buckets are
        those of the residual over its root mean square, and the decoded residual has the length of the residual.

        Source: docs/algorithms.md#22-residual-codec.

        Args:
            vectors_TD: [T, D] float16 or float32, rotated.
            codes_T: [T], the centroid of each vector.
            codec: The codec of the index.
        Returns:
            Packed residuals [T, P] uint8, scales [T, 2] float32, and the norms of the residuals [T] float32.
        """

    def maxsim(
        self, queries: Sequence[np.ndarray], weights: Sequence[np.ndarray], tokens_TD: np.ndarray, offsets: np.ndarray
    ) -> np.ndarray:
        """Score documents of plain vectors: the sum over query tokens i of weight_i max_j q_i . d_j.

        Source: docs/algorithms.md#21-maxsim.

        Args:
            queries: Q arrays [n, D] float32.
            weights: Q arrays [n], the weights of the query tokens.
            tokens_TD: [T, D] float16 or float32.
            offsets: [N + 1] int64.
        Returns:
            [Q, N] float32; -inf for a document without tokens.
        """

    def centroid_scores(self, query_nD: np.ndarray, codec: ResidualCodec) -> np.ndarray:
        """Return the dot product of every centroid with every query token, [C, L] float32 or float16."""

    def residual_maxsim(
        self,
        queries: Sequence[np.ndarray],
        weights: Sequence[np.ndarray],
        tables: Iterable[np.ndarray],
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
        """Score documents from codes and residuals.

        The score is the sum over query tokens i of weight_i rho_j q_i . d_j, where token j has the largest q_i . d_j and rho_j is its
        token weight (1 if the shard has no weights).

        Args:
            queries: Q arrays [n, D] float32, rotated.
            weights: Q arrays [n], the weights of the query tokens.
            tables: `centroid_scores` of each query. Some kernel sets do not read them.
            shard: The shard that holds the documents.
            codec: The codec of the index.
            documents: [N] int64, numbers inside the shard; None for all documents.
        Returns:
            [Q, N] float32; -inf for a document without tokens.
        """

    def nearest_maxsim(
        self,
        query_nD: np.ndarray,
        weights_n: np.ndarray,
        table: ScanTable,
        shard: IndexShard,
        codec: ResidualCodec,
        documents: np.ndarray,
    ) -> np.ndarray:
        """Approximate `residual_maxsim` by decoding only the tokens that are nearest to the query.

        For each query token, only the document tokens with the best centroid score are decoded. Its term is the best of their scores, times
        the weight of the token, plus half of what the second best centroid score of the document exceeds that score. Kernel sets that
        decode tokens faster than they select them may return exact scores instead.

        Source: docs/algorithms.md#25-scan.

        Args:
            query_nD: [n, D] float32, rotated.
            weights_n: [n], the weights of the query tokens.
            table: `scan_table` of the query.
            shard: The shard that holds the documents.
            codec: The codec of the index.
            documents: [N] int64, numbers inside the shard.
        Returns:
            [N] float32; -inf for a document without tokens.
        """

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
        """Score documents with relations from codes and residuals.

        Query tokens are aligned one after another. Token i matches the document token j with the largest q_i . d_j + relation(p, j),
        where p is the match of token i - 1 (with `by_cosine`, its token of the largest cosine); ties go to the first token. The score
        is the sum of weight_i (rho_j q_i . d_j + relation).

        Source: docs/algorithms.md#51-score, docs/algorithms.md#55-limited-relations.

        Args:
            query_nD: [n, D] float32, rotated, without masked tokens.
            weights_n: [n], the weights of the query tokens.
            relation: The query's part of the relation: `RelationEncoder.of_query(query_nD)`.
            table_CL: `centroid_scores` of the query. Some kernel sets do not read it.
            shard: The shard that holds the documents.
            codec: The codec of the index, with a relation encoder.
            documents: [N] int64, numbers inside the shard; None for all documents.
            nearest_tokens: Number of document tokens that each query token except the first is compared with: those with the largest
                dot products with its selector; ties go to the first token. None: all.
            selectors_nD: [n, D] float32, one vector for each query token. None: the query vectors.
            selector_table_CL: `centroid_scores` of the selectors; None without selectors. Some kernel sets do not read it.
        Returns:
            [N] float32; -inf for a document without tokens.
        """

    def centroid_maxsim(
        self,
        table_CL: np.ndarray,
        weights_n: np.ndarray,
        shard: IndexShard,
        threshold: float | None = None,
        documents: np.ndarray | None = None,
    ) -> np.ndarray:
        """Score documents with every token replaced by its centroid: PLAID's centroid interaction.

        Token weights are left out, because the match is a centroid, which has none.

        Source: docs/algorithms.md#23-plaid.

        Args:
            table_CL: `centroid_scores` of the query.
            weights_n: [n], the weights of the query tokens. Pruning does not use them.
            shard: The shard that holds the documents.
            threshold: Drop tokens if their centroid scores below this for every query token; None to keep all.
            documents: [N] int64, numbers inside the shard; None for all documents.
        Returns:
            [N] float32; -inf for a document without (remaining) tokens.
        """

    def scan_table(self, table_CL: np.ndarray) -> ScanTable:
        """Return the centroid scores of a query in the form that `scan_codes` reads; make it once a query."""

    def scan_codes(self, table: ScanTable, weights_n: np.ndarray, shard: IndexShard, documents: np.ndarray | None = None) -> np.ndarray:
        """Return `centroid_maxsim` of documents, [N] float32.

        Args:
            table: `scan_table` of the query.
            weights_n: [n], the weights of the query tokens.
            shard: The shard that holds the documents.
            documents: [N] int64, numbers inside the shard; None for all documents.
        """

    def probe(
        self, table_CL: np.ndarray, num_tokens: int, cluster_sizes: np.ndarray, nprobe: int, bound: int, t_prime: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Find the nearest clusters of each query token, and WARP's imputed score.

        Source: docs/algorithms.md#41-algorithm, step 1.

        Args:
            table_CL: `centroid_scores` of the query.
            num_tokens: Number of query tokens n, at most L.
            cluster_sizes: [C] int64, the tokens of each cluster over the whole index.
            nprobe: Number of clusters to find, best first; ties go to the lower number.
            bound: Largest number of clusters to pass on the way to `t_prime`.
            t_prime: Number of tokens to pass; the imputed score is that of the cluster where it is reached.
        Returns:
            Clusters [n, nprobe] int64, their scores [n, nprobe] float32, and imputed scores [n] float32.
        """

    def candidates(self, clusters: np.ndarray, shard: IndexShard) -> np.ndarray:
        """Return the documents with a token in one of the clusters, [N] int64, ascending."""

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
        """Score with WARP the documents that have a token in a probed cluster.

        A token scores its centroid score + q . bucket weights, in the residual's own scale and without normalisation. For each query
        token a document adds its best token's score times that token's weight, or the imputed score if none of its tokens was
        probed. Ties go to the first token in the order of clusters.

        Source: docs/algorithms.md#41-algorithm, steps 3 and 4.

        Args:
            query_nD: [n, D] float32, rotated.
            weights_n: [n], the weights of the query tokens.
            clusters: [n, nprobe] int64, the probed clusters of each query token.
            cluster_scores: [n, nprobe] float32, their centroid scores.
            imputed_n: [n] float32, the score of a query token without a probed token.
            floor: Raise scores below the imputed score to it (docs/algorithms.md#43-choices).
            shard: The shard that holds the postings.
            codec: The codec of the index.
        Returns:
            Scores [N] float32, and documents [N] int64, ascending.
        """

    def top_k(self, scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best scores and their documents, best first; ties go to the lower document number.

        Args:
            scores: [N] float32; documents that score -inf are left out.
            documents: [N] int64.
            k: Number of results; fewer are returned if there are fewer documents.
        Returns:
            Scores [<= k] float32, and documents [<= k] int64.
        """
