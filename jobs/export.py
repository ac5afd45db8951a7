"""Exports token vectors of an index or an embeddings folder as .npy arrays, Parquet, or points for Qdrant."""

from typing import Any

from pydantic import Field

from ray_lir.base.config import Config

from .cli import main
from .export_manifest import ExportManifest as ExportManifest
from .export_manifest import Layout


class ExportJob(Config):
    """Exports token vectors of an index or an embeddings folder for another system. docs/operations.md describes how to load them.

    Token weights and relations, if the scorer uses them, are exported too.
    """

    source: str
    """Folder or URL of embeddings, or folder of an index on a local disk. Vectors of an index are decoded first."""
    output: str
    """Folder or URL for the files. It must be empty."""
    layout: Layout = "npy"
    """npy: arrays, lengths and ids, as PyLate and FastPlaid read them. parquet: a list of vectors a row, which LanceDB reads as a
    multivector column. qdrant: points as JSON lines, and the request body that creates their collection. qdrant does not support
    scorers with document token weights or relations."""
    docs_per_file: int = Field(4096, ge=1)
    """Documents in a file, rounded up to a multiple of 256."""


def run(job: ExportJob) -> dict[str, Any]:
    """Export the vectors and return the sizes.

    Raises:
        ConfigError: The output is not empty, the source holds no vectors, or the layout cannot hold what the scorer needs.
        Conflict: Another export wrote to the same output.
        FormatError: The source is damaged.
    """
    from .export_files import export

    return export(job)


if __name__ == "__main__":
    main(ExportJob, run)
