"""Memory-mapped files: advice to the operating system about their pages, and arrays in temporary files."""

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import numpy as np

from ray_lir.base.errors import ConfigError

MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED = 1, 2, 3
"""The same numbers on Linux and macOS; Python names them only where it has mmap.madvise."""
MADV_COLD = 20
"""Linux only: when memory is short, these pages are freed first."""
RANGES_PER_CALL = 1024
"""Most ranges of one call of process_madvise (IOV_MAX)."""


def pages_of(arrays: Sequence[np.ndarray], first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Return the ranges of pages that hold some rows of memory-mapped arrays: address and length in bytes, [m, 2] uint64.

    Args:
        arrays: Arrays with the same number of rows. Their pages are in the order of the rows, for all arrays together.
        first: [n] first row of each range, ascending.
        end: [n] row after the last row of each range.
    """
    ranges = [_page_ranges(array, first, end) for array in arrays if array.size and len(first)]
    if not ranges:
        return np.zeros((0, 2), np.uint64)
    order = np.argsort(np.concatenate([places for places, _ in ranges]), kind="stable")
    return np.concatenate([pages for _, pages in ranges])[order]


def prefetch(pages: np.ndarray) -> None:
    """Start to read ranges of pages from the disk. The call does not wait until they are read.

    Pages that are in memory already cost 0.4 microseconds a range. On systems without madvise, nothing happens.
    """
    _advise_pages(pages, MADV_WILLNEED)


def release(pages: np.ndarray) -> None:
    """Let the system free ranges of pages before all others when memory is short."""
    if sys.platform == "linux":
        _advise_pages(pages, MADV_COLD)


def _page_ranges(array: np.ndarray, first: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the position in `first` of each range of pages, and address and length of each range, [n', 2] uint64. Ranges that share a
    page become one."""
    row_bytes, base = array.strides[0], array.ctypes.data
    starts = (base + first * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
    stops = -(-(base + end * row_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
    is_new = np.concatenate([[True], starts[1:] > stops[:-1]])
    places = np.flatnonzero(is_new)
    lengths = stops[np.concatenate([places[1:] - 1, [len(stops) - 1]])] - starts[places]
    return places, np.stack([starts[places], lengths], axis=1).astype(np.uint64)


def advise(array: np.ndarray, advice: int) -> None:
    """Tell the system how the pages of a memory-mapped array will be read.

    Args:
        array: The array.
        advice: MADV_RANDOM (no read-ahead) or MADV_SEQUENTIAL (more read-ahead than usual).
    """
    if array.size and hasattr(_libc(), "madvise"):
        [[start, length]] = _page_ranges(array, np.zeros(1, np.int64), np.full(1, len(array)))[1].tolist()
        _libc().madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


@contextmanager
def read_in_order(arrays: Sequence[np.ndarray]) -> Iterator[None]:
    """Let the system read ahead in arrays with MADV_RANDOM, for a pass over all rows in the body of a `with` block."""
    for array in arrays:
        advise(array, MADV_SEQUENTIAL)
    try:
        yield
    finally:
        for array in arrays:
            advise(array, MADV_RANDOM)


def _advise_pages(ranges: np.ndarray, advice: int) -> None:
    """Advise about ranges of pages. One call for many ranges lets the system send many requests to the disk at once."""
    if not len(ranges):
        return
    libc = _libc()
    if hasattr(libc, "process_madvise") and hasattr(os, "pidfd_open"):
        process = os.pidfd_open(os.getpid())
        try:
            for start in range(0, len(ranges), RANGES_PER_CALL):
                batch = np.ascontiguousarray(ranges[start : start + RANGES_PER_CALL])
                pointer, count = ctypes.c_void_p(batch.ctypes.data), ctypes.c_size_t(len(batch))
                if libc.process_madvise(process, pointer, count, advice, 0) < 0:  # an older kernel allows it to administrators only
                    break
            else:
                return
        finally:
            os.close(process)
    if hasattr(libc, "madvise"):
        for start, length in ranges.tolist():
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), advice)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def scratch_rows(blocks: Iterable[np.ndarray], dtype: np.dtype | type) -> np.ndarray:
    """Write blocks of an array one after another to a temporary file, and return the whole array, mapped into memory.

    At the end, all pages are written to the file, which is freed with the array. Otherwise the first searches that need memory would wait
    for these writes: medians of seconds at 100 million tokens (bench/README.md).

    Raises:
        ConfigError: The disk of the temporary folder is full.
    """
    try:
        with tempfile.TemporaryFile() as file:
            for block in blocks:
                file.write(np.ascontiguousarray(block, dtype).data)
            file.flush()
            os.fsync(file.fileno())
            num_rows = file.tell() // np.dtype(dtype).itemsize
            return np.asarray(np.memmap(file, dtype, "r+", shape=(num_rows,))) if num_rows else np.empty(0, dtype)
    except OSError as error:
        raise ConfigError(
            f"a search needs room in the temporary folder {tempfile.gettempdir()} ({error.strerror}); "
            "set TMPDIR to a folder on a disk with more room"
        ) from error
