"""Fixtures for unit tests: the wheel of this repository."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that RAY_LIR_WHEEL names, or one of this repository. It is built once, also if several processes run the tests."""
    if built := os.environ.get("RAY_LIR_WHEEL"):
        return Path(built)
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    folder = tmp_path_factory.getbasetemp().parent / f"wheel-{run}" if run else tmp_path_factory.mktemp("wheel")
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not list(folder.glob("*.whl")):
            _build(folder)
    [built] = folder.glob("*.whl")
    return built


def _build(folder: Path) -> None:
    """Build the wheel into the folder."""
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*pip, "--wheel-dir", str(folder), str(REPOSITORY)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
