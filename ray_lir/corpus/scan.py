"""A corpus divided into chunks: consecutive rows of a file, the unit that is encoded, retried and resumed.

Chunk boundaries depend only on the files, not on the process that reads them. `scan` reads every row once before any other work. It finds
the number of chunks and documents, the rows with repeated ids, and a fingerprint of the content.
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
from ray_lir.base.short_repr import ShortRepr
from ray_lir.corpus.records import BadRow, Kept, document_text, parse_document, read_rows

CHUNK_BYTES = 16 << 20
"""A chunk ends early when its rows reach this many bytes, so that its texts fit into memory even if documents are long."""


@dataclass(frozen=True)
class Chunk:
    """Consecutive rows of one file.

    Attributes:
        number: Position among all chunks of the corpus.
        file: Name of the file.
        lines: Line (or row) number of each row, from 1.
        rows: The rows, each a JSON object as bytes.
        repeated: Positions in `rows` that are refused because another row of the corpus has the same id.
        kept: Which row with a repeated id becomes the document.
    """

    number: int
    file: str
    lines: list[int]
    rows: list[bytes]
    repeated: frozenset[int]
    kept: Kept = "first"


@dataclass(frozen=True)
class CorpusFile:
    """A file of a corpus, as the scan found it.

    Attributes:
        url: Path or URL of the file.
        first_chunk: Number of its first chunk.
        digests: For each chunk, the sha256 (hex) of all rows up to the chunk's end.
        repeated: Numbers of the rows that are refused because another row has the same id, ascending.
        kept: Which row with a repeated id becomes the document.
    """

    url: str
    first_chunk: int
    digests: tuple[str, ...]
    repeated: tuple[int, ...]
    kept: Kept = "first"

    @property
    def chunks(self) -> range:
        """The numbers of the file's chunks."""
        return range(self.first_chunk, self.first_chunk + len(self.digests))


@dataclass(frozen=True)
class Corpus:
    """The result of a scan.

    Attributes:
        files: The files, in reading order.
        docs_per_chunk: Maximum number of rows of a chunk.
        num_rows: Number of rows.
        num_docs: Number of rows that are documents, one for each id.
        num_repeated: Number of rows that are refused because another row has the same id.
        kept: Which row with a repeated id becomes the document.
        fingerprint: sha256 (hex) over file names and rows.
        first_bad: Position of the first row that is not a document, and the reason; empty if every row is one.
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
        """Number of chunks of all files."""
        return sum(len(file.digests) for file in self.files)


@dataclass(frozen=True, eq=False, repr=False)
class _FileScan(ShortRepr):
    url: str
    digests: tuple[str, ...]
    ids: np.ndarray
    """[rows, 2] uint64: a 128-bit hash of each row's id; zero for a row that is no document."""
    first_bad: str


def scan(urls: list[str], docs_per_chunk: int, map: Map = map, kept: Kept = "first") -> Corpus:
    """Read all files once. Memory is 16 bytes per row (about 60 while repeated ids are searched).

    Args:
        urls: Files of the corpus, in reading order.
        docs_per_chunk: Maximum number of rows of a chunk.
        map: Runs the scan of each file; a parallel map is possible.
        kept: Which row with a repeated id becomes the document.

    Raises:
        FormatError: A file is truncated or damaged.
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
    """Yield the chunks of a file; one chunk is in memory at a time.

    Args:
        file: The file, as the scan found it.
        docs_per_chunk: The value that the scan used.
        skip: Numbers of chunks to leave out.

    Raises:
        ConfigError: The file has changed since the scan.
    """
    changed = ConfigError(f"{file.url} was changed while the job was running; run the job again when the corpus no longer changes")
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
    """Return the texts of about `num_docs` documents, taken at equal intervals from the whole corpus."""
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
    """Yield the rows of each chunk: line numbers, rows, and the digest of all rows up to the chunk's end."""
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
    """Return the numbers of rows with repeated ids, ascending. Of equal hashes [rows, 2], the first (or last) row is kept; zero hashes
    are ignored."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))
    earlier, later = order[:-1], order[1:]
    same = (ids[later] == ids[earlier]).all(axis=1) & ids[later].any(axis=1)
    return np.sort((later if kept == "first" else earlier)[same])
