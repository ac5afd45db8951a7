"""Builds, searches and projections have the same bits for every number of threads of torch, OpenMP, BLAS, maps and kernels."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.repository import REPOSITORY

CPUINFO = Path("/proc/cpuinfo")
BLAS_CORE = {"OPENBLAS_CORETYPE": "Haswell"} if CPUINFO.exists() and " avx2 " in CPUINFO.read_text() else {}
"""Matrix products for a processor type on which the last bits are known to depend on the number of threads."""


@pytest.mark.parametrize(("kernels", "blas"), [("native", {}), ("reference", BLAS_CORE)], ids=["native", "reference"])
def test_results_do_not_depend_on_the_number_of_threads(kernels: str, blas: dict[str, str]) -> None:
    digests = []
    for cores in ("1", "4"):
        threads = {"OMP_NUM_THREADS": cores, "OPENBLAS_NUM_THREADS": cores, "RAY_LIR_KERNELS": kernels}
        command = [sys.executable, "-m", "tests.support.computed_bits", cores]
        done = subprocess.run(command, cwd=REPOSITORY, env=os.environ | threads | blas, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        digests.append(json.loads(done.stdout))
    assert digests[0] == digests[1]
