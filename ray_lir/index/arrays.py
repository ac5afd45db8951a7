"""Reading .npy files whole, mapped into memory, or some rows at a time from a disk or an object store; writing them in blocks."""

import io
import math
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np

from ray_lir import storage
from ray_lir.base.errors import FormatError
from ray_lir.base.forking import fork_safe
from ray_lir.base.paging import MADV_RANDOM, advise

_header_lock = fork_safe(Lock())
"""NumPy parses headers with `ast`, which in CPython before 3.11.8 and 3.12.2 fails when two threads use it at once: a SystemError about
its "recursion depth" (python/cpython#106905)."""

POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux; Python has no name for it."""
MAX_HEADER = 1 << 12
"""Largest number of characters of a .npy header; ray_lir writes 118."""
FIX = "restore it or build the index anew"
CACHE_SAMPLE = 64
"""Positions of a file to test for being in the page cache."""


@dataclass(frozen=True)
class Rows:
    """The rows of an open .npy file. Only the rows of a slice are read.

    Attributes:
        file: The open file.
        dtype: Type of the numbers.
        shape: Shape of the whole array.
        start: Byte at which the numbers begin.
    """

    file: IO[bytes]
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return rows `rows.start` to `rows.stop`."""
        if not 0 <= rows.start <= rows.stop <= self.shape[0]:
            raise IndexError(f"rows {rows.start} to {rows.stop} of {self.shape[0]}")
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self.file.seek(self.start + rows.start * row_bytes)
        content = self.file.read((rows.stop - rows.start) * row_bytes)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


@contextmanager
def open_rows(url: str) -> Iterator[Rows]:
    """Open a .npy file on a disk or an object store.

    Raises:
        FormatError: It is missing, or not a .npy file.
    """
    try:
        with storage.open_input(url) as file:
            file.seek(0, io.SEEK_END)
            size = file.tell()
            file.seek(0)
            rows = _read_header(file, size)
            yield rows
    except FileNotFoundError:
        raise FormatError(url, "a NumPy array", "no such file", FIX) from None
    except (ValueError, IndexError) as error:
        raise FormatError(url, "a NumPy array", f"{error!r:.120}", FIX) from error


def _read_header(file: IO[bytes], size: int) -> Rows:
    """Read the header of a file that holds only plain numbers in row-major order.

    Raises:
        ValueError: It holds anything else, or has another size.
    """
    with _header_lock:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a version of the format that ray_lir does not write")
        try:
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
        except Exception as error:  # a header is Python source, and parsing a damaged one can raise almost anything
            raise ValueError(f"a damaged header ({type(error).__name__})") from None
    start = file.tell()
    if dtype.kind not in "buif" or not dtype.isnative or dtype.subdtype or (fortran_order and len(shape) > 1) or not shape:
        raise ValueError(f"an array of {dtype} {shape}")
    if start % 64:
        raise ValueError(f"a header of {start} bytes")
    if min(shape) < 0 or start + math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{size - start} bytes for an array of {dtype} {shape}")
    return Rows(file, dtype, shape, start)


def read_array(url: str, dtype: type | None = None, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Read a whole .npy file.

    Args:
        url: A path, or a URL of an object store.
        dtype: Required type; None for any type and shape.
        shape: Required shape; None for any.
    Raises:
        FormatError: The file is missing or damaged, or has another type or shape.
    """
    with open_rows(url) as rows:
        array = rows[0 : rows.shape[0]]
    if dtype is not None:
        check_array(url, array, dtype, shape)
    return array


def check_array(url: str, array: np.ndarray, dtype: type | np.dtype, shape: tuple[int, ...] | None) -> None:
    """Check the type and shape of an array.

    Args:
        url: File of the array, for the message.
        array: The array.
        dtype: Required type.
        shape: Required shape; None for any.
    Raises:
        FormatError: The type or the shape differs.
    """
    if array.dtype != dtype or shape not in (None, array.shape):
        raise FormatError(url, f"{np.dtype(dtype)} {list(shape or ())}", f"{array.dtype} {list(array.shape)}", FIX)


def map_array(path: Path, on_disk: bool = False) -> np.ndarray:
    """Map a .npy file on a disk into memory. An empty array cannot be mapped and is read.

    Pages in the page cache are mapped at once (60 ms a gigabyte). Without this, each group of 16 pages costs a page fault in a search,
    which takes longer than the search's work on them. Nothing is read from the disk.

    Args:
        path: The file.
        on_disk: Whether rows will be read at random, each once. Pages in the page cache are then not mapped at once, and the system does
            not read ahead: by default a page fault can read megabytes.
    Raises:
        FormatError: The file is missing, or not a .npy file.
    """
    with open_rows(str(path)) as rows:
        dtype, shape, start = rows.dtype, rows.shape, rows.start
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    array = np.frombuffer(pages, dtype, offset=start).reshape(shape)
    if on_disk:
        advise(array, MADV_RANDOM)
    elif _is_cached(path):
        with suppress(OSError):  # not supported by the system, or not enough memory
            pages.madvise(POPULATE_READ)
    return array


def _is_cached(path: Path) -> bool:
    """Return whether a sample of a file's pages is in the page cache; False if the system cannot tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    size = path.stat().st_size
    with open(path, "rb") as file, suppress(OSError):  # BlockingIOError: a page would be read from the disk
        return all(os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) for at in range(0, size, max(1, size // CACHE_SAMPLE)))
    return False


def array_bytes(array: np.ndarray) -> bytes:
    """Return an array as the content of a .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_rows(path: Path, num_rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Write a .npy file block by block.

    Args:
        path: File to write.
        num_rows: Rows of all blocks together.
        blocks: At least one array, with the rows in order.
    """
    with open(path, "wb") as file:
        for position, rows in enumerate(blocks):
            if position == 0:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (num_rows, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)
