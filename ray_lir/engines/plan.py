"""QueryPlan: one query prepared for all shards. TopK: the documents of an answer. Both are the same types for every engine."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ray_lir.api.search import HitSides
from ray_lir.base.derived import derived
from ray_lir.base.short_repr import ShortRepr
from ray_lir.engines.params import EngineConfig
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.lexical import LexicalStatistics
from ray_lir.index.norms import norm_codes
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

if TYPE_CHECKING:
    from ray_lir.engines.scoring.scorer import QueryTerms  # it takes a Query

NORMS_NPROBE = 4
"""Factor of nprobe if vectors differ in length: a long vector can score best although its direction is further from the query's."""
NORMS_CANDIDATES = 4
"""Factor of the default number of candidates if vectors differ in length."""
USUAL_TOKENS = 21
"""Assumed tokens of a query, for defaults that are computed without a query."""


@dataclass(frozen=True, eq=False, repr=False)
class Query:
    """The token embeddings of one query of n tokens.

    Attributes:
        vectors: [n, D] float32, rotated as the codec rotates documents. Rows of zeros are masked tokens, which do not score.
        weights: [n] float32, importance of each token times `norms`; at least 0 (u_i in docs/algorithms.md#7-one-factored-form).
        norms: [n] float32, the original lengths of vectors that were normalized; None if none was normalized.
        text: The query's text, for lexical and hybrid search; None if unknown.
    """

    vectors: np.ndarray
    weights: np.ndarray
    norms: np.ndarray | None = None
    text: str | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.vectors)} tokens, {self.vectors.shape[-1]} dimensions)"

    @property
    def importance(self) -> np.ndarray:
        """The token weights [n] float32, without the factor `norms`."""
        return self.weights if self.norms is None else self.weights / self.norms

    @property
    def active(self) -> np.ndarray:
        """The active tokens [n'] int64: tokens that are not masked and have a weight above 0."""
        return np.flatnonzero((self.weights > 0) & self.vectors.any(axis=1))


@dataclass(frozen=True, eq=False, repr=False)
class IndexStatistics:
    """Statistics of a whole index, from which plans are made.

    Attributes:
        num_docs: Live documents.
        num_tokens: Tokens of live documents.
        cluster_sizes: [C] int64, tokens of each cluster.
        dim: Dimensions of a vector.
        scorer_cost: Time of the scorer's own terms for a document, divided by the time of its MaxSim score.
        unit_norms: Whether document token vectors have about unit length.
        lexical: Statistics of the documents' terms; None if the index has no lexical postings.
        on_disk: Whether residuals stay on the disk (index/residency.py).
    """

    num_docs: int
    num_tokens: int
    cluster_sizes: np.ndarray
    dim: int = 128
    scorer_cost: float = 0.0
    unit_norms: bool = True
    lexical: LexicalStatistics | None = None
    on_disk: bool = False

    def __repr__(self) -> str:
        return f"IndexStatistics({self.num_docs} documents, {self.num_tokens} tokens, {self.num_centroids} centroids)"

    @property
    def num_centroids(self) -> int:
        """Number of centroids, C."""
        return len(self.cluster_sizes)

    @property
    def tokens_per_centroid(self) -> float:
        """Mean tokens of a cluster."""
        return self.num_tokens / self.num_centroids

    @property
    def tokens_per_document(self) -> float:
        """Mean tokens of a live document."""
        return self.num_tokens / max(1, self.num_docs)

    def default_candidates(self, k: int, num_tokens: int = USUAL_TOKENS, fraction: float = 1) -> int:
        """Return the default number of documents to rescore for the top k.

        Centroid scores err independently for each query token and the errors cancel out over the tokens. Short queries therefore need
        more candidates, and their number grows faster with the collection. `jobs.tune` measures the number for an index.

        Source: docs/algorithms.md#25-scan; measured on 1,900 to 50,500 documents (bench/README.md#candidates-of-growing-collections).

        Args:
            k: Documents to return.
            num_tokens: Active tokens of the query.
            fraction: Factor of the default.

        Returns:
            Candidates, at least 1.
        """
        num_tokens = max(1, num_tokens)
        for_tokens = max(96, 2700 / num_tokens) * math.sqrt(max(1, k / 10))
        growth = max(1.0, self.num_docs / 5000) ** min(0.4, 8 / num_tokens)
        default = round(max(4 * k, for_tokens) * growth)
        return max(1, round(fraction * default * (1 if self.unit_norms else NORMS_CANDIDATES)))


@dataclass(frozen=True, eq=False, repr=False)
class QueryPlan:
    """A query, prepared once for all shards. Engines with arrays of their own have a subclass.

    Attributes:
        query: The query.
        params: The engine's parameters with all defaults filled in. They are returned with the answer. Subclasses declare their model.
        stage_limits: Documents that each stage keeps, over all shards. The engine runs as many stages as there are limits.
        scorer_terms: The scorer's own arithmetic for this query; None if exact scores are MaxSim.
        unit_norms: Whether document token vectors have about unit length, so that centroid scores need no lengths.
        approximation: A query for MaxSim. Its scores select the documents of the last stage, `relate`; only that stage computes the
            scorer's terms. None: there is no such stage, and the terms are part of every exact score.
    """

    query: Query
    params: EngineConfig
    stage_limits: tuple[int, ...]
    scorer_terms: "QueryTerms | None" = None
    unit_norms: bool = True
    approximation: Query | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.query!r}, {self.params!r}, stage_limits={self.stage_limits})"


@dataclass(eq=False, repr=False)
class _Tables(ShortRepr):
    """Score tables of one query for one codec, by the name of the kernels. They do not depend on the number of threads."""

    centroids: dict[str, np.ndarray] = field(default_factory=dict)
    scans: dict[str, Any] = field(default_factory=dict)


@derived
def _tables(query: Query, codec: ResidualCodec) -> _Tables:
    return _Tables()


def centroid_scores(query: Query, codec: ResidualCodec, kernels: Kernels) -> np.ndarray:
    """Return the scores of query tokens with all centroids. Each process computes them once for a query.

    Args:
        query: The query of n tokens.
        codec: The codec of the index.
        kernels: The kernels that compute the scores.

    Returns:
        [C, L]. Columns 0 to n - 1 belong to the query's tokens. The kernels choose L and the dtype.
    """
    tables = _tables(query, codec).centroids
    if kernels.name not in tables:
        tables[kernels.name] = kernels.centroid_scores(query.vectors, codec)
    return tables[kernels.name]


def scan_table(query: Query, codec: ResidualCodec, kernels: Kernels) -> Any:
    """Return the centroid scores in the format that `kernels.scan_codes` reads. Each process computes them once for a query.

    Args:
        query: The query.
        codec: The codec of the index.
        kernels: The kernels that compute the table and read it.

    Returns:
        The table, in a type that the kernels choose.
    """
    tables = _tables(query, codec).scans
    if kernels.name not in tables:
        tables[kernels.name] = kernels.scan_table(centroid_scores(query, codec, kernels))
    return tables[kernels.name]


@dataclass(frozen=True, eq=False, repr=False)
class Sides(ShortRepr):
    """What both sides of a hybrid search found, for each document of an answer.

    Attributes:
        lexical: [<= k] float32, BM25 scores; 0 for a document without a term of the query.
        vectors: [<= k] float32, exact late-interaction scores.
        by_terms: [<= k] bool, whether the document is among the candidates by BM25.
        by_vectors: [<= k] bool, whether the document is among the candidates by token vectors.
    """

    lexical: np.ndarray
    vectors: np.ndarray
    by_terms: np.ndarray
    by_vectors: np.ndarray

    def of_hit(self, row: int) -> HitSides:
        """Return the sides of one document of the answer, as the API shows them."""
        score = float(self.vectors[row])
        found: list[Literal["terms", "vectors"]] = []
        if self.by_terms[row]:
            found.append("terms")
        if self.by_vectors[row]:
            found.append("vectors")
        return HitSides(bm25=float(self.lexical[row]), late_interaction=score if score > -np.inf else None, found_by=tuple(found))


@dataclass(frozen=True, eq=False, repr=False)
class TopK(ShortRepr):
    """The best documents of one query, best first; ties go to the lower document number.

    Attributes:
        scores: [<= k] float32. Between the stages of an engine with several columns: [N, columns] float32, -inf where a document is not
            among the best of a column.
        documents: [<= k] int64, document numbers.
        params: The engine's parameters that produced this answer.
        sides: The scores of both sides of a hybrid search; None for other engines.
    """

    scores: np.ndarray
    documents: np.ndarray
    params: EngineConfig | None = None
    sides: Sides | None = None


def centroid_interaction(
    plan: QueryPlan,
    shard: IndexShard,
    codec: ResidualCodec,
    kernels: Kernels,
    threshold: float | None = None,
    documents: np.ndarray | None = None,
) -> np.ndarray:
    """Return MaxSim scores of documents with each token replaced by its centroid.

    If vectors differ in length, the centroid is scaled to the length of the token.

    Args:
        plan: The plan of the query.
        shard: The shard that holds the documents.
        codec: The codec of the index.
        kernels: The kernels that score codes.
        threshold: Centroids that score below it for every query token are left out; None leaves out none.
        documents: [N] ascending numbers inside the shard; None for all documents.

    Returns:
        [N] float32, -inf for a document without tokens, or with no centroid at or above the threshold.

    Source: docs/algorithms.md#23-plaid
    """
    table = centroid_scores(plan.query, codec, kernels)
    if not plan.unit_norms:
        codes = norm_codes(shard)
        table, shard = codes.table(table), codes.shard
    return kernels.centroid_maxsim(table, plan.query.weights, shard, threshold, documents)


def among(scores: np.ndarray, numbers: np.ndarray, documents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores and numbers of the documents that are allowed.

    Args:
        scores: [N] float32.
        numbers: [N] int64, document numbers of the scores, ascending.
        documents: [A] int64, allowed numbers, ascending; None for all.

    Returns:
        Scores [<= N] float32 and numbers [<= N] int64 of the allowed documents.
    """
    if documents is None:
        return scores, numbers
    kept = np.isin(numbers, documents, assume_unique=True, kind="table")
    return scores[kept], numbers[kept]


def merge(parts: Sequence[TopK], k: int, kernels: Kernels) -> TopK:
    """Return the top k documents of several answers that hold different documents.

    Args:
        parts: The answers; may be empty. Scores [N], or [N, columns] in all of them.
        k: Documents to keep. With several columns, the best k of each column are kept, ordered by their best rank in any column.
        kernels: The kernels that select the top documents.

    Returns:
        The top k, without `params`.
    """
    parts = [part for part in parts if len(part.documents)] or parts[:1]
    if len(parts) == 1 and parts[0].scores.ndim == 1:
        return TopK(*kernels.top_k(parts[0].scores, parts[0].documents, k))
    scores = np.concatenate([part.scores for part in parts]) if parts else np.zeros(0, np.float32)
    documents = np.concatenate([part.documents for part in parts]) if parts else np.zeros(0, np.int64)
    if scores.ndim == 1:
        return TopK(*kernels.top_k(scores, documents, k))
    ranks = np.full(scores.shape, len(documents), np.int64)
    for column, values in enumerate(scores.T):
        found = np.flatnonzero(values > -np.inf)
        best = found[np.lexsort((documents[found], -values[found]))[:k]]
        ranks[best, column] = np.arange(len(best))
    kept = ranks < len(documents)
    order = np.lexsort((documents, ranks.min(axis=1)))[: int(kept.any(axis=1).sum())]
    return TopK(np.where(kept, scores, np.float32(-np.inf))[order], documents[order])
