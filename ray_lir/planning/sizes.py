"""Predicts the size of a collection: bytes of every kind of file, and memory for searching."""

from dataclasses import dataclass

import numpy as np

from ray_lir.base.config import Config
from ray_lir.building.build import TOKENS_PER_SHARD
from ray_lir.building.clustering import default_num_centroids
from ray_lir.engines.plan import IndexStatistics


@dataclass(frozen=True)
class Collection:
    """The index of a collection, in numbers.

    Attributes:
        num_docs: Number of documents.
        num_tokens: Number of token vectors.
        dim: Dimensions of a token vector.
        nbits: Bits a dimension of a residual.
        num_centroids: Number of centroids.
        num_shards: Number of shards.
        text_bytes: Mean bytes of a document's id, title, text and metadata.
    """

    num_docs: int
    num_tokens: int
    dim: int
    nbits: int
    num_centroids: int
    num_shards: int
    text_bytes: float

    @classmethod
    def of(cls, docs: float, tokens_per_doc: float, dim: int, nbits: int, num_centroids: int | None, text_bytes: float) -> "Collection":
        """Return the collection with the defaults of build_index for centroids and shards.

        Args:
            docs: Number of documents.
            tokens_per_doc: Mean number of token vectors of a document.
            dim: Dimensions of a token vector.
            nbits: Bits a dimension of a residual.
            num_centroids: Number of centroids. None: the default of build_index.
            text_bytes: Mean bytes of a document's id, title, text and metadata.
        """
        tokens = round(docs * tokens_per_doc)
        shards = max(1, -(-tokens // TOKENS_PER_SHARD))
        return cls(round(docs), tokens, dim, nbits, num_centroids or default_num_centroids(tokens), shards, text_bytes)

    @property
    def statistics(self) -> IndexStatistics:
        """Statistics for the engines' cost estimates, with clusters of equal size."""
        sizes = np.broadcast_to(np.int64(self.num_tokens // self.num_centroids), (self.num_centroids,))
        return IndexStatistics(self.num_docs, self.num_tokens, sizes, self.dim)


class Bytes(Config):
    """Bytes of a collection, by kind of file."""

    embeddings: int
    codes: int
    residuals: int
    scales: int
    offsets: int
    documents: int
    codec: int

    @property
    def index(self) -> int:
        """Bytes of all files except the embeddings."""
        return sum(self.model_dump().values()) - self.embeddings

    @property
    def arrays(self) -> int:
        """Bytes of the arrays that searches read and that must stay in memory. Documents are read for hits only."""
        return self.index - self.documents - self.codec


def predict_bytes(of: Collection) -> Bytes:
    """Return the bytes on disk, without headers (128 bytes an array) and Parquet metadata."""
    return Bytes(
        embeddings=of.num_tokens * of.dim * 2,
        codes=of.num_tokens * (2 if of.num_centroids <= 1 << 16 else 4),
        residuals=of.num_tokens * of.dim * of.nbits // 8,
        scales=of.num_tokens * 4,
        offsets=8 * (of.num_docs + of.num_shards),
        documents=round(of.num_docs * of.text_bytes),
        codec=2 * of.num_centroids * of.dim + 4 * of.dim * of.dim + 8 * of.num_centroids,
    )


def posting_memory(of: Collection) -> int:
    """Return the bytes of posting lists in memory, for engines that probe (plaid, warp). They are not stored on disk."""
    return 4 * of.num_tokens + 8 * of.num_shards * (of.num_centroids + 1)


def codec_memory(of: Collection) -> int:
    """Return the bytes of the codec in each process of the service: centroids as float16, float32 and 16-bit words."""
    return of.num_centroids * of.dim * (2 + 4 + 2)
