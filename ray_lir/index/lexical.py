"""Lexical postings: the terms of an index's documents, for BM25. An index has them if it was built with `lexical`.

A shard holds the postings of its own documents, as memory-mapped arrays in its folder:

| file | shape | holds |
|---|---|---|
| lexical_terms.npy | [B] uint8 | the distinct terms in UTF-8, in ascending order of their bytes, one after another |
| lexical_term_offsets.npy | [V + 1] int64 | term i is terms[term_offsets[i] : term_offsets[i + 1]] |
| lexical_posting_offsets.npy | [V + 1] int64 | term i owns the postings posting_offsets[i] to posting_offsets[i + 1] |
| lexical_documents.npy | [P] uint32 | document of each posting, ascending for each term |
| lexical_counts.npy | [P] uint8, uint16 or uint32 | how often the document holds the term |
| lexical_lengths.npy | [N] uint32 | terms of each document, repeated ones included |

BM25 also needs statistics of the whole index: in how many live documents each term occurs, and the mean length of live documents. The
manifest lists them (`LexicalIndex`). They cover all shards and leave deleted documents out, so scores depend neither on the number of
shards nor on the updates that made the index.

Source: docs/algorithms.md#10-lexical-and-hybrid-search
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.index.arrays import FIX, array_bytes, check_array, map_array, read_array
from ray_lir.index.manifest import IndexManifest, LexicalIndex, ShardEntry
from ray_lir.storage.manifest import FileEntry, write_with_digest_name

ARRAYS = ("terms", "term_offsets", "posting_offsets", "documents", "counts", "lengths")
PREFIX = "lexical_"
"""Prefix of the names of a shard's lexical files."""
COUNT_TYPES = (np.uint8, np.uint16, np.uint32)
"""Types of `counts`; a shard uses the smallest that holds its largest count."""


@dataclass(frozen=True, eq=False, repr=False)
class Vocabulary(ShortRepr):
    """V distinct terms, in ascending order of their UTF-8 bytes.

    Attributes:
        characters: [B] uint8, the terms one after another.
        offsets: [V + 1] int64, where each term begins, and the end of the last.
    """

    characters: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(cls, terms: pa.Array) -> "Vocabulary":
        """Return the vocabulary of sorted, distinct terms of Arrow type large_binary."""
        _, offsets, characters = terms.buffers()
        starts = np.frombuffer(offsets, np.int64)[terms.offset : terms.offset + len(terms) + 1] if len(terms) else np.zeros(1, np.int64)
        return cls(np.frombuffer(characters or b"", np.uint8)[starts[0] : starts[-1]], starts - starts[0])

    def find(self, term: str) -> int | None:
        """Return the position of a term by binary search; None if it is not in the vocabulary."""
        key = term.encode()
        low, high = 0, len(self)
        while low < high:
            middle = (low + high) // 2
            if self.characters[self.offsets[middle] : self.offsets[middle + 1]].tobytes() < key:
                low = middle + 1
            else:
                high = middle
        found = low < len(self) and self.characters[self.offsets[low] : self.offsets[low + 1]].tobytes() == key
        return low if found else None

    def column(self) -> pa.Array:
        """Return the terms as an Arrow array of type large_binary, without a copy."""
        return pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(self), [None, pa.py_buffer(self.offsets), pa.py_buffer(self.characters)]
        )


@dataclass(frozen=True, eq=False, repr=False)
class TermCounts(ShortRepr):
    """The terms of some documents, with the number of these documents that hold each.

    Attributes:
        vocabulary: V distinct terms.
        frequencies: [V] int64, documents that hold the term.
        num_terms: Terms of these documents, repeated ones included.
    """

    vocabulary: Vocabulary
    frequencies: np.ndarray
    num_terms: int


@dataclass(frozen=True, eq=False, repr=False)
class LexicalPostings(ShortRepr):
    """The lexical postings of a shard; the module lists the arrays."""

    vocabulary: Vocabulary
    posting_offsets: np.ndarray
    documents: np.ndarray
    counts: np.ndarray
    lengths: np.ndarray

    def of_term(self, term: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Return the documents that hold a term, ascending, and how often each does; None if no document of the shard holds it."""
        number = self.vocabulary.find(term)
        if number is None:
            return None
        postings = slice(self.posting_offsets[number], self.posting_offsets[number + 1])
        return self.documents[postings], self.counts[postings]

    def term_counts(self, rows: np.ndarray | None = None) -> TermCounts:
        """Return the terms of some documents.

        Args:
            rows: Document numbers inside the shard; None for all documents.
        """
        if rows is None:
            return TermCounts(self.vocabulary, np.diff(self.posting_offsets), int(self.lengths.sum(dtype=np.int64)))
        chosen = np.zeros(len(self.lengths), bool)
        chosen[rows] = True
        owners = np.searchsorted(self.posting_offsets, np.flatnonzero(chosen[self.documents]), side="right") - 1
        frequencies = np.bincount(owners, minlength=len(self.vocabulary)).astype(np.int64)
        return TermCounts(self.vocabulary, frequencies, int(self.lengths[rows].sum(dtype=np.int64)))


@dataclass(frozen=True, eq=False, repr=False)
class LexicalStatistics(ShortRepr):
    """Statistics of all live documents of an index.

    Attributes:
        stemmer: Language of the stemmer; None for no stemming.
        num_docs: Live documents, those without terms included.
        counts: Their terms.
    """

    stemmer: str | None
    num_docs: int
    counts: TermCounts

    @property
    def mean_length(self) -> float:
        """Mean number of terms of a document."""
        return self.counts.num_terms / max(1, self.num_docs)

    def frequency(self, term: str) -> int:
        """Return the number of documents that hold a term."""
        number = self.counts.vocabulary.find(term)
        return 0 if number is None else int(self.counts.frequencies[number])


def add_up(added: Sequence[TermCounts], removed: Sequence[TermCounts] = ()) -> TermCounts:
    """Return the terms of several sets of documents together. Terms that no document holds any more are left out.

    Args:
        added: Terms of sets of documents without a common document.
        removed: Terms of documents of these sets, to subtract.
    """
    parts = [*added, *removed]
    signs = [1] * len(added) + [-1] * len(removed)
    table = pa.table(
        {
            "term": pa.chunked_array([part.vocabulary.column() for part in parts], pa.large_binary()),
            "count": pa.chunked_array([pa.array(sign * part.frequencies) for sign, part in zip(signs, parts, strict=True)], pa.int64()),
        }
    )
    sums = table.group_by("term").aggregate([("count", "sum")])
    sums = sums.filter(pc.greater(sums.column("count_sum"), 0)).sort_by("term").combine_chunks()
    terms = sums.column("term").chunk(0) if sums.num_rows else pa.array([], pa.large_binary())
    num_terms = sum(sign * part.num_terms for sign, part in zip(signs, parts, strict=True))
    return TermCounts(Vocabulary.of(terms), sums.column("count_sum").to_numpy().astype(np.int64), num_terms)


def has_postings(entry: ShardEntry) -> bool:
    """Return whether a shard has lexical postings."""
    return any(file.name == f"{entry.name}/{PREFIX}terms.npy" for file in entry.files)


def map_postings(folder: Path, entry: ShardEntry) -> LexicalPostings:
    """Map the lexical postings of a shard on a disk into memory, and check that they fit together.

    Args:
        folder: Folder of the shard.
        entry: The shard's entry in the manifest.
    Raises:
        FormatError: A file is missing or damaged, or the files do not fit together.
    """
    return _checked(str(folder), {name: map_array(folder / f"{PREFIX}{name}.npy") for name in ARRAYS}, entry)


def read_postings(index: str, entry: ShardEntry) -> LexicalPostings:
    """Read the lexical postings of a shard from a disk or an object store.

    Args:
        index: Folder or URL of the index.
        entry: The shard's entry in the manifest.
    Raises:
        FormatError: A file is missing or damaged, or the files do not fit together.
    """
    folder = storage.join(index, entry.name)
    return _checked(folder, {name: read_array(storage.join(folder, f"{PREFIX}{name}.npy")) for name in ARRAYS}, entry)


def _checked(folder: str, arrays: dict[str, np.ndarray], entry: ShardEntry) -> LexicalPostings:
    urls = {name: storage.join(folder, f"{PREFIX}{name}.npy") for name in arrays}
    vocabulary = _checked_vocabulary(urls["terms"], arrays["terms"], urls["term_offsets"], arrays["term_offsets"])
    offsets, documents, counts, lengths = (arrays[name] for name in ARRAYS[2:])
    check_array(urls["posting_offsets"], offsets, np.int64, (len(vocabulary) + 1,))
    check_array(urls["documents"], documents, np.uint32, documents.shape[:1])
    _check_offsets(urls["posting_offsets"], offsets, len(documents))
    if counts.dtype not in COUNT_TYPES:
        raise FormatError(urls["counts"], "whole numbers", str(counts.dtype), FIX)
    check_array(urls["counts"], counts, counts.dtype, documents.shape)
    check_array(urls["lengths"], lengths, np.uint32, (entry.num_docs,))
    if len(documents) and documents.max() >= entry.num_docs:
        raise FormatError(urls["documents"], f"document numbers below {entry.num_docs}", f"{documents.max()}", FIX)
    return LexicalPostings(vocabulary, offsets, documents, counts, lengths)


def write_statistics(index: str, stemmer: str | None, counts: TermCounts, suffix: str = "") -> LexicalIndex:
    """Write the statistics of an index version.

    Args:
        index: Folder or URL of the index.
        stemmer: Language of the stemmer.
        counts: Terms of all live documents.
        suffix: Added to the names of the files, before the digest.
    Returns:
        The entry for the version's manifest.
    """

    def write(name: str, array: np.ndarray) -> FileEntry:
        return write_with_digest_name(index, f"lexical/{name}{suffix}", ".npy", array_bytes(array))

    return LexicalIndex(
        stemmer=stemmer,
        num_terms=counts.num_terms,
        terms=write("terms", counts.vocabulary.characters),
        term_offsets=write("term_offsets", counts.vocabulary.offsets),
        frequencies=write("frequencies", counts.frequencies),
    )


def read_statistics(index: str, manifest: IndexManifest) -> LexicalStatistics | None:
    """Return the lexical statistics of an index version, from a disk or an object store; None if the index has no lexical postings.

    Raises:
        FormatError: A file is missing or damaged.
    """
    lexical = manifest.lexical
    if lexical is None:
        return None
    urls = [storage.join(index, file.name) for file in (lexical.terms, lexical.term_offsets, lexical.frequencies)]
    read = (lambda url: map_array(storage.local_path(url))) if storage.is_local(index) else read_array
    terms, offsets, frequencies = (read(url) for url in urls)
    vocabulary = _checked_vocabulary(urls[0], terms, urls[1], offsets)
    check_array(urls[2], frequencies, np.int64, (len(vocabulary),))
    return LexicalStatistics(lexical.stemmer, manifest.num_docs, TermCounts(vocabulary, frequencies, lexical.num_terms))


def _checked_vocabulary(terms_url: str, terms: np.ndarray, offsets_url: str, offsets: np.ndarray) -> Vocabulary:
    check_array(terms_url, terms, np.uint8, terms.shape[:1])
    check_array(offsets_url, offsets, np.int64, offsets.shape[:1])
    _check_offsets(offsets_url, offsets, len(terms))
    return Vocabulary(terms, offsets)


def _check_offsets(url: str, offsets: np.ndarray, end: int) -> None:
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != end or (offsets[1:] < offsets[:-1]).any():
        raise FormatError(url, f"offsets that ascend from 0 to {end}", "others", FIX)
