"""Arrays in .npy files: read, mapped and read by rows, also by concurrent threads; page faults of mapped arrays."""

import gc
import mmap
import os
import resource
import sys
from pathlib import Path

import numpy as np
import pytest

from ray_lir.base.errors import FormatError
from ray_lir.base.parallel import threads
from ray_lir.index import arrays as module
from ray_lir.index.arrays import array_bytes, map_array, open_rows, read_array, write_rows

PAGES = 16384


def test_a_file_of_blocks_returns_the_rows_written(tmp_path):
    rows = np.arange(60, dtype=np.uint16).reshape(20, 3)
    write_rows(tmp_path / "rows.npy", 20, [rows[:7], rows[7:8], rows[8:]])
    assert np.array_equal(read_array(str(tmp_path / "rows.npy")), rows)
    assert np.array_equal(map_array(tmp_path / "rows.npy"), rows)
    with open_rows(str(tmp_path / "rows.npy")) as file:
        assert np.array_equal(file[5:9], rows[5:9])


def test_an_empty_array_is_read_instead_of_mapped(tmp_path):
    (tmp_path / "empty.npy").write_bytes(array_bytes(np.zeros((0, 4), np.float32)))
    assert map_array(tmp_path / "empty.npy").shape == (0, 4)


@pytest.mark.parametrize("read", [lambda path: read_array(str(path)), map_array])
def test_a_file_that_is_not_an_array_is_refused(tmp_path, read):
    (tmp_path / "wrong.npy").write_bytes(b"not an array at all")
    with pytest.raises(FormatError, match="build the index anew"):
        read(tmp_path / "wrong.npy")


@pytest.fixture
def hurried():
    """Switch threads as often as possible; garbage collection allows that inside C code too."""
    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    release = lambda *_: [0 for _ in range(3)]  # noqa: E731
    gc.callbacks.append(release)
    gc.set_threshold(5)
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)
    gc.set_threshold(*threshold)
    gc.callbacks.remove(release)


def test_concurrent_threads_read_and_map_arrays(tmp_path, hurried):
    path = tmp_path / "array.npy"
    path.write_bytes(array_bytes(np.arange(3)))

    def read(depth: int) -> int:
        return read(depth - 1) if depth else sum(_both(path) for _ in range(1000))

    assert sum(threads(read, range(4), num_threads=4)) == 4 * 1000 * 6


def _both(path: Path) -> int:
    return int(read_array(str(path)).sum() + map_array(path).sum())


@pytest.fixture
def many_pages(tmp_path: Path) -> Path:
    np.save(tmp_path / "array.npy", np.arange(PAGES * resource.getpagesize(), dtype=np.uint8))
    return tmp_path / "array.npy"


def faults_of_reading(array: np.ndarray) -> int:
    """Return the page faults of touching every page."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array.ravel()[:: resource.getpagesize()].max()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux reports the pages in memory")
def test_arrays_in_the_page_cache_are_mapped_immediately(many_pages, monkeypatch):
    if not module._is_cached(many_pages):
        pytest.skip("this file system does not report the pages in memory")
    try:
        mmap.mmap(-1, resource.getpagesize()).madvise(module.POPULATE_READ)
    except OSError:
        pytest.skip("this Linux maps pages when they are touched alone")
    at_once = faults_of_reading(map_array(many_pages))
    monkeypatch.setattr(module, "_is_cached", lambda _: False)
    assert at_once < faults_of_reading(map_array(many_pages)) / 2


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux reports the pages in memory")
def test_a_file_outside_the_page_cache_is_mapped(many_pages, monkeypatch):
    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(module.os, "preadv", refuse)
    assert not module._is_cached(many_pages)
    np.testing.assert_array_equal(map_array(many_pages), np.load(many_pages))
