"""GPUs that Ray reserves for the process that computes on them."""

import os

LOGICAL_GPUS = "RAY_LIR_LOGICAL_GPUS"
"""Environment variable for tests: with 1, GPUs of the cluster exist only as resource counts, so torch computes on the CPU."""


def has_logical_gpus() -> bool:
    """Return whether the GPUs of the cluster exist only as resource counts, without hardware."""
    return os.environ.get(LOGICAL_GPUS) == "1"


def torch_device(num_gpus: float) -> str:
    """Return the torch device of a process. Ray shows it only its own GPU, so the device has no number.

    Args:
        num_gpus: GPUs that Ray reserved for the process.
    """
    return "cuda" if num_gpus and not has_logical_gpus() else "cpu"
