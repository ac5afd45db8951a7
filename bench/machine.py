"""The machine that a result was measured on."""

import os
import platform
from pathlib import Path
from typing import Any

INSTRUCTIONS = ("avx2", "avx512_vnni", "amx_int8", "asimddp")


def machine() -> dict[str, Any]:
    """Return the processor, cores, memory in GB, system and Python version of this machine."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")),
        platform.processor(),
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def instructions() -> list[str]:
    """Return the instruction sets of this processor that the kernels use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    return [name for name in INSTRUCTIONS if name in flags]
