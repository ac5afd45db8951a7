"""A corpus cut into chunks: fixed runs of rows of a file, the unit in which it is encoded, retried and resumed.

Where chunks begin depends on the files alone, not on who reads them. `scan` looks at every row once before any work:
how many chunks and documents there are, which rows repeat an id, and a fingerprint of the content.
"""

import hashlib
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np

from ray_lir import storage
from ray_lir.base.config import digest
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import Map
from ray_lir.corpus.records import BadRow, Kept, document_text, parse_document, read_rows

CHUNK_BYTES = 16 << 20
"""A chunk ends early when its rows have this many bytes, so that its texts fit in memory however long the documents are."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file.

    Attributes:
        number: position among all chunks of the corpus.
        file: name of the file.
        lines: line (or row) number of each row, from 1.
        rows: each row, the bytes of a JSON object.
        repeated: positions in `rows` that are refused because another row of the corpus has their id.
        kept: which of the rows with one id is the document.
    """

    number: int
    file: str
    lines: list[int]
    rows: list[bytes]
    repeated: frozenset[int]
    kept: Kept = "first"


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus as the scan found it.

    Attributes:
        url: where it lies.
        first_chunk: number of its first chunk.
        digests: for each chunk, a sha256 (hex) of all rows up to its end.
        repeated: ordinals of rows that are refused because another row of the corpus has their id, ascending.
        kept: which of the rows with one id is the document.
    """

    url: str
    first_chunk: int
    digests: tuple[str, ...]
    repeated: tuple[int, ...]
    kept: Kept = "first"

    @property
    def chunks(self) -> range:
        """The numbers of its chunks."""
        return range(self.first_chunk, self.first_chunk + len(self.digests))


@dataclass(frozen=True)
class Corpus:
    """What a scan knows of a corpus.

    Attributes:
        files: in reading order.
        docs_per_chunk: rows of a chunk, at most.
        num_rows: rows in all.
        num_docs: rows that are documents, one for each id.
        num_repeated: rows that are refused because another row has their id.
        kept: which of the rows with one id is the document.
        fingerprint: sha256 (hex) over file names and rows.
        first_bad: where and why the first row is no document; empty if all are.
    """

    files: tuple[CorpusFile, ...]
    docs_per_chunk: int
    num_rows: int
    num_docs: int
    num_repeated: int
    kept: Kept
    fingerprint: str
    first_bad: str

    @property
    def num_chunks(self) -> int:
        return sum(len(file.digests) for file in self.files)


@dataclass(frozen=True)
class _FileScan:
    url: str
    digests: tuple[str, ...]
    ids: np.ndarray
    """[rows, 2] uint64: a 128-bit hash of each row's id; zero for a row that is no document."""
    first_bad: str


def scan(urls: list[str], docs_per_chunk: int, map: Map = map, kept: Kept = "first") -> Corpus:
    """Reads all files once, one call of `map` each; 16 bytes a row are held (about 60 while repeated ids are sought).

    Args:
        kept: Which of the rows with one id is the document.

    Raises:
        FormatError: if a file is cut or damaged.
    """
    scans = list(map(partial(_scan_file, docs_per_chunk=docs_per_chunk), urls))
    ids = np.concatenate([np.zeros((0, 2), np.uint64), *(found.ids for found in scans)])
    repeated = _repeated(ids, kept)
    files, row, chunk = [], 0, 0
    for found in scans:
        first, last = np.searchsorted(repeated, [row, row + len(found.ids)])
        files.append(CorpusFile(found.url, chunk, found.digests, tuple((repeated[first:last] - row).tolist()), kept))
        row, chunk = row + len(found.ids), chunk + len(found.digests)
    return Corpus(
        files=tuple(files),
        docs_per_chunk=docs_per_chunk,
        num_rows=len(ids),
        num_docs=int(ids.any(axis=1).sum()) - len(repeated),
        num_repeated=len(repeated),
        kept=kept,
        fingerprint=digest([[storage.base_name(found.url), *found.digests[-1:]] for found in scans]),
        first_bad=next((found.first_bad for found in scans if found.first_bad), ""),
    )


def read_chunks(file: CorpusFile, docs_per_chunk: int, skip: Collection[int] = ()) -> Iterator[Chunk]:
    """The chunks of a file, but for those whose number is in `skip`; one is held at a time.

    Raises:
        ConfigError: if the file is no longer what the scan saw.
    """
    changed = ConfigError(f"{file.url} was changed while the job was running; run it again when the corpus is at rest")
    row, position = 0, -1
    for position, (lines, rows, digest_so_far) in enumerate(_cut(file.url, docs_per_chunk)):
        if position >= len(file.digests) or digest_so_far != file.digests[position]:
            raise changed
        number = file.first_chunk + position
        if number not in skip:
            first, last = np.searchsorted(file.repeated, [row, row + len(rows)])
            repeated = frozenset(again - row for again in file.repeated[first:last])
            yield Chunk(number, storage.base_name(file.url), lines, rows, repeated, file.kept)
        row += len(rows)
    if position + 1 != len(file.digests):
        raise changed


def sample_texts(corpus: Corpus, num_docs: int) -> list[str]:
    """What is encoded of about `num_docs` documents, taken at even distances from the whole corpus."""
    step = max(1, corpus.num_rows // num_docs)
    texts, ordinal = [], 0
    for file in corpus.files:
        for chunk in read_chunks(file, corpus.docs_per_chunk):
            for position in range(-ordinal % step, len(chunk.rows), step):
                with suppress(BadRow):
                    document = parse_document(chunk.rows[position])
                    texts.append(document_text(document.title, document.text))
            ordinal += len(chunk.rows)
    return texts


def _cut(url: str, docs_per_chunk: int) -> Iterator[tuple[list[int], list[bytes], str]]:
    """The file's rows in runs: line numbers, rows, and the digest of everything up to there."""
    hasher = hashlib.sha256()
    lines: list[int] = []
    rows: list[bytes] = []
    size = 0
    for line, row in read_rows(url):
        hasher.update(b"%d %d " % (line, len(row)) + row)
        lines.append(line)
        rows.append(row)
        size += len(row)
        if len(rows) == docs_per_chunk or size >= CHUNK_BYTES:
            yield lines, rows, hasher.hexdigest()
            lines, rows, size = [], [], 0
    if rows:
        yield lines, rows, hasher.hexdigest()


def _scan_file(url: str, docs_per_chunk: int) -> _FileScan:
    digests, hashes, first_bad = [], bytearray(), ""
    for lines, rows, digest_so_far in _cut(url, docs_per_chunk):
        digests.append(digest_so_far)
        for line, row in zip(lines, rows, strict=True):
            try:
                hashes += hashlib.blake2b(parse_document(row).doc_id.encode(), digest_size=16).digest()
            except BadRow as error:
                hashes += bytes(16)
                first_bad = first_bad or f"{storage.base_name(url)} line {line}: {error}"
    return _FileScan(url, tuple(digests), np.frombuffer(bytes(hashes), np.uint64).reshape(-1, 2), first_bad)


def _repeated(ids: np.ndarray, kept: Kept) -> np.ndarray:
    """Ordinals, ascending, of the rows of [rows, 2] hashes that equal an earlier (or later) one; zero rows are not compared."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    earlier, later = order[:-1], order[1:]
    same = (ids[later] == ids[earlier]).all(axis=1) & ids[later].any(axis=1)
    return np.sort((later if kept == "first" else earlier)[same])
