"""Lines of text files, with one rule for all data files: corpora, queries, judgements, runs, ids to delete.

A line ends only at a line feed. A carriage return before it and a byte order mark at the start of the file are removed. Python's own rules
for lines and white space (`splitlines`, `split()`, `strip()`) would also split ids and texts at U+2028, U+0085 or U+001C.
"""

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from io import BufferedReader

from ray_lir import storage
from ray_lir.base.errors import FormatError

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BLANKS = b" \t\r"
MAX_LINE_BYTES = 128 << 20
"""A longer line is refused before it is read completely: a gzip file of ten megabytes can hold a line of ten gigabytes."""


def read_lines(url: str) -> Iterator[tuple[int, bytes]]:
    """Yield (line number from 1, line without its end) of every line that is not blank. Files that end in .gz are decompressed.

    Raises:
        FormatError: A gzip file is truncated or damaged, or a line is longer than MAX_LINE_BYTES.
        ConfigError: The file cannot be read.
    """
    number = 0
    with storage.wrap_errors("read", url):
        try:
            with storage.open_input(url) as file:
                lines = gzip.GzipFile(fileobj=file) if url.endswith(".gz") else BufferedReader(file, storage.BLOCK_BYTES)  # type: ignore[type-var]
                for number, line in enumerate(iter(partial(lines.readline, MAX_LINE_BYTES + 1), b""), start=1):
                    if len(line) > MAX_LINE_BYTES:
                        found = f"a line {number} of more than {MAX_LINE_BYTES >> 20} MiB"
                        raise FormatError(url, "lines that fit into memory", found, "split the text into several documents")
                    text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).removesuffix(b"\n").removesuffix(b"\r")
                    if text.strip(BLANKS):
                        yield number, text
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            why = " ".join(str(error).split())[:160] or type(error).__name__
            found = f"damage after line {number} ({why})"
            raise FormatError(url, "a whole gzip file", found, "the file is truncated or damaged: get it again") from None


def read_text_lines(url: str) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, text) of every line that is not blank.

    Raises:
        FormatError: A line is not UTF-8, or a gzip file is truncated or damaged.
        ConfigError: The file cannot be read.
    """
    for number, line in read_lines(url):
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            found = f"byte 0x{line[error.start]:02x} at position {error.start}"
            raise FormatError(f"{url} line {number}", "UTF-8", found, "convert the file to UTF-8") from None


def ascii_columns(line: str) -> list[str]:
    """Return the columns of a line, which ASCII white space separates, as in trec_eval."""
    return [column.decode("utf-8", "surrogatepass") for column in line.encode("utf-8", "surrogatepass").split()]
