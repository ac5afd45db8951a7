"""A text's vectors do not depend on threads, on the texts encoded with it or on concurrent calls, under any instruction set."""

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

INSTRUCTION_SETS = {
    "all of this processor": {},
    "AVX2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "RAY_LIR_KERNELS": "native:avx2",
    },
    "none": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}
TOLERANCE = {"float32": 1e-3, "bfloat16": 0.04, "int8": 0.04}
"""Largest difference between instruction sets. Vectors are float16 of unit length, bfloat16 has 8 bits, and activations
of int8 have 7."""


@pytest.fixture(scope="module")
def encoded_under(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the folder of a run of tests.support.encoded_bits under an instruction set; each runs once."""

    @cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("bits")
        command = [sys.executable, "-m", "tests.support.encoded_bits", str(folder)]
        run = subprocess.run(command, env=os.environ | INSTRUCTION_SETS[name], capture_output=True, text=True, timeout=280)
        assert run.returncode == 0, run.stdout + run.stderr[-2000:]
        return folder

    return run


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_vectors_and_weights_depend_on_the_text_alone(name: str, encoded_under: Callable[[str], Path]) -> None:
    encoded_under(name)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name, settings in INSTRUCTION_SETS.items() if settings])
def test_instruction_sets_differ_within_a_tolerance(name: str, encoded_under: Callable[[str], Path]) -> None:
    with np.load(encoded_under("all of this processor") / "vectors.npz") as expected, np.load(encoded_under(name) / "vectors.npz") as found:
        assert set(found) == set(expected)
        for each in expected:
            np.testing.assert_allclose(found[each], expected[each], rtol=0, atol=TOLERANCE[each.split()[-1]], err_msg=each)
