"""Residency: whether searches hold the whole index in memory, or leave residuals on the disk and read those of the candidates."""

import logging
import os
from functools import cache
from typing import get_args

from ray_lir.base.errors import ConfigError
from ray_lir.base.memory_limit import memory_limit
from ray_lir.base.residency_names import Residency
from ray_lir.index.manifest import IndexManifest

logger = logging.getLogger(__name__)

VARIABLE = "RAY_LIR_RESIDENCY"
"""Environment variable that replaces `auto`."""
MEMORY_FRACTION = 0.75
"""Fraction of the memory limit for the arrays of an index. The rest is for the process, its requests and other files."""
GB = 1e9
DISTINCT_CODES = 0.6
"""Fraction of a shard's codes that remain if a document lists each of its centroids once: about half for texts, and .61 for the made-up
documents of bench/results/larger_than_memory.md."""
SEARCHED = ("doc_offsets.npy", "codes.npy", "residuals.npy", "scales.npy", "weights.npy")
"""Files that searches read. Documents are read for hits only."""
ON_DISK = ("codes.npy", "residuals.npy", "scales.npy", "weights.npy")
"""Files that `disk` reads for the documents that are rescored."""


def on_disk(manifest: IndexManifest, residency: str = "auto") -> bool:
    """Return whether residuals stay on the disk. The choice of `auto` is logged once if it is `disk`.

    The whole index is compared with the memory limit, also by a process that opens some of the shards: all shard groups of a service may
    run on one machine.

    Args:
        manifest: The manifest of the index version.
        residency: auto, memory or disk.

    Raises:
        ConfigError: `residency`, or the environment variable that replaces `auto`, is none of them.
    """
    chosen = _checked(residency, "residency")
    if chosen == "auto":
        chosen = _checked(os.environ.get(VARIABLE, "").strip() or "auto", f"the environment variable {VARIABLE}")
    if chosen != "auto":
        return chosen == "disk"
    needed, limit = searched_bytes(manifest), memory_limit()
    if needed <= MEMORY_FRACTION * limit:
        return False
    _warn(
        f"the index needs {needed / GB:.1f} GB and the memory limit is {limit / GB:.1f} GB, so residuals stay on the disk "
        f"(residency=disk) and {resident_bytes(manifest) / GB:.1f} GB stay in memory; residency=memory maps everything"
    )
    if resident_bytes(manifest) > MEMORY_FRACTION * limit:
        _warn(
            f"codes and centroids need {resident_bytes(manifest) / GB:.1f} GB of the limit of {limit / GB:.1f} GB, so searches read them "
            "from the disk as well; raise the limit, or divide the index among machines"
        )
    return True


def searched_bytes(manifest: IndexManifest) -> int:
    """Return the bytes that searches hold in memory with residency `memory`, without posting lists."""
    return _file_bytes(manifest, SEARCHED) + _derived_bytes(manifest)


def resident_bytes(manifest: IndexManifest) -> int:
    """Return the bytes that searches hold in memory with residency `disk`, without posting lists."""
    return _file_bytes(manifest, ("doc_offsets.npy",)) + _derived_bytes(manifest)


def _derived_bytes(manifest: IndexManifest) -> int:
    """Bytes of the centroids (float16 and 16-bit words), and of the distinct codes of each document with their offsets."""
    distinct = round(DISTINCT_CODES * _file_bytes(manifest, ("codes.npy",)))
    return manifest.num_centroids * manifest.dim * 4 + _file_bytes(manifest, ("doc_offsets.npy",)) + distinct


def _file_bytes(manifest: IndexManifest, names: tuple[str, ...]) -> int:
    return sum(file.size for shard in manifest.shards for file in shard.files if file.name.rpartition("/")[2] in names)


def _checked(residency: str, name: str) -> str:
    if residency not in get_args(Residency):
        raise ConfigError(f"{name} is {residency!r}; choose {', '.join(get_args(Residency))}")
    return residency


@cache
def _warn(line: str) -> None:
    """Log a line once for each process: several shard groups in a process would repeat it."""
    logger.warning("%s", line)
