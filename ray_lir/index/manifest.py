"""The manifest of an index version: its shards, its codec, and the change that made it."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.manifest import TruncationFields
from ray_lir.storage.file_names import FileName
from ray_lir.storage.manifest import FORMAT_VERSION, Count, Dim, FileEntry, Finite, check_names, check_totals, files_of, later_field

DELTA = "shards/delta-"
"""Prefix of the names of delta shards."""
SHARD_FILES = ("doc_offsets.npy", "codes.npy", "residuals.npy", "scales.npy", "documents.arrow")
"""Files of every shard's folder; index/shard.py describes them."""
MAX_DOCS_PER_SHARD = 1 << 32
"""Document numbers inside a shard are uint32."""


class ShardEntry(Config):
    """A shard: documents first_document to first_document + num_docs of the index.

    Its folder never changes. Deleted documents are listed in a file that belongs to a version of the index.
    """

    name: FileName
    first_document: Count
    num_docs: Annotated[int, Field(ge=0, le=MAX_DOCS_PER_SHARD)]
    """Deleted documents included; their numbers are never reused."""
    num_tokens: Count
    """Tokens of deleted documents included."""
    files: tuple[FileEntry, ...]
    num_deleted: Count = later_field(0)
    deleted_tokens: Count = later_field(0)
    tombstones: FileEntry | None = later_field(None)

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        """Check that every file of the shard is listed, because only listed files are checked for size and digest."""
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
        """Documents that are not deleted."""
        return self.num_docs - self.num_deleted

    @property
    def live_tokens(self) -> int:
        """Tokens of live documents."""
        return self.num_tokens - self.deleted_tokens

    @property
    def is_delta(self) -> bool:
        """Whether an update added the shard."""
        return self.name.startswith(DELTA)


class Change(TruncationFields):
    """The change that made a version. Truncation counts are those of the added documents."""

    parent: Annotated[int, Field(ge=1, le=1 << 53)]
    """The version before."""
    kind: Literal["update", "compact"]
    num_added: Count = 0
    """Added documents, replacements included."""
    num_replaced: Count = 0
    num_deleted: Count = 0
    """Deleted documents, without replaced ones."""
    num_unknown: Count = 0
    """Ids to delete that the index did not hold."""
    added_tokens: Count = 0
    mean_residual_norm: Finite | None = None
    """Mean residual norm of the added tokens."""
    num_zero_rows: Count = later_field(0)
    """Rows of zeros (padding) that were left out of the added documents."""
    num_dead: Count = later_field(0)
    """Refused rows of the added corpus."""
    num_repeated: Count = later_field(0)
    """Rows that were refused because another row has the same id."""
    dead_letters: FileName | None = later_field(None)
    """File in the index folder with the refused rows and the reasons. No version needs it, and compaction keeps it."""


INDEX_FOLDERS = ("codec", "lexical", "shards", "tombstones")
"""Folders of an index's files; remove_versions removes files only there."""


class LexicalIndex(Config):
    """The lexical postings of an index version: how texts are analysed, and statistics of all live documents (index/lexical.py)."""

    stemmer: str | None
    """Language of the stemmer; None for no stemming."""
    num_terms: Count
    """Terms of all live documents, repeated ones included: the sum of the documents' lengths in BM25."""
    terms: FileEntry
    """File [B] uint8: the distinct terms of live documents in UTF-8, in ascending order of their bytes, one after another."""
    term_offsets: FileEntry
    """File [V + 1] int64: term i is terms[term_offsets[i] : term_offsets[i + 1]]."""
    frequencies: FileEntry
    """File [V] int64: live documents that hold the term."""


class IndexManifest(TruncationFields):
    """One version of an index. Paths are relative to the index folder, so shards can be shared between versions.

    Truncation counts are those of all documents that were ever added, deleted documents included.
    """

    format_version: int = FORMAT_VERSION
    kind: Literal["index"] = "index"
    contract: EncoderContract
    dim: Dim
    nbits: Literal[1, 2, 4, 8]
    num_centroids: Annotated[int, Field(ge=1, le=1 << 32)]
    num_docs: Count
    """Live documents; num_tokens and cluster_sizes count live documents too."""
    num_tokens: Count
    num_whole_docs: Count | None = later_field(None)
    """Live documents of an index of passages, in which `num_docs` counts passages. None: `num_docs` counts documents."""
    codec: FileEntry
    cluster_sizes: FileEntry
    """File [num_centroids]: tokens of each cluster over all shards. Query plans use it."""
    mean_residual_norm: Finite
    """Mean residual norm of the tokens that the index was built from."""
    held_out_residual_norm: Finite | None = later_field(None)
    """Mean residual norm of documents of the index, each under the centroids that all other documents give: the expected value for new
    documents of the same kind. None if the index is too small."""
    num_zero_rows: Count = later_field(0)
    """Rows of zeros (padding) that the build and all updates left out."""
    unit_norms: bool = later_field(True)
    """Whether all token vectors have about unit length; if not, engines use norms to find candidates."""
    relation: FileEntry | None = later_field(None)
    """The file that the scorer needs in search beside the vectors (`scorer_file`). The name comes from the first scorer with one."""
    lexical: LexicalIndex | None = later_field(None)
    """None for an index without lexical postings."""
    shards: tuple[ShardEntry, ...]
    config: dict[str, Any] = Field(default_factory=dict)
    change: Change | None = later_field(None)
    """None for a version that was built from embeddings."""
    added_tokens: Count = later_field(0)
    """Tokens that all updates since the build added, deleted ones included."""
    added_residual_norm: Finite | None = later_field(None)
    """Mean residual norm of these tokens."""
    residual_bytes: Annotated[int, Field(ge=1, le=1 << 15)] | None = later_field(None)
    """Bytes of a token's residual, if the index was built with `codec.residual_bytes`. None: dim nbits / 8."""
    log_position: Count = later_field(0)
    """Position of the write log up to which the version holds all writes (ray_lir/storage/write_log.py)."""

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
    def num_documents(self) -> int:
        """Number of live documents, even if `num_docs` counts passages."""
        return self.num_docs if self.num_whole_docs is None else self.num_whole_docs

    @property
    def num_numbers(self) -> int:
        """One more than the largest document number, deleted documents included."""
        return max((shard.first_document + shard.num_docs for shard in self.shards), default=0)


def change_in(manifest: IndexManifest) -> Change:
    """Return the change that made a version which was not built from embeddings."""
    assert manifest.change is not None
    return manifest.change


def listed_names(manifest: IndexManifest) -> set[str]:
    """Return the names of a version's shard folders, and of its files outside of them."""
    return {"/".join(entry.name.split("/")[:2]) for entry in files_of(manifest)}
