"""Arrays of a disk: what is mapped, and when its pages become those of the process."""

import mmap
import os
import resource
from pathlib import Path

import numpy as np
import pytest

from ray_lir.index import rows

PAGES = 16384


def faults_of_reading(array: np.ndarray) -> int:
    """Page faults while every page is touched."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    array.ravel()[:: resource.getpagesize()].max()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "array.npy", np.arange(PAGES * resource.getpagesize(), dtype=np.uint8))
    return tmp_path / "array.npy"


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="only Linux tells what is in memory")
def test_pages_in_memory_are_mapped_at_once(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not rows._is_cached(path):
        pytest.skip("this file system does not tell what is in memory")
    try:
        mmap.mmap(-1, resource.getpagesize()).madvise(rows.POPULATE_READ)
    except OSError:
        pytest.skip("this Linux maps pages when they are touched alone")
    at_once = faults_of_reading(rows.map_array(path))
    monkeypatch.setattr(rows, "_is_cached", lambda _: False)
    assert at_once < faults_of_reading(rows.map_array(path)) / 2


def test_a_file_that_is_not_in_memory_is_mapped_all_the_same(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise BlockingIOError

    monkeypatch.setattr(rows.os, "preadv", refuse)
    assert not rows._is_cached(path)
    np.testing.assert_array_equal(rows.map_array(path), np.load(path))


def test_an_array_without_elements_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "none.npy", np.zeros((0, 64), np.uint8))
    assert rows.map_array(tmp_path / "none.npy").shape == (0, 64)
