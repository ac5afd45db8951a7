"""Manifests: what a folder of embeddings or a version of an index holds, with sizes and digests; written last, at once.

A file that no manifest lists does not exist for any reader. A manifest depends on nothing but the work's input and
configuration, so that a job that was killed and run again ends with the same bytes; timings go to provenance.json.
"""

import json
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from ray_lir.config import Config, canonical_json, digest
from ray_lir.errors import FormatError, UnsupportedVersion
from ray_lir.formats import storage
from ray_lir.formats.contract import EncoderContract

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"


class FileEntry(Config):
    """A file below the manifest's root folder."""

    name: str
    size: int
    sha256: str


class EmbeddingPart(FileEntry):
    """A Parquet file of token embeddings."""

    num_docs: int
    num_tokens: int


class DeadLetter(FileEntry):
    """A JSONL file of corpus rows that could not be used, each with the reason."""

    num_rows: int


class EmbeddingsManifest(Config):
    """A folder of token embeddings: the output of jobs.encode."""

    format_version: int = FORMAT_VERSION
    kind: Literal["embeddings"] = "embeddings"
    contract: EncoderContract
    dim: int
    num_docs: int
    num_tokens: int
    num_dead: int = 0
    parts: tuple[EmbeddingPart, ...]
    dead_letters: tuple[DeadLetter, ...] = ()
    config: dict[str, Any] = Field(default_factory=dict)
    """What the job was asked for; running it again with another configuration is refused."""


class ShardEntry(Config):
    """A document-disjoint slice of an index: documents first_document to first_document + num_docs."""

    name: str
    first_document: int
    num_docs: int
    num_tokens: int
    files: tuple[FileEntry, ...]


class IndexManifest(Config):
    """One version of an index. Paths are relative to the index folder, so shards can be shared between versions."""

    format_version: int = FORMAT_VERSION
    kind: Literal["index"] = "index"
    contract: EncoderContract
    dim: int
    nbits: int
    num_centroids: int
    num_docs: int
    num_tokens: int
    codec: FileEntry
    cluster_sizes: FileEntry
    """[num_centroids] tokens of each centroid over all shards: query plans are made from these."""
    mean_residual_norm: float
    shards: tuple[ShardEntry, ...]
    config: dict[str, Any] = Field(default_factory=dict)


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


def write_manifest(url: str, manifest: Config) -> None:
    """Publishes a manifest in one atomic step."""
    storage.write_bytes(url, canonical_json(manifest.model_dump(mode="json")))


def read_manifest(url: str, kind: type[Manifest], made_by: str) -> Manifest:
    """Reads and checks a manifest; `made_by` says what would have written it, for the message if it is missing.

    Raises:
        FormatError: if it is missing, damaged or of another kind.
        UnsupportedVersion: if a newer ray_lir wrote it.
    """
    wanted = kind.model_fields["kind"].default
    try:
        value = json.loads(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FormatError(url, f"the manifest of {wanted}", "no such file", f"check the path, or make it with {made_by}") from None
    except ValueError as error:
        raise FormatError(url, "JSON", f"damaged content ({error})", "restore the file or make the folder anew") from None
    if not isinstance(value, dict) or value.get("kind") != wanted:
        found = value.get("kind", "no kind") if isinstance(value, dict) else type(value).__name__
        raise FormatError(url, f"a manifest of {wanted}", f"{found}", f"give a folder made by {made_by}")
    version = value.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UnsupportedVersion(url, f"format_version up to {FORMAT_VERSION}", f"{version}", "upgrade ray_lir to read it")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            url, f"a valid {wanted} manifest", f"{where}: {first['msg']}", "restore the file or make the folder anew"
        ) from None


def describe_file(root: str, name: str) -> FileEntry:
    """The entry of a file that lies at `name` below `root`."""
    url = storage.join(root, name)
    return FileEntry(name=name, size=storage.size(url), sha256=storage.sha256(url))


def check_file(root: str, entry: FileEntry, content: bool = False) -> None:
    """Raises FormatError unless the listed file is there with its size (and, with `content`, its sha256)."""
    url = storage.join(root, entry.name)
    try:
        size = storage.size(url)
    except FileNotFoundError:
        raise FormatError(url, f"a file of {entry.size} bytes", "no such file", "restore it or make the folder anew") from None
    if size != entry.size:
        raise FormatError(url, f"{entry.size} bytes", f"{size} bytes", "the file was cut or altered: restore it or make the folder anew")
    if content and (found := storage.sha256(url)) != entry.sha256:
        raise FormatError(url, f"sha256 {entry.sha256[:16]}", f"{found[:16]}", "the file was altered: restore it or make the folder anew")
