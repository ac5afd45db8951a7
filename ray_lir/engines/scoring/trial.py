"""TRIAL in search: MaxSim plus a relation score for each pair of adjacent query tokens and the document tokens that they match.

Source: docs/algorithms.md#5-trial. `ray_lir/index/relation.py` evaluates the relation encoder. The kernel `relation_maxsim` scores
documents.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.relation import load_relation
from ray_lir.engines.plan import Query, centroid_scores
from ray_lir.engines.scoring.scorer import QueryTerms, SearchScorer
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.relation import LinearRelation, QueryRelation, RelationEncoder, align, relation_of
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

ROUNDING = 1e-3
"""Largest cosine difference between two kernel sets."""
RELATION_COST = 12.0
"""Time of a token's relation score divided by the time of its MaxSim score, for an untrained relation encoder: 9 with AVX2, 15 with AMX
(bench/papers/trial.py)."""


@dataclass(frozen=True, eq=False, repr=False)
class RelationTerms(QueryTerms, ShortRepr):
    """TRIAL's arithmetic for one query.

    Attributes:
        unmasked: [n'] int64, the query tokens that are not masked. A masked token is not the predecessor of any token.
        relation: The query side of the relation encoder for these tokens.
        linear: The query with relations to first order (`LinearRelation.query_vectors`); None if no stage needs it.
        nearest_tokens: Document tokens that each query token is compared with: those with the best products with its selector. None: all.
        selectors: The selectors of the unmasked tokens (`LinearRelation.selectors`), as a query; None if all tokens are compared.
    """

    unmasked: np.ndarray
    relation: QueryRelation
    linear: Query | None = None
    nearest_tokens: int | None = None
    selectors: Query | None = None

    def approximation(self, query: Query) -> Query:
        """Return the query with first-order relations (`QueryTerms.approximation`)."""
        return query if self.linear is None else self.linear

    def upper_bound(self, query: Query) -> float:
        """Return the sum of the weighted upper bounds of all relation scores."""
        weights = query.weights[self.unmasked].astype(np.float64)
        return float(weights @ np.maximum(self.relation.upper, 0) + ROUNDING * weights.sum())

    def scores(
        self, query: Query, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None = None
    ) -> np.ndarray:
        """Return TRIAL's scores; with `nearest_tokens`, those of docs/algorithms.md#55-limited-relations.

        Args: as in `QueryTerms.scores`.
        """
        vectors, weights = query.vectors[self.unmasked], query.weights[self.unmasked]
        masked = len(vectors) < len(query.vectors)
        table = kernels.centroid_scores(vectors, codec) if masked else centroid_scores(query, codec, kernels)
        limits: tuple[Any, ...] = ()
        if self.selectors is not None:
            limits = (self.nearest_tokens, self.selectors.vectors, centroid_scores(self.selectors, codec, kernels))
        return kernels.relation_maxsim(vectors, weights, self.relation, table, shard, codec, documents, *limits)

    def match(
        self, query: Query, vectors_TD: np.ndarray, weights_T: np.ndarray | None, codec: ResidualCodec
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return TRIAL's alignment of query tokens with document tokens.

        Args: as in `QueryTerms.match`.
        """
        similarities_nT = query.vectors.astype(np.float64) @ vectors_TD.T
        tokens, relations = similarities_nT.argmax(axis=1), np.zeros(len(query.vectors))
        encoder = relation_of(codec)
        vectors, nearest = query.vectors[self.unmasked], self.nearest_tokens
        selectors = None if self.selectors is None else self.selectors.vectors
        tokens[self.unmasked], relations[self.unmasked] = align(vectors, self.relation, vectors_TD, encoder, nearest, selectors)
        similarities = similarities_nT[np.arange(len(tokens)), tokens]
        return tokens, (similarities if weights_T is None else weights_T[tokens] * similarities) + relations


@dataclass(frozen=True)
class TrialScorer(SearchScorer):
    """TRIAL. Queries and documents carry the weights of their tokens, if it has gates for them."""

    requires_unit_vectors: bool = True
    file: str | None = "the relation encoder"
    file_name: str = "relation"

    def check(self, url: str, dim: int) -> bytes:
        """Return the content of the relation encoder's file (`SearchScorer.check`)."""
        return load_relation(url, dim).to_bytes()

    def load(self, url: str, codec: ResidualCodec) -> RelationEncoder:
        """Return the relation encoder, adapted to the codec's rotated vectors (`SearchScorer.load`)."""
        return RelationEncoder.of(load_relation(url, codec.dim), codec.rotation)

    def terms(
        self, query: Query, codec: ResidualCodec, nearest_tokens: int | None = None, approximates: bool = False
    ) -> RelationTerms | None:
        """Return the query's relation terms; None if the relation encoder has weight 0.

        Args: as in `SearchScorer.terms`.
        """
        encoder = relation_of(codec)
        if encoder.weight == 0:
            return None
        unmasked = np.flatnonzero(query.vectors.any(axis=1))
        vectors = query.vectors[unmasked]
        relation = encoder.of_query(vectors, narrow=nearest_tokens is None)
        if not approximates:
            return RelationTerms(unmasked, relation)
        weights, linear = query.weights[unmasked], LinearRelation.of(relation, codec)
        linear_vectors = np.zeros_like(query.vectors)
        linear_vectors[unmasked] = linear.query_vectors(vectors, weights)
        selectors = None if nearest_tokens is None else Query(linear.selectors(vectors), weights)
        return RelationTerms(unmasked, relation, replace(query, vectors=linear_vectors), nearest_tokens, selectors)

    def cost(self, codec: ResidualCodec) -> float:
        """Return the time of the relation scores of a document, divided by the time of its MaxSim score."""
        return RELATION_COST if relation_of(codec).weight > 0 else 0.0
