"""The manifest of an index version: its shards, its codec, and how it came from the version before."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.manifest import TruncationFields
from ray_lir.storage.file_names import FileName
from ray_lir.storage.manifest import FORMAT_VERSION, Count, Dim, FileEntry, Finite, check_names, check_totals, files_of, later_field

DELTA = "shards/delta-"
"""How the names of shards begin that an update added."""
SHARD_FILES = ("doc_offsets.npy", "codes.npy", "residuals.npy", "scales.npy", "documents.arrow")
"""What every shard's folder holds; index/shard.py says what each file is."""
MAX_DOCS_PER_SHARD = 1 << 32
"""Document numbers inside a shard are uint32."""


class ShardEntry(Config):
    """A document-disjoint slice of an index: documents first_document to first_document + num_docs.

    Its folder never changes; what is deleted from it is listed in a file that belongs to a version of the index.
    """

    name: FileName
    first_document: Count
    num_docs: Annotated[int, Field(ge=0, le=MAX_DOCS_PER_SHARD)]
    """With those that are deleted, whose numbers nobody else gets."""
    num_tokens: Count
    """With those of the deleted."""
    files: tuple[FileEntry, ...]
    num_deleted: Count = later_field(0)
    deleted_tokens: Count = later_field(0)
    tombstones: FileEntry | None = later_field(None)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Readers open these files by their names in the shard's folder: each has to be listed, so that its size and digest are checked."""
        listed = {file.name for file in self.files}
        missing = [file for file in SHARD_FILES if f"{self.name}/{file}" not in listed]
        if missing:
            raise ValueError(f"shard {self.name} does not list {missing[0]}")
        if any(name.rpartition("/")[0] != self.name for name in listed):
            raise ValueError(f"shard {self.name} lists a file that is not in its folder")
        if self.num_deleted > self.num_docs or self.deleted_tokens > self.num_tokens or bool(self.num_deleted) != bool(self.tombstones):
            raise ValueError(f"shard {self.name} has numbers of deleted documents that do not fit it")
        return self

    @property
    def num_live(self) -> int:
        return self.num_docs - self.num_deleted

    @property
    def live_tokens(self) -> int:
        return self.num_tokens - self.deleted_tokens

    @property
    def is_delta(self) -> bool:
        return self.name.startswith(DELTA)


class Change(TruncationFields):
    """How a version came of the one before it. The counts of truncation are those of the added documents."""

    parent: Annotated[int, Field(ge=1, le=1 << 53)]
    """The version before."""
    kind: Literal["update", "compact"]
    num_added: Count = 0
    """Documents that are new or replace another."""
    num_replaced: Count = 0
    num_deleted: Count = 0
    """Without those that were replaced."""
    num_unknown: Count = 0
    """Ids to delete that the index did not hold."""
    added_tokens: Count = 0
    mean_residual_norm: Finite | None = None
    """Of the added tokens."""
    num_zero_rows: Count = later_field(0)
    """Rows of zeros (padding) that were left out of the added documents."""
    num_dead: Count = later_field(0)
    """Rows of the added corpus that were refused."""
    num_repeated: Count = later_field(0)
    """Of these, rows that were refused because another row has their id."""
    dead_letters: FileName | None = later_field(None)
    """File of the refused rows with the reasons, in the index folder. No version needs it, and compaction leaves it there."""


INDEX_FOLDERS = ("codec", "shards", "tombstones")
"""Where the files of an index lie: what remove_versions may remove is in them."""


class IndexManifest(TruncationFields):
    """One version of an index. Paths are relative to the index folder, so shards can be shared between versions.

    The counts of truncation are those of all documents that were ever added, deleted documents included.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["index"] = "index"
    contract: EncoderContract
    dim: Dim
    nbits: Literal[1, 2, 4, 8]
    num_centroids: Annotated[int, Field(ge=1, le=1 << 32)]
    num_docs: Count
    """Without those that are deleted; num_tokens and cluster_sizes too."""
    num_tokens: Count
    codec: FileEntry
    cluster_sizes: FileEntry
    """[num_centroids] tokens of each centroid over all shards: query plans are made from these."""
    mean_residual_norm: Finite
    """Of the tokens that the index was built from, which the codec was made for."""
    held_out_residual_norm: Finite | None = later_field(None)
    """Of documents of the index, each under the centroids that all others give: what to expect of new documents of the same kind. None if
    the index is too small to tell."""
    num_zero_rows: Count = later_field(0)
    """Rows of zeros (padding) that were left out of the documents by the build and all updates."""
    unit_norms: bool = later_field(True)
    """Whether all token vectors have about unit length; if not, engines take lengths into account when they look for candidates."""
    relation: FileEntry | None = later_field(None)
    """The file that the scorer needs in search beside the vectors (`scorer_file`). The format has its name from TRIAL."""
    shards: tuple[ShardEntry, ...]
    config: dict[str, Any] = Field(default_factory=dict)
    change: Change | None = later_field(None)
    """None of a version that was built from embeddings."""
    added_tokens: Count = later_field(0)
    """By all updates since then, with what was deleted of them."""
    added_residual_norm: Finite | None = later_field(None)
    """The mean of those tokens."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        check_names(self)
        if any(file.name.partition("/")[0] not in INDEX_FOLDERS for file in files_of(self)):
            raise ValueError(f"the files of an index lie in its folders {', '.join(INDEX_FOLDERS)}")
        check_totals(self, self.shards, "num_live", "live_tokens")
        end = 0
        for shard in self.shards:
            if shard.first_document < end:
                raise ValueError(f"shard {shard.name} has document numbers of another shard")
            end = shard.first_document + shard.num_docs
        return self

    @property
    def scorer_file(self) -> FileEntry | None:
        """The file that the scorer needs in search beside the vectors (engines/scoring); None if it needs none."""
        return self.relation

    @property
    def num_numbers(self) -> int:
        """Document numbers run from 0 to this: those of deleted documents among them."""
        return max((shard.first_document + shard.num_docs for shard in self.shards), default=0)


def listed_names(manifest: IndexManifest) -> set[str]:
    """The folders of shards, and the files that are in none, that a version of an index consists of."""
    return {"/".join(entry.name.split("/")[:2]) for entry in files_of(manifest)}
