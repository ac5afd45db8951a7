"""Manifests: what a folder of embeddings or a version of an index holds, with sizes and digests; written last, at once.

A file that no manifest lists does not exist for any reader. A manifest depends on nothing but the work's input and
configuration, so that a job that was killed and run again ends with the same bytes; timings go to provenance.json.
"""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from ray_lir.config import Config, canonical_json, digest, parse_json
from ray_lir.errors import FormatError, IncompatibleError, UnsupportedVersion
from ray_lir.formats import storage
from ray_lir.formats.contract import EncoderContract
from ray_lir.formats.exclusive import create_bytes
from ray_lir.formats.names import FileName, check_links
from ray_lir.formats.truncation import TruncationCounts

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
LATEST = "LATEST"
"""File of an index that names its latest version."""
LAST_VERSION = 1 << 31


Count = Annotated[int, Field(ge=0, le=1 << 53)]
"""A number of documents, tokens or bytes, or a position among them."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dim = Annotated[int, Field(ge=1, le=1 << 16)]


class FileEntry(Config):
    """A file below the manifest's root folder."""

    name: FileName
    size: Annotated[int, Field(ge=1, le=1 << 53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class EmbeddingPart(FileEntry):
    """A Parquet file of token embeddings."""

    num_docs: Count
    num_tokens: Count


class DeadLetter(FileEntry):
    """A JSONL file of corpus rows that could not be used, each with the reason."""

    num_rows: Count


def _later(default: Any) -> Any:
    """A field that came after the first manifests: at its default it is not written, so that theirs keep their digests."""
    return Field(default, exclude_if=lambda value: value == default)


class CountsTruncation(Config):
    """Fields of a manifest that say how much text was cut off at document_length; None: unknown. `TruncationCounts` describes them."""

    num_truncated_docs: Count | None = _later(None)
    num_tokens_dropped: Count | None = _later(None)
    num_source_tokens: Count | None = _later(None)
    dropped_is_minimum: bool = _later(False)

    @property
    def truncation(self) -> TruncationCounts:
        return TruncationCounts.from_fields(self)


class EmbeddingsManifest(CountsTruncation):
    """A folder of token embeddings: the output of jobs.encode."""

    format_version: int = FORMAT_VERSION
    kind: Literal["embeddings"] = "embeddings"
    contract: EncoderContract
    dim: Dim
    num_docs: Count
    num_tokens: Count
    num_dead: Count = 0
    """Rows of the corpus that were refused."""
    num_repeated: Count = _later(0)
    """Of these, rows that were refused because another row has their id."""
    parts: tuple[EmbeddingPart, ...]
    dead_letters: tuple[DeadLetter, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    """What the job was asked for; running it again with another configuration is refused."""
    relation: FileEntry | None = _later(None)
    """The relation encoder (formats/relation.py), with scorer trial."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        _check_names(self)
        _check_sums(self, self.parts, "num_docs", "num_tokens")
        return self


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
    num_deleted: Count = _later(0)
    deleted_tokens: Count = _later(0)
    tombstones: FileEntry | None = _later(None)

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


class Change(CountsTruncation):
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
    num_zero_rows: Count = _later(0)
    """Rows of zeros (padding) that were left out of the added documents."""
    num_dead: Count = _later(0)
    """Rows of the added corpus that were refused."""
    num_repeated: Count = _later(0)
    """Of these, rows that were refused because another row has their id."""
    dead_letters: FileName | None = _later(None)
    """File of the refused rows with the reasons, in the index folder. No version needs it, and compaction leaves it there."""


INDEX_FOLDERS = ("codec", "shards", "tombstones")
"""Where the files of an index lie: what remove_versions may remove is in them."""


class IndexManifest(CountsTruncation):
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
    held_out_residual_norm: Finite | None = _later(None)
    """Of documents of the index, each under the centroids that all others give: what to expect of new documents of the same kind. None if
    the index is too small to tell."""
    num_zero_rows: Count = _later(0)
    """Rows of zeros (padding) that were left out of the documents by the build and all updates."""
    unit_norms: bool = _later(True)
    """Whether all token vectors have about unit length; if not, engines take lengths into account when they look for candidates."""
    relation: FileEntry | None = _later(None)
    """The relation encoder, with scorer trial: shards need half of it, and plans the other."""
    shards: tuple[ShardEntry, ...]
    config: dict[str, Any] = Field(default_factory=dict)
    change: Change | None = _later(None)
    """None of a version that was built from embeddings."""
    added_tokens: Count = _later(0)
    """By all updates since then, with what was deleted of them."""
    added_residual_norm: Finite | None = _later(None)
    """The mean of those tokens."""

    @model_validator(mode="after")
    def _check_consistency(self) -> Self:
        _check_names(self)
        if any(file.name.partition("/")[0] not in INDEX_FOLDERS for file in files_of(self)):
            raise ValueError(f"the files of an index lie in its folders {', '.join(INDEX_FOLDERS)}")
        _check_sums(self, self.shards, "num_live", "live_tokens")
        end = 0
        for shard in self.shards:
            if shard.first_document < end:
                raise ValueError(f"shard {shard.name} has document numbers of another shard")
            end = shard.first_document + shard.num_docs
        return self

    @property
    def num_numbers(self) -> int:
        """Document numbers run from 0 to this: those of deleted documents among them."""
        return max((shard.first_document + shard.num_docs for shard in self.shards), default=0)


class TrainingManifest(Config):
    """A finished training: the output of jobs.train."""

    format_version: int = FORMAT_VERSION
    kind: Literal["training"] = "training"
    contract: EncoderContract
    """Of the trained encoder; its checkpoint is the folder's name below the output."""
    num_steps: int
    final_loss: float
    config: dict[str, Any] = Field(default_factory=dict)


Manifest = TypeVar("Manifest", EmbeddingsManifest, IndexManifest, TrainingManifest)


def manifest_digest(manifest: Config) -> str:
    """sha256 of a manifest's canonical JSON, which is also the sha256 of its file."""
    return digest(manifest.model_dump(mode="json"))


def check_complete(manifest: EmbeddingsManifest | IndexManifest) -> None:
    """Raises IncompatibleError unless there is all that the scorer needs in search beside the vectors."""
    contract = manifest.contract
    missing = None
    if contract.scorer in ("trial", "attention") and not contract.weighs:
        missing = "token weights"
    elif contract.scorer == "trial" and manifest.relation is None:
        missing = "the relation encoder"
    elif isinstance(manifest, IndexManifest) and "documents" in contract.weighs:
        without = [shard.name for shard in manifest.shards if f"{shard.name}/weights.npy" not in {file.name for file in shard.files}]
        missing = f"the document weights in {without[0]}" if without else None
    if missing:
        raise IncompatibleError(
            f"the {manifest.kind} of scorer {contract.scorer} (checkpoint {contract.checkpoint}) lacks {missing}, which search needs; "
            "encode the corpus and build the index anew with this version (from embeddings held in memory: give build_index the "
            "encoder's contract and relation)"
        )


def files_of(value: Any) -> Iterator[FileEntry]:
    """Every file that a manifest, or a part of one, lists."""
    if isinstance(value, FileEntry):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from files_of(getattr(value, name))
    elif isinstance(value, tuple):
        for each in value:
            yield from files_of(each)


def _check_names(manifest: EmbeddingsManifest | IndexManifest) -> None:
    """Raises ValueError if two entries of a manifest have one name, or a file lies beside the manifest rather than in a folder."""
    names: set[str] = set()
    for file in files_of(manifest):
        if file.name in names or "/" not in file.name:
            raise ValueError(f"{file.name} is listed twice" if file.name in names else f"{file.name} is in no folder")
        names.add(file.name)


def _check_sums(manifest: Any, parts: tuple[Any, ...], docs: str, tokens: str) -> None:
    """Raises ValueError unless the manifest's counts are the sums of its parts'."""
    for total, name in (("num_docs", docs), ("num_tokens", tokens)):
        found = sum(getattr(part, name) for part in parts)
        if getattr(manifest, total) != found:
            raise ValueError(f"{total} is {getattr(manifest, total)}, and the parts hold {found}")


def listed_names(manifest: IndexManifest) -> set[str]:
    """The folders of shards, and the files that are in none, that a version of an index consists of."""
    return {"/".join(entry.name.split("/")[:2]) for entry in files_of(manifest)}


def write_manifest(url: str, manifest: Config) -> None:
    """Publishes a manifest in one atomic step."""
    storage.write_bytes(url, canonical_json(manifest.model_dump(mode="json")))


def create_manifest(url: str, manifest: Config) -> None:
    """Publish a manifest in one atomic step, unless another job has published a different one there.

    Raises:
        FileExistsError: A manifest with other content exists.
    """
    create_bytes(url, canonical_json(manifest.model_dump(mode="json")))


def read_manifest(url: str, kind: type[Manifest], made_by: str) -> Manifest:
    """Reads and checks a manifest; `made_by` says what would have written it, for the message if it is missing.

    Raises:
        FormatError: if it is missing, damaged or of another kind.
        UnsupportedVersion: if a newer ray_lir wrote it.
    """
    wanted = kind.model_fields["kind"].default
    try:
        value = parse_json(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FormatError(url, f"the manifest of {wanted}", "no such file", f"check the path, or make it with {made_by}") from None
    except ValueError as error:
        raise FormatError(url, "JSON", f"damaged content ({error})", "restore the file or make the folder anew") from None
    if not isinstance(value, dict) or value.get("kind") != wanted:
        found = f"{value.get('kind', 'no kind')!s:.80}" if isinstance(value, dict) else type(value).__name__
        raise FormatError(url, f"a manifest of {wanted}", f"{found}", f"give a folder made by {made_by}")
    version = value.get("format_version")
    if type(version) is not int or not 1 <= version <= FORMAT_VERSION:
        raise UnsupportedVersion(url, f"format_version up to {FORMAT_VERSION}", f"{version!r:.40}", "upgrade ray_lir to read it")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            url, f"a valid {wanted} manifest", f"{where}: {first['msg']}"[:300], "restore the file or make the folder anew"
        ) from None


def describe_file(root: str, name: str) -> FileEntry:
    """The entry of a file that lies at `name` below `root`."""
    url = storage.join(root, name)
    return FileEntry(name=name, size=storage.size(url), sha256=storage.sha256(url))


def write_named(root: str, stem: str, suffix: str, data: bytes) -> FileEntry:
    """Writes a small file below `root`, under a name that carries a digest of its content."""
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{sha256[:12]}{suffix}"
    storage.write_bytes(storage.join(root, name), data)
    return FileEntry(name=name, size=len(data), sha256=sha256)


def check_file(root: str, entry: FileEntry, content: bool = False) -> None:
    """Raises FormatError unless the listed file is there, in the folder, with its size (and, with `content`, its sha256)."""
    check_links(root, [entry.name])
    url = storage.join(root, entry.name)
    try:
        size = storage.size(url)
    except FileNotFoundError:
        raise FormatError(url, f"a file of {entry.size} bytes", "no such file", "restore it or make the folder anew") from None
    if size != entry.size:
        raise FormatError(url, f"{entry.size} bytes", f"{size} bytes", "the file was cut or altered: restore it or make the folder anew")
    if content and (found := storage.sha256(url)) != entry.sha256:
        raise FormatError(url, f"sha256 {entry.sha256[:16]}", f"{found[:16]}", "the file was altered: restore it or make the folder anew")


def version_manifest(index: str, number: int) -> str:
    """Return the URL of the manifest of a version of an index."""
    return storage.join(index, "versions", str(number), MANIFEST)


def read_index_manifest(index: str, number: int) -> IndexManifest:
    """The manifest of a version of an index.

    Raises:
        FormatError: if there is no such version, its manifest is damaged, or a symbolic link on the way to a file leads out of the index.
    """
    check_index_links(index)
    check_links(index, [f"versions/{number}/{MANIFEST}"])
    manifest = read_manifest(version_manifest(index, number), IndexManifest, "jobs.build_index")
    check_links(index, [file.name for file in files_of(manifest)])
    return manifest


def check_index_links(index: str) -> None:
    """Raises FormatError if a folder that changes of an index write to, or remove from, is a symbolic link that leads out of it."""
    check_links(index, [LATEST, "versions", "_work", *INDEX_FOLDERS])


def version_numbers(index: str) -> list[int]:
    """Of all versions whose manifest is there, ascending."""
    return sorted(
        number
        for number in map(_number, storage.list_names(storage.join(index, "versions")))
        if number and storage.exists(version_manifest(index, number))
    )


def parse_version(text: bytes | str) -> int:
    """The number of a version. Raises ValueError unless it is written in digits and between 1 and LAST_VERSION."""
    digits = (text.decode("ascii") if isinstance(text, bytes) else text).strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) <= len(str(LAST_VERSION)) and 1 <= int(digits) <= LAST_VERSION):
        raise ValueError(f"{digits[:20]!r} is not the number of a version")
    return int(digits)


def _number(name: str) -> int | None:
    """The version of a folder in versions/; None if it is not one that ray_lir makes."""
    with suppress(ValueError):
        return number if name == str(number := parse_version(name)) else None
    return None


def listed_by(index: str, numbers: list[int]) -> set[str]:
    """The names of the shards and files that these versions list; a version that is removed at the same time lists none."""
    names: set[str] = set()
    for number in numbers:
        try:
            names |= listed_names(read_index_manifest(index, number))
        except FormatError:
            if storage.exists(version_manifest(index, number)):
                raise
    return names
