"""A text's vectors do not depend on threads, on the texts encoded with it or on concurrent calls, under any instruction set."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

INSTRUCTION_SETS = {
    "all of this processor": {},
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "none": {"ATEN_CPU_CAPABILITY": "default", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
}


@pytest.mark.parametrize("name", INSTRUCTION_SETS)
def test_vectors_and_weights_depend_on_the_text_alone(name: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.encoded_bits", str(tmp_path)]
    run = subprocess.run(command, env=os.environ | INSTRUCTION_SETS[name], capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]
