"""Manifests list the files of a folder with sizes and digests. A manifest is written last, in one atomic step.

A reader ignores files that no manifest lists. A manifest depends only on the input and the configuration of its job: a job that was killed
and run again produces the same bytes. Timings go to provenance.json.
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
"""The version of manifests that every release reads."""
TRELLIS_VERSION = 2
"""The version of an index whose codec has a trellis."""
RESIDUAL_BYTES_VERSION = 3
"""The version of an index with `residual_bytes`."""
NEWEST_VERSION = 3
MANIFEST = "manifest.json"
PROVENANCE = "provenance.json"
LATEST = "LATEST"
"""The file of an index that names its latest version."""
Count = Annotated[int, Field(ge=0, le=1 << 53)]
"""A number of documents, tokens or bytes, or a position."""
Finite = Annotated[float, Field(allow_inf_nan=False)]
Dim = Annotated[int, Field(ge=1, le=1 << 16)]


class FileEntry(Config):
    """A file below the manifest's root folder, with its size in bytes and its sha256 (hex)."""

    name: FileName
    size: Annotated[int, Field(ge=1, le=1 << 53)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class DeadLetter(FileEntry):
    """A JSONL file of refused corpus rows, each with the reason."""

    num_rows: Count


def later_field(default: Any) -> Any:
    """Return a manifest field added after the first release. A default value is not written, so old manifests keep their digests."""
    return Field(default, exclude_if=lambda value: value == default)


Manifest = TypeVar("Manifest", bound=Config)


def manifest_digest(manifest: Config) -> str:
    """Return the sha256 of a manifest's canonical JSON, which is also the sha256 of its file."""
    return digest(manifest.model_dump(mode="json"))


def files_of(value: Any) -> Iterator[FileEntry]:
    """Yield every file entry of a manifest, or of a part of a manifest."""
    if isinstance(value, FileEntry):
        yield value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from files_of(getattr(value, name))
    elif isinstance(value, tuple):
        for each in value:
            yield from files_of(each)


def check_names(manifest: Config) -> None:
    """Raise ValueError if two entries of a manifest have the same name, or if a file lies directly beside the manifest."""
    names: set[str] = set()
    for file in files_of(manifest):
        if file.name in names or "/" not in file.name:
            raise ValueError(f"{file.name} is listed twice" if file.name in names else f"{file.name} is not in a subfolder")
        names.add(file.name)


def check_totals(manifest: Any, parts: tuple[Any, ...], docs: str, tokens: str) -> None:
    """Check that the manifest's `num_docs` and `num_tokens` are the sums over its parts.

    Args:
        manifest: The manifest with fields `num_docs` and `num_tokens`.
        parts: Its parts.
        docs: Name of the field of a part that counts documents.
        tokens: Name of the field of a part that counts tokens.

    Raises:
        ValueError: A total differs from the sum.
    """
    for total, name in (("num_docs", docs), ("num_tokens", tokens)):
        found = sum(getattr(part, name) for part in parts)
        if getattr(manifest, total) != found:
            raise ValueError(f"{total} is {getattr(manifest, total)}, but the parts contain {found}")


def write_manifest(url: str, manifest: Config) -> None:
    """Write a manifest in one atomic step."""
    storage.write_bytes(url, canonical_json(manifest.model_dump(mode="json")))


def create_manifest(url: str, manifest: Config) -> None:
    """Write a manifest in one atomic step, unless another job has published a different one there.

    Raises:
        FileExistsError: A manifest with different content exists.
    """
    create_bytes(url, canonical_json(manifest.model_dump(mode="json")))


def read_manifest(url: str, kind: type[Manifest], made_by: str) -> Manifest:
    """Read and check a manifest.

    Args:
        url: Path or URL of the manifest.
        kind: The manifest type to expect.
        made_by: The job or function that writes such a manifest, for messages.

    Raises:
        FormatError: The file is missing, damaged or a manifest of another kind.
        UnsupportedVersion: A newer version of ray_lir wrote it.
    """
    expected_kind = kind.model_fields["kind"].default
    try:
        value = parse_json(storage.read_bytes(url))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise FormatError(url, f"the manifest of {expected_kind}", "no such file", f"check the path, or create it with {made_by}") from None
    except ValueError as error:
        raise FormatError(url, "JSON", f"damaged content ({error})", "restore the file or create the folder again") from None
    if not isinstance(value, dict) or value.get("kind") != expected_kind:
        found = f"{value.get('kind', 'no kind')!s:.80}" if isinstance(value, dict) else type(value).__name__
        raise FormatError(url, f"a manifest of {expected_kind}", f"{found}", f"give a folder that {made_by} wrote")
    version = value.get("format_version")
    if type(version) is not int or not 1 <= version <= NEWEST_VERSION:
        raise UnsupportedVersion(url, f"format_version up to {NEWEST_VERSION}", f"{version!r:.40}", "upgrade ray_lir to read it")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FormatError(
            url, f"a valid {expected_kind} manifest", f"{where}: {first['msg']}"[:300], "restore the file or create the folder again"
        ) from None


def describe_file(root: str, name: str) -> FileEntry:
    """Return the manifest entry of the file `name` below `root`."""
    url = storage.join(root, name)
    return FileEntry(name=name, size=storage.size(url), sha256=storage.sha256(url))


def write_with_digest_name(root: str, stem: str, suffix: str, data: bytes) -> FileEntry:
    """Write a small file below `root` under the name `<stem>-<12 hex digits of its sha256><suffix>`.

    Args:
        root: The manifest's root folder.
        stem: Start of the name, with its folder.
        suffix: End of the name, with its dot.
        data: The content.

    Returns:
        The manifest entry of the file.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    name = f"{stem}-{sha256[:12]}{suffix}"
    storage.write_bytes(storage.join(root, name), data)
    return FileEntry(name=name, size=len(data), sha256=sha256)


def check_file(root: str, entry: FileEntry, content: bool = False) -> None:
    """Check that a listed file exists in the folder and has the listed size.

    Args:
        root: The manifest's root folder.
        entry: The manifest entry of the file.
        content: Compare the sha256 too, which reads the whole file.

    Raises:
        FormatError: The file is missing or altered, or a symbolic link leads out of the folder.
    """
    fix = "restore it or create the folder again"
    check_links(root, [entry.name])
    url = storage.join(root, entry.name)
    try:
        size = storage.size(url)
    except FileNotFoundError:
        raise FormatError(url, f"a file of {entry.size} bytes", "no such file", fix) from None
    if size != entry.size:
        raise FormatError(url, f"{entry.size} bytes", f"{size} bytes", f"the file was truncated or altered: {fix}")
    if content and (found := storage.sha256(url)) != entry.sha256:
        raise FormatError(url, f"sha256 {entry.sha256[:16]}", f"{found[:16]}", f"the file was altered: {fix}")
