"""Deleting documents from a shard: its folder stays as it is, and a small file lists their numbers, its tombstones."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.index import documents
from ray_lir.index.arrays import array_bytes, open_rows
from ray_lir.index.manifest import ShardEntry
from ray_lir.index.shard import read_deleted, read_offsets
from ray_lir.storage.manifest import write_with_digest_name

FOLDER = "tombstones"


@dataclass(frozen=True)
class Deletion:
    """What a shard lost.

    Attributes:
        entry: the shard with its new tombstones.
        doc_ids: of the documents that were found.
        centroids: of their tokens, each once, ascending.
        sizes: how many of the tokens had each of them.
    """

    entry: ShardEntry
    doc_ids: list[str]
    centroids: np.ndarray
    sizes: np.ndarray


def delete_from_shard(index: str, doc_ids: Sequence[str], entry: ShardEntry) -> Deletion:
    """Finds the documents that are not deleted yet, and writes tombstones for them and those before.

    It reads the shard's ids, doc_offsets and the codes of what is deleted, from a disk or an object store.
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
    return Deletion(entry.model_copy(update={"tombstones": tombstones, **counts}), ids, centroids.astype(np.int64), sizes)


def find_in_shard(index: str, doc_ids: Sequence[str], entry: ShardEntry) -> tuple[np.ndarray, list[str]]:
    """Rows of those of these documents that the shard holds and that are not deleted, ascending, and their ids."""
    url = storage.join(index, entry.name, documents.FILE)
    table = pa.Table.from_batches(documents.read_batches(url, ["doc_id"]), documents.IDS)
    rows = np.setdiff1d(documents.find(table, doc_ids), read_deleted(index, entry), assume_unique=True)
    return rows, documents.column(table, "doc_id", rows)
