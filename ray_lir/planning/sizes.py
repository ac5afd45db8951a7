"""Predicts the size of a collection: bytes of every kind of file, and memory for searching."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ray_lir.base.config import Config
from ray_lir.building.build import TOKENS_PER_SHARD
from ray_lir.building.clustering import default_num_centroids
from ray_lir.engines.plan import IndexStatistics
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.residency import DISTINCT_CODES
from ray_lir.index.shard_groups import split_shards

LEXICAL_FRACTION = 0.65
"""Bytes of lexical postings and their statistics for each byte of stored documents: .62 to 1.1 on the nine collections of
bench/results/hybrid.json, and the less the larger the collection, because the vocabulary grows slowly."""
BUILD_PROCESS_BYTES = 200_000_000
"""Python and the libraries of a process of build_index."""
BUILD_VALUE_BYTES = 16
"""Bytes for each value of a part of the embeddings that a core clusters or compresses: float16, float32, rotated, and residuals."""
BUILD_CENTROID_BYTES = 20
"""Bytes for each value of the centroids: float32 in two orders, and sums in float64."""
GPU_RESERVED_BYTES = 1 << 30
"""Bytes of GPU memory that each process needs beside the index: the CUDA context, compiled programs and temporary results."""
QUERIES_PER_PASS = 64
"""Queries that GPU kernels score in one pass, at most."""


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
        lexical: Whether the index has lexical postings.
        residual_bytes: Bytes of a token's residual; None: dim nbits / 8.
        trellis: Whether residuals are compressed by a trellis; always with residual_bytes.
    """

    num_docs: int
    num_tokens: int
    dim: int
    nbits: int
    num_centroids: int
    num_shards: int
    text_bytes: float
    lexical: bool = False
    residual_bytes: int | None = None
    trellis: bool = False

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
    lexical: int
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
        residuals=of.num_tokens * (of.residual_bytes or of.dim * of.nbits // 8),
        scales=of.num_tokens * (1 if of.residual_bytes else 4),
        offsets=8 * (of.num_docs + of.num_shards),
        documents=round(of.num_docs * of.text_bytes),
        lexical=lexical_bytes(of.num_docs * of.text_bytes) if of.lexical else 0,
        codec=2 * of.num_centroids * of.dim + 4 * of.dim * of.dim + 8 * of.num_centroids,
    )


def lexical_bytes(document_bytes: float) -> int:
    """Return the bytes of the lexical postings of stored documents."""
    return round(LEXICAL_FRACTION * document_bytes)


def posting_memory(of: Collection) -> int:
    """Return the bytes of posting lists in memory, for engines that probe (plaid, warp). They are not stored on disk."""
    return 4 * of.num_tokens + 8 * of.num_shards * (of.num_centroids + 1)


def codec_memory(of: Collection) -> int:
    """Return the bytes of the codec in each process of the service: centroids as float16, float32 and 16-bit words."""
    return of.num_centroids * of.dim * (2 + 4 + 2)


def resident_memory(of: Collection) -> int:
    """Return the bytes in memory that searches with residency `disk` need: centroids, document lengths, and the distinct codes of each
    document with their offsets."""
    found = predict_bytes(of)
    return of.num_centroids * of.dim * 4 + 2 * found.offsets + round(DISTINCT_CODES * found.codes)


def build_memory(of: Collection, part_tokens: float, cores: int) -> int:
    """Return the peak memory of a process of build_index in bytes, for any number of documents (docs/operations.md).

    Args:
        of: The collection.
        part_tokens: Tokens of the largest part of the embeddings (512 documents, unless jobs.encode was told otherwise).
        cores: Parts that the process works on at the same time: 1 in a Ray task, all cores of the machine without Ray.
    """
    return round(BUILD_PROCESS_BYTES + of.dim * (cores * part_tokens * BUILD_VALUE_BYTES + of.num_centroids * BUILD_CENTROID_BYTES))


def gpu_shard_bytes(entry: ShardEntry, num_centroids: int) -> int:
    """Return the bytes of GPU memory that a shard takes, posting lists and the scores of one pass included.

    Args:
        entry: Manifest entry of the shard.
        num_centroids: Number of centroids of the index.
    """
    on_card = ("codes.npy", "residuals.npy", "scales.npy", "weights.npy")
    arrays = sum(file.size for file in entry.files if file.name.rpartition("/")[2] in on_card)
    return arrays + _gpu_work_bytes(entry.num_docs, entry.num_tokens, num_centroids)


def gpu_group_bytes(manifest: IndexManifest, entries: Sequence[ShardEntry]) -> int:
    """Return the bytes of GPU memory that a process needs to search some shards of an index with `cuda` kernels.

    Args:
        manifest: Manifest of the index version.
        entries: Manifest entries of the shards.
    """
    shards = sum(gpu_shard_bytes(entry, manifest.num_centroids) for entry in entries)
    return GPU_RESERVED_BYTES + gpu_codec_bytes(manifest.num_centroids, manifest.dim) + shards


def gpu_codec_bytes(num_centroids: int, dim: int) -> int:
    """Return the bytes of GPU memory of a codec: centroids as float32, and as float16 with and without padding to a power of two."""
    return num_centroids * (4 * dim + 2 * dim + 2 * max(16, 1 << (dim - 1).bit_length()))


def gpu_groups_needed(manifest: IndexManifest, num_bytes: float) -> int | None:
    """Return the fewest shard groups that each fit into `num_bytes` of GPU memory; None if a single shard does not fit.

    Args:
        manifest: Manifest of the index version.
        num_bytes: Bytes of GPU memory for each group.
    """
    shards = manifest.shards
    return next((groups for groups in range(1, len(shards) + 1) if largest_gpu_group(manifest, groups) <= num_bytes), None)


def largest_gpu_group(manifest: IndexManifest, num_groups: int) -> int:
    """Return the bytes of GPU memory of the largest of `num_groups` shard groups.

    Args:
        manifest: Manifest of the index version.
        num_groups: Number of groups.
    """
    return max(gpu_group_bytes(manifest, manifest.shards[run.start : run.stop]) for run in split_shards(manifest.shards, num_groups))


def gpu_collection_bytes(of: Collection) -> int:
    """Return the bytes of GPU memory of a whole collection, without what each process needs beside it (`GPU_RESERVED_BYTES`, codec)."""
    found = predict_bytes(of)
    arrays = found.codes + found.residuals + found.scales
    return arrays + _gpu_work_bytes(of.num_docs, of.num_tokens, of.num_centroids * of.num_shards)


def _gpu_work_bytes(num_docs: int, num_tokens: int, num_centroids: int) -> int:
    """Bytes of what kernels derive from a shard: offsets, tiles of 32 tokens (16 bytes each), postings, and twice the scores of a pass."""
    tiles = num_tokens // 32 + num_docs
    return 8 * num_docs + 16 * tiles + 8 * (num_tokens + num_centroids) + 2 * 4 * QUERIES_PER_PASS * num_docs
