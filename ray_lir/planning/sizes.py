"""What a collection weighs: bytes of every kind of file, and the memory that searching them takes."""

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
        nbits: of a residual's dimension.
        text_bytes: of a document's id, title, text and metadata together.
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
        """With as many centroids and shards as build_index makes by itself."""
        tokens = round(docs * tokens_per_doc)
        shards = max(1, -(-tokens // TOKENS_PER_SHARD))
        return cls(round(docs), tokens, dim, nbits, num_centroids or default_num_centroids(tokens), shards, text_bytes)

    @property
    def statistics(self) -> IndexStatistics:
        """What an engine's cost depends on, with clusters of equal size."""
        sizes = np.broadcast_to(np.int64(self.num_tokens // self.num_centroids), (self.num_centroids,))
        return IndexStatistics(self.num_docs, self.num_tokens, sizes, self.dim)


class Bytes(Config):
    """Bytes of a collection, by the names of its files."""

    embeddings: int
    codes: int
    residuals: int
    scales: int
    offsets: int
    documents: int
    codec: int

    @property
    def index(self) -> int:
        """All but the embeddings."""
        return sum(self.model_dump().values()) - self.embeddings

    @property
    def arrays(self) -> int:
        """What is read again and again while searching, and has to stay in memory; texts are read by the hit."""
        return self.index - self.documents - self.codec


def predict_bytes(of: Collection) -> Bytes:
    """Bytes on disk. Headers (128 bytes an array) and Parquet's own texts are left out."""
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
    """Bytes that the shards' postings take in the processes that probe (plaid, warp); nothing on disk."""
    return 4 * of.num_tokens + 8 * of.num_shards * (of.num_centroids + 1)


def codec_memory(of: Collection) -> int:
    """Bytes that every process of the service holds: centroids as float16, as float32 and as words of 16 bits."""
    return of.num_centroids * of.dim * (2 + 4 + 2)
