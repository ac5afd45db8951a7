"""Arrays in .npy files: whole, mapped, or a block of rows at a time from a disk or an object store; writing a file of many blocks."""

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

_header_lock = fork_safe(Lock())
"""NumPy parses a header with `ast`, which CPython before 3.11.8 and 3.12.2 fails at in two threads at once: a SystemError about its
"recursion depth" (python/cpython#106905)."""

POPULATE_READ = 22
"""Linux's MADV_POPULATE_READ, which Python has no name for."""
MAX_HEADER = 1 << 12
"""Characters of a .npy header; those that ray_lir writes have 118."""
FIX = "restore it or build the index anew"
CACHE_SAMPLE = 64
"""Places of a file that are looked at."""


@dataclass(frozen=True)
class Rows:
    """The rows of an opened file; what is read of it is what is asked for."""

    file: IO[bytes]
    dtype: np.dtype
    shape: tuple[int, ...]
    start: int

    def __getitem__(self, wanted: slice) -> np.ndarray:
        """Rows `wanted.start` to `wanted.stop`."""
        if not 0 <= wanted.start <= wanted.stop <= self.shape[0]:
            raise IndexError(f"rows {wanted.start} to {wanted.stop} of {self.shape[0]}")
        row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self.file.seek(self.start + wanted.start * row_bytes)
        content = self.file.read((wanted.stop - wanted.start) * row_bytes)
        return np.frombuffer(content, self.dtype).reshape(-1, *self.shape[1:])


@contextmanager
def open_rows(url: str) -> Iterator[Rows]:
    """Opens a .npy file.

    Raises:
        FormatError: if it is missing or none.
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
    """Raises ValueError unless the file holds plain numbers, row after row, and ends with the last of them."""
    with _header_lock:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("a version of the format that ray_lir does not write")
        try:
            shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
        except Exception as error:  # a header is Python source, and NumPy's parsing of a damaged one raises almost anything
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
    """A whole .npy file.

    Raises:
        FormatError: if it is missing or damaged, or has another type or shape than these.
    """
    with open_rows(url) as rows:
        array = rows[0 : rows.shape[0]]
    if dtype is not None:
        check_array(url, array, dtype, shape)
    return array


def check_array(url: str, array: np.ndarray, dtype: type | np.dtype, shape: tuple[int, ...] | None) -> None:
    """Raises FormatError unless an array has this type and shape (None: any)."""
    if array.dtype != dtype or shape not in (None, array.shape):
        raise FormatError(url, f"{np.dtype(dtype)} {list(shape or ())}", f"{array.dtype} {list(array.shape)}", FIX)


def map_array(path: Path) -> np.ndarray:
    """A .npy file of a disk, mapped into memory; an array without elements, which cannot be mapped, is read.

    Pages that are in memory already become those of this process at once (a gigabyte takes 60 ms). Otherwise each 16 would be asked for
    when a search first touches one, which takes longer than what searches do with them. Nothing is read from the disk.

    Raises:
        FormatError: if it is none.
    """
    with open_rows(str(path)) as rows:
        dtype, shape, start = rows.dtype, rows.shape, rows.start
    if not math.prod(shape):
        return np.zeros(shape, dtype)
    with open(path, "rb") as file:
        pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if _is_cached(path):
        with suppress(OSError):  # a system that does not know how, or has no memory for it
            pages.madvise(POPULATE_READ)
    return np.frombuffer(pages, dtype, offset=start).reshape(shape)


def _is_cached(path: Path) -> bool:
    """Whether a file lies in the system's page cache, by a sample; False where that cannot be found out."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    size = path.stat().st_size
    with open(path, "rb") as file, suppress(OSError):  # BlockingIOError: there would be something to wait for
        return all(os.preadv(file.fileno(), [bytearray(1)], at, os.RWF_NOWAIT) for at in range(0, size, max(1, size // CACHE_SAMPLE)))
    return False


def array_bytes(array: np.ndarray) -> bytes:
    """The content of an array's .npy file."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def write_rows(path: Path, num_rows: int, blocks: Iterable[np.ndarray]) -> None:
    """Writes a .npy file of `num_rows` rows, block after block; there is at least one block."""
    with open(path, "wb") as file:
        for position, rows in enumerate(blocks):
            if position == 0:
                header = {"descr": rows.dtype.str, "fortran_order": False, "shape": (num_rows, *rows.shape[1:])}
                np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(rows).data)
