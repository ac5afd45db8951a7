"""SearchScorer and QueryTerms: what search needs to know about a scorer.

Exact scores are MaxSim with token weights (docs/algorithms.md#7-one-factored-form) unless the scorer returns `QueryTerms` for a query. Then
its terms compute the scores, bound them for the engines, and say which token matched for explanations.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np

from ray_lir.engines.plan import Query
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


class QueryTerms(ABC):
    """A scorer's own arithmetic, prepared for one query. It is pickled with the query's plan, so it holds small arrays only."""

    @abstractmethod
    def scores(
        self, query: Query, shard: IndexShard, codec: ResidualCodec, kernels: Kernels, documents: np.ndarray | None = None
    ) -> np.ndarray:
        """Return exact scores of documents.

        Args:
            query: the query of n tokens.
            shard: holds the documents.
            codec: of the index, with `scorer_data`.
            kernels: may be used for the loops.
            documents: [N] ascending numbers inside the shard; None for all.

        Returns:
            [N] float32, -inf for a document without tokens.
        """

    @abstractmethod
    def match(
        self, query: Query, vectors_TD: np.ndarray, weights_T: np.ndarray | None, codec: ResidualCodec
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return which token of a document each query token is scored with. Explanations print it.

        Args:
            query: the query of n tokens.
            vectors_TD: [T, D] float64, decoded tokens of the document, T at least 1.
            weights_T: [T] float64, weights of these tokens; None: 1.
            codec: of the index, with `scorer_data`.

        Returns:
            Tokens [n] int64, and terms [n] float64. The document's score is the sum of `query.weights` times the terms.
        """

    def upper_bound(self, query: Query) -> float | None:
        """Return by how much a document's exact score can exceed its unweighted MaxSim score; None if there is no bound.

        With a bound, engines compute exact scores only for candidates that can be among the best k.
        """
        return None


@dataclass(frozen=True)
class SearchScorer:
    """What search needs of a scorer. This class itself is MaxSim with token weights.

    Attributes:
        requires_weights: whether the embeddings must have token weights.
        requires_unit_vectors: whether document vectors must have unit length. Query vectors are then used as they are.
        file: what the scorer needs beside the vectors, in words, if it needs a file; None if it does not.
        file_name: beginning of that file's name in embeddings and indexes.
    """

    requires_weights: bool = False
    requires_unit_vectors: bool = False
    file: str | None = None
    file_name: str = "scorer"

    def check(self, url: str, dim: int) -> bytes:
        """Return the content of the scorer's file, as an index stores it.

        Args:
            url: of the file.
            dim: dimensions of the vectors that it is for.

        Raises:
            FormatError: the file is damaged or for other vectors.
        """
        raise NotImplementedError

    def load(self, url: str, codec: ResidualCodec) -> object:
        """Return `scorer_data` of the codec, read from the scorer's file.

        Args:
            url: of the file.
            codec: of the index, without `scorer_data`.

        Raises:
            FormatError: the file is damaged or for other vectors.
        """
        raise NotImplementedError

    def terms(self, query: Query, codec: ResidualCodec) -> QueryTerms | None:
        """Return the scorer's own arithmetic for a query; None if the exact score is MaxSim."""
        return None

    def cost(self, codec: ResidualCodec) -> float:
        """Return the time that the scorer's terms take for a document, in units of the time of MaxSim."""
        return 0.0
