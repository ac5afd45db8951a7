"""The manifests of a finished training, of training data in a machine's cache, and of mined tuples."""

from typing import Any, Literal

from pydantic import Field

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.storage.manifest import FORMAT_VERSION, Count, FileEntry


class TrainingManifest(Config):
    """A finished training: the output of jobs.train."""

    format_version: int = FORMAT_VERSION
    kind: Literal["training"] = "training"
    contract: EncoderContract
    """Contract of the trained encoder; its checkpoint is the name of a folder below the output."""
    num_steps: int
    final_loss: float
    config: dict[str, Any] = Field(default_factory=dict)


class TrainingDataManifest(Config):
    """Training data as Arrow files."""

    format_version: int = FORMAT_VERSION
    kind: Literal["training-data"] = "training-data"
    digest: str
    """sha256 of the data without a development set: `TrainingData.digest()`."""
    queries: Count
    documents: Count
    num_dead: Count
    """Rows of the corpus that were refused."""
    queries_left_out: Count
    """Queries without a document judged above 0."""
    files: tuple[FileEntry, ...]


class TuplesPart(FileEntry):
    """One Parquet file of n-way tuples."""

    num_tuples: Count


class TuplesManifest(Config):
    """N-way tuples to train on, in Parquet parts: the output of jobs.mine."""

    format_version: int = FORMAT_VERSION
    kind: Literal["tuples"] = "tuples"
    num_tuples: Count
    scored: bool
    """Whether a teacher scored the documents of every tuple."""
    identity: str
    """Digest of everything that the tuples depend on: the settings, the index, the queries and the judgements."""
    parts: tuple[TuplesPart, ...]
