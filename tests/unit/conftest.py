"""Fixtures for unit tests: the wheel of this repository."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel that RAY_LIR_WHEEL names, or one of this repository, built once for each session."""
    if built := os.environ.get("RAY_LIR_WHEEL"):
        return Path(built)
    folder = tmp_path_factory.mktemp("wheel")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(folder),
        str(REPOSITORY),
    ]
    done = subprocess.run(pip, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [built] = folder.glob("*.whl")
    return built
