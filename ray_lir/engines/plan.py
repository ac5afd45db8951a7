"""QueryPlan: all that a shard needs to know about a query, made once for all shards; and the answers, with how they are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ray_lir.base.config import Config
from ray_lir.base.derived import derived
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

if TYPE_CHECKING:
    from ray_lir.engines.scoring.scorer import QueryTerms  # it takes a Query

NORMS_NPROBE = 4
"""Factor of nprobe where vectors differ in length: a long token can score best although its direction is further away."""
NORMS_CANDIDATES = 4
"""Factor of the default number of candidates where vectors differ in length."""
USUAL_TOKENS = 21
"""Tokens of a query, where a default is computed without one."""


@dataclass(frozen=True, eq=False, repr=False)
class Query:
    """The token embeddings of one query of n tokens.

    Attributes:
        vectors: [n, D] float32, rotated as the codec rotates documents. Rows of zeros are masked tokens, which take no part.
        weights: [n] float32, importance of each token times `norms`; at least 0 (u_i in docs/algorithms.md#7-one-factored-form).
        norms: [n] float32, the lengths by which rows were divided to have unit length; None if no row was.
    """

    vectors: np.ndarray
    weights: np.ndarray
    norms: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.vectors)} tokens, {self.vectors.shape[-1]} dimensions)"

    @property
    def importance(self) -> np.ndarray:
        """[n] float32: the weights of the tokens without their lengths."""
        return self.weights if self.norms is None else self.weights / self.norms

    @property
    def active(self) -> np.ndarray:
        """[n'] int64: the tokens that find documents, which are not masked and have a weight above 0."""
        return np.flatnonzero((self.weights > 0) & self.vectors.any(axis=1))


@dataclass(frozen=True, eq=False, repr=False)
class IndexStatistics:
    """What plans are made from; the same on every shard.

    Attributes:
        num_docs: documents that are not deleted.
        num_tokens: their tokens.
        cluster_sizes: [C] int64, tokens of every centroid.
        dim: dimensions of a vector.
        scorer_cost: time to add the scorer's own terms to the MaxSim score of a document, in units of that MaxSim score's time.
        unit_norms: whether document tokens have about unit length.
    """

    num_docs: int
    num_tokens: int
    cluster_sizes: np.ndarray
    dim: int = 128
    scorer_cost: float = 0.0
    unit_norms: bool = True

    def __repr__(self) -> str:
        return f"IndexStatistics({self.num_docs} documents, {self.num_tokens} tokens, {self.num_centroids} centroids)"

    @property
    def num_centroids(self) -> int:
        return len(self.cluster_sizes)

    @property
    def tokens_per_centroid(self) -> float:
        return self.num_tokens / self.num_centroids

    @property
    def tokens_per_document(self) -> float:
        return self.num_tokens / max(1, self.num_docs)

    def default_candidates(self, k: int, num_tokens: int = USUAL_TOKENS, fraction: float = 1) -> int:
        """Return how many documents are worth rescoring for the best k.

        Errors of the centroids for one query token are evened out by the other tokens, so short queries need more candidates. Ranked by
        centroid scores, the best 128 of 5,183 documents (SciFact) hold .995 of the exact top 10 of queries of 21 tokens; for queries of
        5 tokens, .993 takes 500 of 3,633 documents (NFCorpus). Ten times as many documents need 2.5 times as many candidates.
        `jobs.tune` measures the number for an index.

        Args:
            k: documents to return.
            num_tokens: active tokens of the query.
            fraction: factor of the default.
        """
        for_tokens = max(96, 2700 / max(1, num_tokens))
        default = max(4 * k, round(for_tokens * max(1.0, self.num_docs / 5000) ** 0.4))
        return max(1, round(fraction * default * (1 if self.unit_norms else NORMS_CANDIDATES)))


@dataclass(frozen=True, eq=False, repr=False)
class QueryPlan:
    """A query, prepared for the shards. Engines with arrays of their own extend it.

    Attributes:
        query: the query.
        params: the engine's parameters with all defaults filled in; they are returned with the answer.
        stage_limits: how many documents each stage keeps, over all shards. The engine runs as many stages as there are limits.
        scorer_terms: what the scorer adds to MaxSim for this query; None if exact scores are MaxSim.
        unit_norms: whether document tokens have about unit length, so that centroid scores need no lengths.
    """

    query: Query
    params: Any  # the engine's model: engines that need it typed declare it again
    stage_limits: tuple[int, ...]
    scorer_terms: "QueryTerms | None" = None
    unit_norms: bool = True

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.query!r}, {self.params!r}, stage_limits={self.stage_limits})"


@dataclass(eq=False)
class _Tables:
    """Tables of one query for one codec, by the name of the kernels. The number of threads does not change them."""

    centroids: dict[str, np.ndarray] = field(default_factory=dict)
    scans: dict[str, Any] = field(default_factory=dict)


@derived
def _tables(query: Query, codec: ResidualCodec) -> _Tables:
    return _Tables()


def centroid_scores(query: Query, codec: ResidualCodec, kernels: Kernels) -> np.ndarray:
    """Return the scores of the query's tokens with every centroid, computed once a query in each process.

    Args:
        query: the query of n tokens.
        codec: of the index.
        kernels: compute the scores.

    Returns:
        [C, L], with at least n lanes L; the kernels choose the type.
    """
    tables = _tables(query, codec).centroids
    if kernels.name not in tables:
        tables[kernels.name] = kernels.centroid_scores(query.vectors, codec)
    return tables[kernels.name]


def scan_table(query: Query, codec: ResidualCodec, kernels: Kernels) -> Any:
    """Return the centroid scores as `kernels.scan_codes` looks them up, computed once a query in each process.

    Args:
        query: the query.
        codec: of the index.
        kernels: compute the table.
    """
    tables = _tables(query, codec).scans
    if kernels.name not in tables:
        tables[kernels.name] = kernels.scan_table(centroid_scores(query, codec, kernels))
    return tables[kernels.name]


@dataclass(frozen=True, eq=False, repr=False)
class TopK(ShortRepr):
    """The best documents of one query, best first; ties go to the lower document number.

    Attributes:
        scores: [<= k] float32.
        documents: [<= k] int64 document numbers.
        params: the engine's parameters that gave this answer.
    """

    scores: np.ndarray
    documents: np.ndarray
    params: Config | None = None


def centroid_interaction(
    plan: QueryPlan,
    shard: IndexShard,
    codec: ResidualCodec,
    kernels: Kernels,
    threshold: float | None = None,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """Return MaxSim with every document token replaced by its centroid, times the token's length where lengths differ.

    Args:
        plan: of the query.
        shard: holds the documents.
        codec: of the index.
        kernels: score the codes.
        threshold: centroids that score below it for every query token are left out; None leaves out none.
        documents: ascending numbers inside the shard; None for all documents.

    Returns:
        [N] float32, -inf for a document without a centroid that counts.
    """
    table = centroid_scores(plan.query, codec, kernels)
    if not plan.unit_norms:
        codes = norm_codes(shard)
        table, shard = codes.table(table), codes.shard
    return kernels.centroid_maxsim(table, plan.query.weights, shard, threshold, documents)


def among(scores: np.ndarray, numbers: np.ndarray, documents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the scored documents that are allowed.

    Args:
        scores: [N] float32.
        numbers: [N] int64, ascending.
        documents: allowed numbers, ascending; None for all.

    Returns:
        Scores and numbers of the allowed documents.
    """
    if documents is None:
        return scores, numbers
    kept = np.isin(numbers, documents, assume_unique=True, kind="table")
    return scores[kept], numbers[kept]


def merge(parts: Sequence[TopK], k: int, kernels: Kernels) -> TopK:
    """Return the best k documents of several answers about different documents.

    Args:
        parts: the answers; may be empty.
        k: documents to keep.
        kernels: choose the best.
    """
    scores = np.concatenate([part.scores for part in parts]) if parts else np.zeros(0, np.float32)
    documents = np.concatenate([part.documents for part in parts]) if parts else np.zeros(0, np.int64)
    return TopK(*kernels.top_k(scores, documents, k))
