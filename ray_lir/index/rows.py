"""Arrays in .npy files: whole, mapped, or a block of rows at a time from a disk or an object store; writing a file of many blocks."""

import io
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import IO

import numpy as np

from ray_lir.errors import FormatError
from ray_lir.formats import storage

_header_lock = Lock()
"""NumPy parses a header with `ast`, which CPython before 3.11.8 and 3.12.2 fails at in two threads at once: a SystemError about its
"recursion depth" (python/cpython#106905)."""

POPULATE_READ = 22
"""Linux's MADV_POPULATE_READ, which Python has no name for."""
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
            with _header_lock:
                np.lib.format.read_magic(file)
                shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            yield Rows(file, dtype, shape, file.tell())
    except FileNotFoundError:
        raise FormatError(url, "a NumPy array", "no such file", "restore it or build the index anew") from None
    except ValueError as error:
        raise FormatError(url, "a NumPy array", f"{error!r:.120}", "restore it or build the index anew") from error


def read_array(url: str) -> np.ndarray:
    """A whole .npy file."""
    with open_rows(url) as rows:
        return rows[0 : rows.shape[0]]


def map_array(path: Path) -> np.ndarray:
    """A .npy file of a disk, mapped into memory; an array without elements, which cannot be mapped, is read.

    Pages that are in memory already become those of this process at once (a gigabyte takes 60 ms). Otherwise each 16 would be asked for
    when a search first touches one, which takes longer than what searches do with them. Nothing is read from the disk.

    Raises:
        FormatError: if it is none.
    """
    try:
        with _header_lock:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return read_array(str(path))
    if isinstance(array.base, mmap.mmap) and _is_cached(path):
        with suppress(OSError):  # a system that does not know how, or has no memory for it
            array.base.madvise(POPULATE_READ)
    return array.view(np.ndarray)


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
