"""Memory of open indexes, estimated from their manifests."""

import ctypes
from contextlib import suppress

from ray_lir.index.manifest import IndexManifest
from ray_lir.planning.sizes import Collection, codec_memory, posting_memory
from ray_lir.storage.manifest import files_of

OBJECT_BYTES = 1 << 20
"""Python objects of an open index: models, threads' caches and buffers. Measured in bench/results/many_indexes.md."""


def index_bytes(manifest: IndexManifest) -> int:
    """Return the bytes of memory that a version of an index takes while it is open, without its encoder.

    Its files are mapped into memory and read whole when digests are verified. The codec is in memory twice: for plans and for scores.
    Posting lists exist once an engine has probed.
    """
    of = Collection(
        manifest.num_docs, manifest.num_tokens, manifest.dim, manifest.nbits, manifest.num_centroids, len(manifest.shards), text_bytes=0
    )
    return OBJECT_BYTES + sum(file.size for file in files_of(manifest)) + 2 * codec_memory(of) + posting_memory(of)


def free_memory() -> None:
    """Return freed memory to the system. Without this, glibc keeps what opening and closing indexes has freed."""
    with suppress(AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
