"""The inner loops of building and search. `Kernels` is the interface, and `select` chooses the kernel set that runs them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.base.parallel import num_cores
from ray_lir.kernels import native
from ray_lir.kernels.protocol import Kernels
from ray_lir.kernels.reference import REFERENCE

__all__ = ["VARIABLE", "Kernels", "default_kernels", "select"]

VARIABLE = "RAY_LIR_KERNELS"
"""Environment variable that replaces `auto`: with cuda, builds and searches that choose no kernels run on the GPU."""


def select(name: str = "auto", threads: int = 1) -> Kernels:
    """Return a kernel set.

    Args:
        name: reference, native, native:SET for one instruction set, or cuda. auto is the value of the environment variable
            RAY_LIR_KERNELS, which is read at every call; if it is unset or empty, the fastest set of the CPU.
        threads: Largest number of threads that a call of a kernel uses; 0 for all cores.

    Raises:
        KernelUnavailable: The set cannot run on this machine.
        ConfigError: There is no such set.
    """
    variable = os.environ.get(VARIABLE, "").strip() if name == "auto" else ""
    if not variable:
        return _select(name, threads)
    try:
        return _select(variable, threads)
    except RayLirError as error:
        raise type(error)(f"the environment variable {VARIABLE} is {variable!r}: {error}") from None


@contextmanager
def default_kernels(name: str) -> Iterator[None]:
    """Make `auto` mean another kernel set for this process, in the body of a `with` block.

    Args:
        name: A name that `select` accepts.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = name
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def _select(name: str, threads: int) -> Kernels:
    kind, _, instruction_set = name.partition(":")
    if name == "reference" or (name == "auto" and not native.available()):
        return REFERENCE
    if name == "auto" or kind == "native":
        return native.kernels(instruction_set, threads or num_cores())
    if name == "cuda":
        from ray_lir.kernels import cuda  # imports torch and triton, which nothing else in the index layer needs

        return cuda.kernels()
    raise ConfigError(f"unknown kernels {name!r}; use auto, native, native:SET, cuda or reference")
