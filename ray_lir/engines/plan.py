"""QueryPlan: all that a shard needs to know about a query, made once for all shards; and the answers, with how they are merged."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ray_lir.base.config import Config
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.norms import norm_codes
from ray_lir.index.relation import QueryRelation
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


@dataclass(frozen=True)
class Query:
    """One query's token embeddings.

    Attributes:
        vectors: [n, D] float32, turned as the codec's; rows of zeros are masked tokens and take no part.
        weights: [n] float32, importance of each token, at least 0 (docs/algorithms.md#7-one-factored-form, u_i), times `norms`.
        norms: [n] float32, lengths that rows were divided by to be of unit length; None if no row was.
    """

    vectors: np.ndarray
    weights: np.ndarray
    norms: np.ndarray | None = None

    @property
    def importance(self) -> np.ndarray:
        """[n] float32: the tokens' weights without their lengths."""
        return self.weights if self.norms is None else self.weights / self.norms

    @property
    def live(self) -> np.ndarray:
        """Tokens that find documents, int64: not masked, and of some weight."""
        return np.flatnonzero((self.weights > 0) & self.vectors.any(axis=1))


ROUNDING = 1e-3
"""Of a cosine, where two kernels make it."""
NORMS_NPROBE = 4
"""Cells that are probed for each where all vectors have unit length: a long token can score best although its direction is further away."""
NORMS_CANDIDATES = 4
"""Candidates for each where all vectors have unit length."""
USUAL_TOKENS = 21
"""Of a query, where none is given."""


@dataclass(frozen=True)
class IndexStatistics:
    """What plans are made from, the same on every shard.

    Attributes:
        cluster_sizes: [C] int64, tokens of every centroid.
        dim: of the vectors.
        has_relations: whether exact scores are TRIAL's, which take far longer.
        unit_norms: whether document tokens have about unit length.
    """

    num_docs: int
    num_tokens: int
    cluster_sizes: np.ndarray
    dim: int = 128
    has_relations: bool = False
    unit_norms: bool = True

    @property
    def num_centroids(self) -> int:
        return len(self.cluster_sizes)

    @property
    def tokens_per_centroid(self) -> float:
        return self.num_tokens / self.num_centroids

    @property
    def tokens_per_document(self) -> float:
        return self.num_tokens / max(1, self.num_docs)

    def default_candidates(self, k: int, num_tokens: int = USUAL_TOKENS, share: float = 1) -> int:
        """Documents worth rescoring for the best k of the index, for a query of so many tokens; or a share of them.

        What centroids get wrong of one token others make up for, so a query of few tokens needs more: by their centroids the best 128
        of 5,183 documents (scifact) hold .995 of the exact top 10 of 21 tokens, and it takes 500 of 3,633 (nfcorpus) for .993 of 5 tokens.
        Of ten times as many documents it takes two and a half times as many. jobs.tune measures what it takes for an index.
        """
        of_tokens = max(96, 2700 / max(1, num_tokens))
        default = max(4 * k, round(of_tokens * max(1.0, self.num_docs / 5000) ** 0.4))
        return max(1, round(share * default * (1 if self.unit_norms else NORMS_CANDIDATES)))


@dataclass(frozen=True)
class RelationTerms:
    """TRIAL's part of a query.

    Attributes:
        live: [n'] int64, the query's tokens that are not masked.
        pairs: their terms.
    """

    live: np.ndarray
    pairs: QueryRelation

    def most(self, query: Query) -> float:
        """How far above its score without relations a document's can be."""
        weights = query.weights[self.live].astype(np.float64)
        return float(weights @ np.maximum(self.pairs.upper, 0) + ROUNDING * weights.sum())


def relation_terms(query: Query, codec: ResidualCodec) -> RelationTerms | None:
    """None if the index's scorer knows no relations, or gives them no weight."""
    if codec.relation is None or codec.relation.weight == 0:
        return None
    live = np.flatnonzero(query.vectors.any(axis=1))
    return RelationTerms(live, codec.relation.of_query(query.vectors[live]))


@dataclass
class QueryPlan:
    """A query made ready for the shards.

    Attributes:
        params: the engine's parameters with all defaults filled in; they are returned with the answer.
        stage_limits: how many documents each stage keeps, over all shards. The engine runs as many stages as there are limits.
        terms: arrays that the engine's stages need beside the query.
        relation: what the exact score needs of it with scorer trial.
        unit_norms: whether document tokens have about unit length, so that candidates are found by directions alone.
    """

    query: Query
    params: Config
    stage_limits: tuple[int, ...]
    terms: dict[str, np.ndarray] = field(default_factory=dict)
    relation: RelationTerms | None = None
    unit_norms: bool = True
    _centroid_scores: np.ndarray | None = field(default=None, repr=False)
    _scan_table: Any = field(default=None, repr=False)

    def centroid_scores(self, codec: ResidualCodec, kernels: Kernels) -> np.ndarray:
        """[C, L], kept for the next shard and stage in this process; sent to none, since it is large."""
        if self._centroid_scores is None:
            self._centroid_scores = kernels.centroid_scores(self.query.vectors, codec)
        return self._centroid_scores

    def scan_table(self, codec: ResidualCodec, kernels: Kernels) -> Any:
        """The same as a scan of all codes looks it up; kept likewise."""
        if self._scan_table is None:
            self._scan_table = kernels.scan_table(self.centroid_scores(codec, kernels))
        return self._scan_table

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_centroid_scores": None, "_scan_table": None}


@dataclass(frozen=True)
class TopK:
    """The best documents of one query, best first, ties to the lower document number.

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
    """[N] float32: `kernels.centroid_maxsim`; a centroid's score times the token's length where lengths differ."""
    table = plan.centroid_scores(codec, kernels)
    if not plan.unit_norms:
        codes = norm_codes(shard)
        table, shard = codes.table(table), codes.shard
    return kernels.centroid_maxsim(table, plan.query.weights, shard, threshold, documents)


def among(scores: np.ndarray, numbers: np.ndarray, documents: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Those of the scored documents (`numbers`, ascending) that are in `documents`; all of them for None."""
    if documents is None:
        return scores, numbers
    kept = np.isin(numbers, documents, assume_unique=True, kind="table")
    return scores[kept], numbers[kept]


def merge(parts: Sequence[TopK], k: int, kernels: Kernels) -> TopK:
    """The best k of several answers about different documents."""
    scores = np.concatenate([part.scores for part in parts]) if parts else np.zeros(0, np.float32)
    documents = np.concatenate([part.documents for part in parts]) if parts else np.zeros(0, np.int64)
    return TopK(*kernels.top_k(scores, documents, k))
