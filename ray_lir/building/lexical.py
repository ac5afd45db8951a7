"""Making the lexical postings of a shard, while its documents are written, and the statistics of a version."""

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ray_lir.base.errors import ConfigError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, watched
from ray_lir.corpus.records import document_text
from ray_lir.index.lexical import ARRAYS, COUNT_TYPES, PREFIX, TermCounts, Vocabulary, add_up, read_postings
from ray_lir.index.manifest import ShardEntry

ROWS = 1024
"""Documents to count together."""


class PostingsWriter:
    """Analyses the documents of a shard and writes their postings.

    Memory: about 28 bytes for each pair of a document and a term that it holds, and the vocabulary.

    Args:
        stemmer: Language of the stemmer; None for no stemming.
    """

    def __init__(self, stemmer: str | None):
        from ray_lir.corpus.analysis import Analyzer  # regular expressions and stemmers take tens of milliseconds to load

        self._analyzer = Analyzer(stemmer)
        numbers = count()
        self._terms: defaultdict[str, int] = defaultdict(lambda: next(numbers))
        self._lengths: list[int] = []
        self._postings: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []

    def reading(self, tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
        """Yield the tables of documents unchanged, and count the terms of their titles and texts."""
        for table in tables:
            for batch in table.to_batches(max_chunksize=ROWS):
                self._count(batch.column("title").to_pylist(), batch.column("text").to_pylist())
            yield table

    def _count(self, titles: list[str], texts: list[str]) -> None:
        found, lengths = array("Q"), []
        for title, text in zip(titles, texts, strict=True):
            before = len(found)
            found.extend(self._terms[term] for term in self._analyzer.terms(document_text(title, text)))
            lengths.append(len(found) - before)
        documents = np.repeat(np.arange(len(lengths), dtype=np.uint64), lengths)
        pairs, counts = np.unique((np.frombuffer(found, np.uint64) << np.uint64(16)) | documents, return_counts=True)
        first = len(self._lengths)
        numbers = (pairs & np.uint64(0xFFFF)).astype(np.uint32) + np.uint32(first)
        self._postings.append(((pairs >> np.uint64(16)).astype(np.uint32), numbers, counts.astype(np.uint32)))
        self._lengths += lengths

    def write(self, folder: Path) -> None:
        """Write the postings into the folder of the shard."""
        columns = zip(*self._postings, strict=True) if self._postings else ([np.zeros(0, np.uint32)] for _ in range(3))
        terms, documents, counts = (np.concatenate(column) for column in columns)
        names = sorted((term.encode(), number) for term, number in self._terms.items())
        ranks = np.zeros(len(names), np.uint32)
        ranks[[number for _, number in names]] = np.arange(len(names), dtype=np.uint32)
        order = np.argsort(ranks[terms], kind="stable")  # documents of a term stay in ascending order
        vocabulary = Vocabulary.of(pa.array([name for name, _ in names], pa.large_binary()))
        largest = int(counts.max(initial=0))
        arrays = {
            "terms": vocabulary.characters,
            "term_offsets": vocabulary.offsets,
            "posting_offsets": np.concatenate([[0], np.cumsum(np.bincount(ranks[terms], minlength=len(names)))]).astype(np.int64),
            "documents": documents[order],
            "counts": counts[order].astype(next(dtype for dtype in COUNT_TYPES if largest <= np.iinfo(dtype).max)),
            "lengths": np.array(self._lengths, np.uint32),
        }
        for name in ARRAYS:
            np.save(folder / f"{PREFIX}{name}.npy", arrays[name])


def count_terms(index: str, shards: Sequence[ShardEntry], map: Map, records: list[dict[str, Any]]) -> TermCounts:
    """Return the terms of all documents of some shards.

    Args:
        index: Folder or URL of the index.
        shards: Shards without deleted documents.
        map: Where the shards are read, one call a shard.
        records: Phases of the job; this phase is appended.
    """
    with phase("lexical", records) as record:
        counts = add_up(list(watched(map, "lexical")(partial(_terms_of, index), shards)))
        record.update(terms=len(counts.vocabulary), words=counts.num_terms)
    return counts


def _terms_of(index: str, entry: ShardEntry) -> TermCounts:
    return read_postings(index, entry).term_counts()


def check_has_terms(counts: TermCounts) -> None:
    """Raise ConfigError if no document has a term, because lexical search would find nothing."""
    if not counts.num_terms:
        raise ConfigError("the documents have no texts, so lexical search would find nothing; give texts, or build without lexical")
