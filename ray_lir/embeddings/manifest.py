"""The manifest of a folder of token embeddings."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.truncation import TruncationCounts
from ray_lir.storage.manifest import FORMAT_VERSION, Count, DeadLetter, Dim, FileEntry, check_names, check_totals, later_field


class EmbeddingPart(FileEntry):
    """A Parquet file of token embeddings."""

    num_docs: Count
    num_tokens: Count


class TruncationFields(Config):
    """Manifest fields that count the text cut off at document_length; None: unknown. `TruncationCounts` describes them."""

    num_truncated_docs: Count | None = later_field(None)
    num_tokens_dropped: Count | None = later_field(None)
    num_source_tokens: Count | None = later_field(None)
    dropped_is_minimum: bool = later_field(False)

    @property
    def truncation(self) -> TruncationCounts:
        """The fields as a `TruncationCounts`."""
        return TruncationCounts.from_fields(self)


class EmbeddingsManifest(TruncationFields):
    """The manifest of a folder of token embeddings, the output of jobs.encode."""

    format_version: int = FORMAT_VERSION
    kind: Literal["embeddings"] = "embeddings"
    contract: EncoderContract
    dim: Dim
    num_docs: Count
    num_tokens: Count
    num_dead: Count = 0
    """Rows of the corpus that were refused."""
    num_repeated: Count = later_field(0)
    """Rows among `num_dead` that were refused because another row has the same id."""
    num_windows: Count = later_field(0)
    """Windows of all documents; 0 if the documents were not encoded in windows."""
    parts: tuple[EmbeddingPart, ...]
    dead_letters: tuple[DeadLetter, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    """The configuration of the job. Running the job again with another configuration is refused."""
    relation: FileEntry | None = later_field(None)
    """The file that the scorer needs in search beside the vectors (`scorer_file`). The name comes from the first scorer with one."""

    @property
    def scorer_file(self) -> FileEntry | None:
        """The file that the scorer needs in search beside the vectors (engines/scoring); None if it needs none."""
        return self.relation

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        check_names(self)
        check_totals(self, self.parts, "num_docs", "num_tokens")
        return self
