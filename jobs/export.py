"""Exports the token vectors of an index or of an embeddings folder, and what its scorer needs beside them, as .npy arrays, Parquet, or
points for Qdrant."""

from typing import Any

from pydantic import Field

from ray_lir.base.config import Config

from .cli import main
from .export_manifest import ExportManifest as ExportManifest
from .export_manifest import Layout


class ExportJob(Config):
    """Writes the token vectors of an index or an embeddings folder for another system (docs/operations.md says how to load them)."""

    source: str
    """Folder of token embeddings (a path or a URL), or of an index (on a local disk; its vectors are decompressed)."""
    output: str
    """Folder to write to; a path or a URL. It must be empty."""
    layout: Layout = "npy"
    """npy: arrays, lengths and ids, as PyLate and FastPlaid take them. parquet: a list of vectors a row, which LanceDB takes as a
    multivector column. qdrant: points as JSON lines, and the body that makes their collection; not for scorers that weigh or relate
    document tokens."""
    docs_per_file: int = Field(4096, ge=1)
    """A file ends with the row group (256 documents) that brings it to so many."""


def run(job: ExportJob) -> dict[str, Any]:
    """Exports; returns what it wrote.

    Raises:
        ConfigError: if the output is not empty, the source is no folder of vectors, or the layout cannot hold what its scorer needs.
        FormatError: if the source is damaged.
    """
    from .export_files import export

    return export(job)


if __name__ == "__main__":
    main(ExportJob, run)
