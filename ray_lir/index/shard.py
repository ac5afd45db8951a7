"""IndexShard: an immutable, document-disjoint slice of an index, as a folder of memory-mapped arrays and its documents.

| file | shape | holds |
|---|---|---|
| doc_offsets.npy | [N + 1] int64 | document i owns tokens doc_offsets[i] to doc_offsets[i + 1] |
| codes.npy | [T] uint16 or uint32 | each token's centroid |
| residuals.npy | [T, D nbits / 8] uint8 | packed buckets, the first dimension in the highest bits |
| scales.npy | [T, 2] float16 | a token is scales[0] centroid + scales[1] bucket weights, and has length one |
| postings.npy, posting_offsets.npy | [T] uint32, [C + 1] int64 | tokens by centroid (index/postings.py) |
| documents.arrow | N rows | doc_id, title, text, metadata |
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa

from ray_lir.errors import FormatError
from ray_lir.formats.manifest import ShardEntry, check_file
from ray_lir.index import documents

BLOCK_TOKENS = 64
ARRAYS = ("doc_offsets", "codes", "residuals", "scales", "postings", "posting_offsets")


@dataclass(frozen=True)
class IndexShard:
    """Documents first_document to first_document + N of the index; document numbers inside the shard start at 0."""

    first_document: int
    doc_offsets: np.ndarray
    codes: np.ndarray
    residuals: np.ndarray
    scales: np.ndarray
    postings: np.ndarray
    posting_offsets: np.ndarray
    documents: pa.Table

    @property
    def num_docs(self) -> int:
        return len(self.doc_offsets) - 1

    @cached_property
    def block_documents(self) -> np.ndarray:
        """[T / 64 rounded up] uint32: the document of every 64th token, from where a token's document is a few steps away."""
        return (np.searchsorted(self.doc_offsets, np.arange(0, len(self.codes), BLOCK_TOKENS), side="right") - 1).astype(np.uint32)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Tokens of each of these documents."""
        return self.doc_offsets[numbers + 1] - self.doc_offsets[numbers]

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers of these documents, one document after another, and their offsets [len(numbers) + 1]."""
        lengths = self.lengths(numbers)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.doc_offsets[numbers] - offsets[:-1], lengths)
        return starts + np.arange(offsets[-1]), offsets


def open_shard(root: str, entry: ShardEntry, verify: bool = False) -> IndexShard:
    """Maps a shard after checking its files' sizes against the manifest (and their digests, with `verify`).

    Raises:
        FormatError: if a file is missing, cut or altered.
    """
    for file in entry.files:
        check_file(root, file, content=verify)
    folder = Path(root) / entry.name
    arrays = {name: _map_array(folder / f"{name}.npy") for name in ARRAYS}
    return IndexShard(first_document=entry.first_document, documents=documents.open_table(folder / documents.FILE), **arrays)


def _map_array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        try:
            return np.load(path, allow_pickle=False)  # an array without elements cannot be mapped
        except ValueError as error:
            raise FormatError(str(path), "a NumPy array", str(error), "restore it or build the index anew") from None
    return array.view(np.ndarray)
