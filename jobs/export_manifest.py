"""The manifest of an export."""

from typing import Literal

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.storage.manifest import FORMAT_VERSION, FileEntry

Layout = Literal["npy", "parquet", "qdrant"]


class ExportManifest(Config):
    """An export: files for another system, and where they came from. Its manifest.json is written last."""

    format_version: int = FORMAT_VERSION
    kind: Literal["export"] = "export"
    contract: EncoderContract
    layout: Layout
    dim: int
    num_docs: int
    num_tokens: int
    source: str
    """Digest of the manifest that the vectors were read by."""
    files: tuple[FileEntry, ...]
