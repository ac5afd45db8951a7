"""SearchScorer and QueryTerms: the interface between search and a scorer.

Exact scores are MaxSim with token weights (docs/algorithms.md#7-one-factored-form), unless the scorer returns `QueryTerms` for a query. In
that case the terms compute the exact scores, give engines an upper bound of them, and tell explanations which document tokens matched.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ray_lir.engines.plan import Query
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class QueryTerms(ABC):
    """A scorer's own arithmetic for one query. It is pickled with the query's plan, so its arrays must be small."""

    @abstractmethod
    def scores(
        self, query: Query, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None = None
    ) -> np.ndarray:
        """Return exact scores of documents.

        Args:
            query: The query of n tokens.
            shard: The shard that holds the documents.
            codec: The codec of the index, with `scorer_data`.
            kernels: The kernels of the search.
            documents: [N] ascending numbers inside the shard; None for all.

        Returns:
            [N] float32, -inf for a document without tokens.
        """

    @abstractmethod
    def match(
        self, query: Query, vectors_TD: np.ndarray, weights_T: np.ndarray | None, codec: ResidualCodec
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the document token that matches each query token, for explanations.

        Args:
            query: The query of n tokens.
            vectors_TD: [T, D] float64, decompressed tokens of the document, T at least 1.
            weights_T: [T] float64, weights of these tokens; None if all are 1.
            codec: The codec of the index, with `scorer_data`.

        Returns:
            Matched tokens [n] int64, and terms [n] float64. The document's score is the sum of `query.weights` times the terms.
        """

    def approximation(self, query: Query) -> Query:
        """Return a query with MaxSim scores near the exact scores. They select the documents of a last stage that computes the terms."""
        return query

    def upper_bound(self, query: Query) -> float | None:
        """Return the largest difference between an exact score and the MaxSim score without document weights; None if unbounded.

        With a bound, engines compute exact scores only for candidates that can reach the top k.
        """
        return None


@dataclass(frozen=True)
class SearchScorer:
    """The search side of a scorer. This base class is MaxSim with token weights.

    Attributes:
        requires_weights: Whether the embeddings must have token weights.
        requires_unit_vectors: Whether document vectors must have unit length. Query vectors are then not normalized.
        file: Name, for error messages, of the file that the scorer needs in embeddings and indexes; None if it needs none.
        file_name: Prefix of that file's name in embeddings and indexes.
    """

    requires_weights: bool = False
    requires_unit_vectors: bool = False
    file: str | None = None
    file_name: str = "scorer"

    def check(self, url: str, dim: int) -> bytes:
        """Return the content of the scorer's file in the form that an index stores.

        Args:
            url: Path or URL of the file.
            dim: Dimensions of the vectors.

        Raises:
            FormatError: The file is damaged or is for vectors of other dimensions.
        """
        raise NotImplementedError

    def load(self, url: str, codec: ResidualCodec) -> object:
        """Return the codec's `scorer_data`, read from the scorer's file.

        Args:
            url: Path or URL of the file.
            codec: The codec of the index, without `scorer_data`.

        Raises:
            FormatError: The file is damaged or is for vectors of other dimensions.
        """
        raise NotImplementedError

    def terms(self, query: Query, codec: ResidualCodec, nearest_tokens: int | None = None, approximates: bool = False) -> QueryTerms | None:
        """Return the scorer's own arithmetic for a query; None if exact scores are MaxSim.

        Args:
            query: The query.
            codec: The codec of the index, with `scorer_data`.
            nearest_tokens: Document tokens that relations are computed with, for each query token; None for all.
            approximates: Whether a stage needs `QueryTerms.approximation`.
        """
        return None

    def cost(self, codec: ResidualCodec) -> float:
        """Return the time of the scorer's terms for a document, divided by the time of its MaxSim score."""
        return 0.0
