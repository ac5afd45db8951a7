"""Manifests: what a folder holds, with sizes and digests; written last, in one atomic step.

A file that no manifest lists does not exist for any reader. A manifest depends on the input and configuration of its job only, so a job
that was killed and run again ends with the same bytes; timings go to provenance.json.
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json, digest, parse_json
from ray_lir.base.errors import FormatError, UnsupportedVersion
from ray_lir.storage.concurrent_writes import create_bytes
from ray_lir.storage.file_names import FileName, check_links

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
LATEST = "LATEST"
"""File of an index that names its latest version."""
Count = Annotated[int, Field(ge=0, le=1 << 53)]
"""A number of documents, tokens or bytes, or a position among them."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dim = Annotated[int, Field(ge=1, le=1 << 16)]


class FileEntry(Config):
    """A file below the manifest's root folder."""

    name: FileName
    size: Annotated[int, Field(ge=1, le=1 << 53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DeadLetter(FileEntry):
    """A JSONL file of corpus rows that could not be used, each with the reason."""

    num_rows: Count


def later_field(default: Any) -> Any:
    """A field that came after the first manifests: at its default it is not written, so that theirs keep their digests."""
    return Field(default, exclude_if=lambda value: value == default)


Manifest = TypeVar("Manifest", bound=Config)


def manifest_digest(manifest: Config) -> str:
    """sha256 of a manifest's canonical JSON, which is also the sha256 of its file."""
    return digest(manifest.model_dump(mode="json"))


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


def check_names(manifest: Config) -> None:
    """Raises ValueError if two entries of a manifest have one name, or a file lies beside the manifest rather than in a folder."""
    names: set[str] = set()
    for file in files_of(manifest):
        if file.name in names or "/" not in file.name:
            raise ValueError(f"{file.name} is listed twice" if file.name in names else f"{file.name} is in no folder")
        names.add(file.name)


def check_totals(manifest: Any, parts: tuple[Any, ...], docs: str, tokens: str) -> None:
    """Raises ValueError unless the manifest's counts are the sums of its parts'."""
    for total, name in (("num_docs", docs), ("num_tokens", tokens)):
        found = sum(getattr(part, name) for part in parts)
        if getattr(manifest, total) != found:
            raise ValueError(f"{total} is {getattr(manifest, total)}, and the parts hold {found}")


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


def write_with_digest_name(root: str, stem: str, suffix: str, data: bytes) -> FileEntry:
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
