"""IndexShard: an immutable slice of an index, as a folder of memory-mapped arrays and the documents.

| file | shape | holds |
|---|---|---|
| doc_offsets.npy | [N + 1] int64 | document i owns tokens doc_offsets[i] to doc_offsets[i + 1] |
| codes.npy | [T] uint16 or uint32 | each token's centroid |
| residuals.npy | [T, P] uint8 | packed buckets, the first dimension in the highest bits; or bytes of a trellis |
| scales.npy | [T, 2] float16 | a token decodes to scales[0] centroid + scales[1] bucket weights, with the norm of the original vector |
| | or [T] uint8 | with `residual_bytes`: the number of the token's pair of scales in the codec |
| weights.npy | [T] float16 | token weights minus one, if the scorer weighs document tokens |
| windows.npy | [W, 3] uint32 | of documents in windows: each window's first token in the shard, first and end character in its document |
| documents.arrow | N rows | doc_id, title, text, metadata |
| lexical_*.npy | | lexical postings, if the index has them (index/lexical.py) |

Deleted documents stay in these files. The version's tombstones list their numbers: a file [num_deleted] uint32, ascending.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.base.derived import derived
from ray_lir.base.errors import FormatError
from ray_lir.base.paging import MADV_RANDOM, advise, pages_of, prefetch, read_in_order, scratch_rows
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index import documents, postings
from ray_lir.index.arrays import FIX, check_array, map_array, read_array
from ray_lir.index.filter_evaluation import FilteredDocuments
from ray_lir.index.filters import Filters
from ray_lir.index.lexical import LexicalPostings, map_postings
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.metadata_fields import SampledFields
from ray_lir.index.passages import join_texts
from ray_lir.index.residency import ON_DISK
from ray_lir.storage.manifest import check_file, files_of

ARRAYS = ("doc_offsets", "codes", "residuals", "scales")
WEIGHTS = "weights"
WINDOWS = "windows"
POSTING_PARTS = 8
"""Parts of the posting lists that are written to a file one after another if residuals stay on the disk, to save memory."""


@dataclass(frozen=True, eq=False, repr=False)
class IndexShard(ShortRepr):
    """Documents first_document to first_document + N of the index; document numbers inside the shard start at 0."""

    first_document: int
    doc_offsets: np.ndarray
    codes: np.ndarray
    residuals: np.ndarray
    scales: np.ndarray
    documents: pa.Table
    num_centroids: int
    deleted: np.ndarray | None = None
    """[num_deleted] uint32, numbers of deleted documents inside the shard, ascending; None if there are none."""
    weights: np.ndarray | None = None
    """[T] float16, token weights minus one, so that weights near one keep 11 bits of the difference; None if every weight is one.

    Source: rho in docs/algorithms.md#7-one-factored-form.
    """
    windows: np.ndarray | None = None
    """[W, 3] uint32: the first token, and the first and end character, of each window; in the order of the tokens. None if the documents
    are not divided into windows."""
    of_passages: bool = False
    """Whether each row is a passage, the window of a document, instead of a document."""

    lexical: LexicalPostings | None = None
    """None for an index without lexical postings."""
    on_disk: bool = False
    """Whether residuals stay on the disk (index/residency.py). Searches then prefetch the documents that they rescore, and posting lists
    are in temporary files."""

    @property
    def num_docs(self) -> int:
        """Number of documents, deleted ones included."""
        return len(self.doc_offsets) - 1

    @property
    @derived
    def live(self) -> np.ndarray | None:
        """Numbers of live documents inside the shard, ascending; None if no document is deleted."""
        return None if self.deleted is None else np.delete(np.arange(self.num_docs), self.deleted)

    @property
    @derived
    def parents(self) -> np.ndarray:
        """For each row the first row of its document, [N] int64. It is the row itself unless the rows are passages."""
        rows = np.arange(self.num_docs)
        if not self.of_passages or self.windows is None:
            return rows
        return np.maximum.accumulate(np.where(self.windows[:, 1] == 0, rows, 0))

    @property
    def found_documents(self) -> np.ndarray:
        """Numbers of live documents inside the shard, ascending."""
        return np.arange(self.num_docs) if self.live is None else self.live

    @property
    @derived
    def _filtered(self) -> FilteredDocuments:
        return FilteredDocuments(self.documents, self.live)

    @property
    @derived
    def posting_offsets(self) -> np.ndarray:
        """Offsets of the centroids in `postings`, [C + 1] int64."""
        with self.whole_pass():
            return postings.offsets_of(self.codes, self.num_centroids)

    @property
    @derived
    def postings(self) -> np.ndarray:
        """Token numbers by centroid, [T] uint32."""
        return self._by_centroid(lambda first, end: np.arange(first, end, dtype=np.uint32), np.uint32)

    @property
    @derived
    def posting_documents(self) -> np.ndarray:
        """Document of each posting, [T] uint32, in the order of postings: a probe then reads only residuals at random."""
        return self._by_centroid(self._documents_of, np.uint32)

    @property
    @derived
    def posting_ratios(self) -> np.ndarray:
        """scales[1] / scales[0] of each posting's token, [T] float32, in the order of postings."""
        return self._by_centroid(self._ratios_of, np.float32)

    @property
    @derived
    def posting_pairs(self) -> np.ndarray:
        """The number of each posting's pair of scales, [T] uint8, in the order of postings; for an index with `residual_bytes`."""
        return self._by_centroid(lambda first, end: self.scales[first:end], np.uint8)

    def _by_centroid(self, values_of: Callable[[int, int], np.ndarray], dtype: type) -> np.ndarray:
        lists = partial(postings.by_centroid, self.codes, self.posting_offsets, values_of, dtype)
        if not self.on_disk:
            [whole] = lists()
            return whole
        with self.whole_pass():
            out = scratch_rows(lists(POSTING_PARTS), dtype)
        advise(out, MADV_RANDOM)
        return out

    def _documents_of(self, first: int, end: int) -> np.ndarray:
        """The document of each token from `first` to `end`, uint32."""
        lowest = int(np.searchsorted(self.doc_offsets, first, side="right")) - 1
        highest = int(np.searchsorted(self.doc_offsets, end, side="left"))
        lengths = np.diff(np.clip(self.doc_offsets[lowest : highest + 1], first, end))
        return np.repeat(np.arange(lowest, highest, dtype=np.uint32), lengths)

    def _ratios_of(self, first: int, end: int) -> np.ndarray:
        scales = self.scales[first:end].astype(np.float32)
        return scales[:, 1] / scales[:, 0]

    @property
    def vector_arrays(self) -> tuple[np.ndarray, ...]:
        """The arrays from which token vectors are decoded: codes, residuals, scales, and weights if there are any."""
        return (self.codes, self.residuals, self.scales, *(() if self.weights is None else (self.weights,)))

    def vector_pages(self, numbers: np.ndarray) -> np.ndarray:
        """Return the pages with the token vectors of documents (base/paging.py).

        Args:
            numbers: [n] document numbers inside the shard, ascending.
        """
        return pages_of(self.vector_arrays, self.doc_offsets[numbers], self.doc_offsets[numbers + 1])

    def prefetch_lists(self, clusters: np.ndarray, *lists: np.ndarray) -> None:
        """Start to read posting lists from the disk; nothing if the shard is in memory.

        Args:
            clusters: [P] clusters of the lists, in any order.
            *lists: Some of `postings`, `posting_documents`, `posting_ratios` and `posting_pairs`.
        """
        if self.on_disk:
            clusters = np.unique(clusters)
            prefetch(pages_of(lists, self.posting_offsets[clusters], self.posting_offsets[clusters + 1]))

    def whole_pass(self) -> AbstractContextManager[None]:
        """Return a context in which the token vectors of all documents are read in order."""
        return read_in_order(self.vector_arrays) if self.on_disk else nullcontext()

    def find(self, doc_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers inside the shard of live documents, by id; other ids are left out. Of passages, it is the first one.

        Every call compares the whole column of ids: about a millisecond for a hundred thousand documents.
        """
        rows = documents.find(self.documents, doc_ids)
        rows = rows if self.deleted is None else np.setdiff1d(rows, self.deleted, assume_unique=True)
        found: dict[str, int] = {}
        for doc_id, row in zip(documents.column(self.documents, "doc_id", rows), rows.tolist(), strict=True):
            found.setdefault(doc_id, row)
        return found

    def passages_of(self, row: int) -> np.ndarray:
        """Return all rows of a document by its first row, ascending; only that row unless the rows are passages."""
        return np.arange(row, int(np.searchsorted(self.parents, row, side="right")))

    def whole_row(self, row: int) -> dict[str, str]:
        """Return doc_id, title, text and metadata of a document, with its whole text if the rows are passages.

        Args:
            row: Its first row.
        """
        rows = self.passages_of(row)
        found = documents.rows(self.documents, rows)
        return found[0] if self.windows is None or not self.of_passages else join_texts(found, self.windows[rows, 1:])

    def matching(self, filters: Filters) -> np.ndarray:
        """Return the numbers inside the shard of live documents that meet the filters, ascending.

        Raises:
            FormatError: Metadata is not JSON.
        """
        return self._filtered.rows(filters)

    def unknown_fields(self, filters: Filters) -> dict[str, frozenset[str]]:
        """Return the names of existing metadata fields, by each field of the filters that no document has.

        Raises:
            FormatError: Metadata is not JSON.
        """
        return self._filtered.unknown_fields(filters)

    @property
    def sampled_fields(self) -> SampledFields:
        """Metadata fields in a sample of the live documents, with their kinds and values."""
        return self._filtered.sampled_fields

    def token_weights(self, tokens: np.ndarray | slice) -> np.ndarray | None:
        """Return the weights of these tokens, float64; None if every token has weight one."""
        return None if self.weights is None else self.weights[tokens].astype(np.float64) + 1

    def windows_of(self, tokens: np.ndarray) -> np.ndarray | None:
        """Return the windows that hold these tokens of the shard, [n, 3] int64 like `windows`; None if there are no windows."""
        if self.windows is None:
            return None
        return self.windows[np.searchsorted(self.windows[:, 0], tokens, side="right") - 1].astype(np.int64)

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """Return the number of tokens of each of these documents."""
        return self.doc_offsets[numbers + 1] - self.doc_offsets[numbers]

    def tokens(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the token numbers of these documents, in their order, and the documents' offsets in them [len(numbers) + 1]."""
        lengths = self.lengths(numbers)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        starts = np.repeat(self.doc_offsets[numbers] - offsets[:-1], lengths)
        return starts + np.arange(offsets[-1]), offsets


def open_shard(
    root: str,
    entry: ShardEntry,
    manifest: IndexManifest,
    verify: bool = False,
    opened: IndexShard | None = None,
    on_disk: bool = False,
) -> IndexShard:
    """Map a shard into memory after checking its files.

    Sizes, types and shapes are checked, and every number that indexes another array, because kernels do not check them. This reads
    doc_offsets and codes once: 0.2 ms for a million tokens in the page cache.

    Args:
        root: Folder of the index.
        entry: The shard's entry in the manifest.
        manifest: The manifest of the index.
        verify: Check the files' digests too.
        opened: The same shard, opened for another version: only its tombstones are read. None: it is not open.
        on_disk: Whether residuals stay on the disk (index/residency.py).
    Raises:
        FormatError: A file is missing, cut or altered, or the files do not fit together.
    """
    if opened is not None:
        if entry.tombstones:
            check_file(root, entry.tombstones, content=verify)
        return _with_deleted(opened, entry.first_document, read_deleted(root, entry) if entry.tombstones else None)
    for file in files_of(entry):
        check_file(root, file, content=verify)
    folder = Path(root) / entry.name
    paths = {name: folder / f"{name}.npy" for name in (*ARRAYS, *optional_arrays(entry))}
    arrays = {name: map_array(path, on_disk and path.name in ON_DISK) for name, path in paths.items()}
    for name, (dtype, shape) in _layout(entry, manifest).items():
        if name in arrays:
            check_array(str(paths[name]), arrays[name], dtype, shape)
    if WINDOWS in arrays:
        check_windows(str(paths[WINDOWS]), arrays[WINDOWS], entry)
    check_offsets(str(paths["doc_offsets"]), arrays["doc_offsets"], entry)
    with read_in_order([arrays["codes"]]) if on_disk else nullcontext():
        highest = int(arrays["codes"].max(initial=0))
    if entry.num_tokens and highest >= manifest.num_centroids:
        raise FormatError(str(paths["codes"]), f"codes below {manifest.num_centroids}", f"{highest}", FIX)
    table = documents.open_table(folder / documents.FILE, entry.num_docs)
    deleted = read_deleted(root, entry) if entry.tombstones else None
    lexical = map_postings(folder, entry) if manifest.lexical else None
    of_passages = manifest.contract.has_passages
    if of_passages and (WINDOWS not in arrays or len(arrays[WINDOWS]) != entry.num_docs):
        raise FormatError(str(folder / f"{WINDOWS}.npy"), f"one window for each of {entry.num_docs} passages", "others", FIX)
    return IndexShard(
        entry.first_document,
        **arrays,
        documents=table,
        num_centroids=manifest.num_centroids,
        deleted=deleted,
        lexical=lexical,
        of_passages=of_passages,
        on_disk=on_disk,
    )


def _with_deleted(shard: IndexShard, first_document: int, deleted: np.ndarray | None) -> IndexShard:
    """Return a shard with other deleted documents. It shares the arrays, and posting lists that were computed."""
    if shard.first_document == first_document and np.array_equal(
        np.zeros(0) if shard.deleted is None else shard.deleted, np.zeros(0) if deleted is None else deleted
    ):
        return shard
    other = replace(shard, first_document=first_document, deleted=deleted)
    for name in ("posting_offsets", "postings", "posting_documents", "posting_ratios", "posting_pairs"):
        computed: derived[IndexShard, [], Any] = getattr(IndexShard, name).fget
        if shard in computed:
            computed.put(other, getattr(shard, name))
    return other


def _layout(entry: ShardEntry, manifest: IndexManifest) -> dict[str, tuple[type, tuple[int, ...]]]:
    """Return the type and shape of each array of a shard."""
    num_tokens = entry.num_tokens
    return {
        "doc_offsets": (np.int64, (entry.num_docs + 1,)),
        "codes": (np.uint16 if manifest.num_centroids <= 1 << 16 else np.uint32, (num_tokens,)),
        "residuals": (np.uint8, (num_tokens, manifest.residual_bytes or manifest.dim * manifest.nbits // 8)),
        "scales": (np.uint8, (num_tokens,)) if manifest.residual_bytes else (np.float16, (num_tokens, 2)),
        WEIGHTS: (np.float16, (num_tokens,)),
    }


def check_offsets(url: str, offsets: np.ndarray, entry: ShardEntry) -> None:
    """Check that a shard's doc_offsets ascend from 0 to its number of tokens.

    Args:
        url: File of the offsets, for the message.
        offsets: [N + 1] int64.
        entry: The shard's entry in the manifest.
    Raises:
        FormatError: They do not.
    """
    if offsets[0] != 0 or offsets[-1] != entry.num_tokens or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(url, f"offsets that ascend from 0 to {entry.num_tokens}", "others", FIX)


def check_windows(url: str, windows: np.ndarray, entry: ShardEntry) -> None:
    """Check the windows of a shard.

    Args:
        url: File of the windows, for the message.
        windows: The array.
        entry: The shard's entry in the manifest.
    Raises:
        FormatError: The array is not [W, 3] uint32, the first tokens do not ascend from 0, or a window ends before it begins.
    """
    if windows.ndim != 2 or windows.dtype != np.uint32 or windows.shape[1] != 3 or len(windows) < entry.num_docs:
        raise FormatError(url, f"uint32 [at least {entry.num_docs}, 3]", f"{windows.dtype} {list(windows.shape)}", FIX)
    first, begin, end = windows.T
    if len(first) and (first[0] != 0 or first[-1] > entry.num_tokens or (first[1:] < first[:-1]).any() or (end < begin).any()):
        raise FormatError(url, f"first tokens that ascend from 0 to at most {entry.num_tokens}", "others", FIX)


def read_offsets(index: str, entry: ShardEntry) -> np.ndarray:
    """Read a shard's doc_offsets [N + 1] int64, from a disk or an object store.

    Raises:
        FormatError: The file is missing or damaged.
    """
    url = storage.join(index, entry.name, "doc_offsets.npy")
    offsets = read_array(url, np.int64, (entry.num_docs + 1,))
    check_offsets(url, offsets, entry)
    return offsets


def read_deleted(index: str, entry: ShardEntry) -> np.ndarray:
    """Read the numbers of deleted documents inside a shard, [num_deleted] uint32, ascending.

    Raises:
        FormatError: The file is missing or damaged.
    """
    if entry.tombstones is None:
        return np.zeros(0, np.uint32)
    url = storage.join(index, entry.tombstones.name)
    numbers = read_array(url, np.uint32, (entry.num_deleted,))
    if numbers[-1] >= entry.num_docs or (numbers[1:] <= numbers[:-1]).any():
        raise FormatError(url, f"document numbers that ascend and are below {entry.num_docs}", "others", FIX)
    return numbers


def optional_arrays(entry: ShardEntry) -> list[str]:
    """Return which of the optional arrays a shard has."""
    listed = {file.name for file in entry.files}
    return [name for name in (WEIGHTS, WINDOWS) if f"{entry.name}/{name}.npy" in listed]


def has_token_weights(entry: ShardEntry) -> bool:
    """Return whether a shard has token weights."""
    return WEIGHTS in optional_arrays(entry)
