"""Deleting documents from a shard: its folder does not change; a small file of tombstones lists their numbers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index import documents
from ray_lir.index.arrays import array_bytes, open_rows
from ray_lir.index.lexical import TermCounts, has_postings, read_postings
from ray_lir.index.manifest import ShardEntry
from ray_lir.index.shard import read_deleted, read_offsets
from ray_lir.storage.manifest import write_with_digest_name

FOLDER = "tombstones"


@dataclass(frozen=True, eq=False, repr=False)
class Deletion(ShortRepr):
    """The documents that were deleted from a shard.

    Attributes:
        entry: The shard's entry with its new tombstones.
        doc_ids: Ids of the deleted documents.
        centroids: [c] int64, distinct centroids of their tokens, ascending.
        sizes: [c] int64, number of their tokens with each centroid.
        terms: Their terms; None if nothing was deleted, or the shard has no lexical postings.
    """

    entry: ShardEntry
    doc_ids: list[str]
    centroids: np.ndarray
    sizes: np.ndarray
    terms: TermCounts | None = None


def delete_from_shard(index: str, doc_ids: Sequence[str], entry: ShardEntry) -> Deletion:
    """Write the tombstones of a shard: earlier ones, and those of these documents if they are live.

    This reads the shard's ids, its doc_offsets, the codes of the deleted documents, and its lexical postings if it has them, from a disk or
    an object store.

    Args:
        index: Folder or URL of the index.
        doc_ids: Ids to delete; ids that the shard does not hold are ignored.
        entry: The shard's entry in the manifest.
    """
    found, ids = find_in_shard(index, doc_ids, entry)
    if not len(found):
        return Deletion(entry, [], np.zeros(0, np.int64), np.zeros(0, np.int64))
    offsets = read_offsets(index, entry)
    with open_rows(storage.join(index, entry.name, "codes.npy")) as codes:
        gone = np.concatenate([codes[offsets[row] : offsets[row + 1]] for row in found.tolist()])
    centroids, sizes = np.unique(gone, return_counts=True)
    numbers = np.union1d(read_deleted(index, entry), found).astype(np.uint32)
    tombstones = write_with_digest_name(index, f"{FOLDER}/{storage.base_name(entry.name)}", ".npy", array_bytes(numbers))
    counts = {"num_deleted": len(numbers), "deleted_tokens": entry.deleted_tokens + len(gone)}
    terms = read_postings(index, entry).term_counts(found) if has_postings(entry) else None
    return Deletion(entry.model_copy(update={"tombstones": tombstones, **counts}), ids, centroids.astype(np.int64), sizes, terms)


def find_in_shard(index: str, doc_ids: Sequence[str], entry: ShardEntry) -> tuple[np.ndarray, list[str]]:
    """Find live documents of a shard by id.

    Args:
        index: Folder or URL of the index.
        doc_ids: Ids to find; ids that the shard does not hold are ignored.
        entry: The shard's entry in the manifest.
    Returns:
        Row numbers, ascending, and their ids.
    """
    url = storage.join(index, entry.name, documents.FILE)
    table = pa.Table.from_batches(documents.read_batches(url, ["doc_id"]), documents.IDS)
    rows = np.setdiff1d(documents.find(table, doc_ids), read_deleted(index, entry), assume_unique=True)
    return rows, documents.column(table, "doc_id", rows)
