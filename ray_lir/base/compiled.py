"""The compiled module ray_lir_native: kernels of search and building, and products of bytes for the encoder."""

import logging
from functools import cache
from types import ModuleType

from ray_lir.base.errors import KernelUnavailable

logger = logging.getLogger(__name__)
ABI = 14
"""Version of the compiled functions' arguments. Increase it here and in the C++ module whenever they change."""


@cache
def _load() -> ModuleType | None:
    try:
        import ray_lir_native
    except ImportError as error:
        logger.warning("the compiled kernels are missing (%s): using the slower reference kernels; a C++ compiler builds them", error)
        return None
    if ray_lir_native.ABI != ABI:
        logger.warning("the compiled kernels have another version: using the slower reference kernels; install ray_lir again")
        return None
    return ray_lir_native


def available() -> bool:
    """Return whether the compiled module is installed and matches this version; if not, one warning says why."""
    return _load() is not None


def module() -> ModuleType:
    """Return the compiled module.

    Raises:
        KernelUnavailable: It is not installed, or has another version.
    """
    compiled = _load()
    if compiled is None:
        raise KernelUnavailable("the compiled kernels are not installed; install ray_lir where there is a C++ compiler, or use reference")
    return compiled
