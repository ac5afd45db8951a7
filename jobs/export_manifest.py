"""The manifest of an export."""

from typing import Literal

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.storage.manifest import FORMAT_VERSION, FileEntry

Layout = Literal["npy", "parquet", "qdrant"]


class ExportManifest(Config):
    """Manifest of an export: its files and their source. manifest.json is written last."""

    format_version: int = FORMAT_VERSION
    kind: Literal["export"] = "export"
    contract: EncoderContract
    layout: Layout
    dim: int
    num_docs: int
    num_tokens: int
    source: str
    """Digest of the source's manifest."""
    files: tuple[FileEntry, ...]
