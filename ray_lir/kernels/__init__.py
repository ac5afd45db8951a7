"""The inner loops of indexing and search, behind one record of functions: `select` says which set runs them."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from ray_lir.base.errors import ConfigError, RayLirError
from ray_lir.base.parallel import num_cores
from ray_lir.kernels import native, reference


@dataclass(frozen=True)
class Kernels:
    """A set of kernels; signatures, shapes and meaning are those of `kernels.reference`.

    Attributes:
        name: reference, cuda, or native and its instruction set.
        threads: that one call may use.
    """

    name: str
    threads: int
    assign: Callable[..., tuple[np.ndarray, np.ndarray]]
    nearest_cells: Callable[..., np.ndarray]
    assign_in_cells: Callable[..., np.ndarray]
    rotate: Callable[..., np.ndarray]
    compress: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    maxsim: Callable[..., np.ndarray]
    centroid_scores: Callable[..., np.ndarray]
    residual_maxsim: Callable[..., np.ndarray]
    relation_maxsim: Callable[..., np.ndarray]
    centroid_maxsim: Callable[..., np.ndarray]
    scan_table: Callable[..., Any]
    scan_codes: Callable[..., np.ndarray]
    probe: Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray]]
    candidates: Callable[..., np.ndarray]
    posting_scores: Callable[..., tuple[np.ndarray, np.ndarray]]
    top_k: Callable[..., tuple[np.ndarray, np.ndarray]]

    @property
    def queries_together(self) -> int:
        """Queries that are best scored in one pass over a shard: a GPU decodes a token once for a block of them."""
        return 64 if self.name == "cuda" else 1

    @property
    def uses_blas(self) -> bool:
        return self.name == "reference"

    def on_all_cores(self) -> "Kernels":
        """The same kernels, with all cores for each call."""
        return select(self.name, 0)


VARIABLE = "RAY_LIR_KERNELS"
"""Environment variable that says what auto stands for: with cuda, builds and searches that choose nothing run on the GPU."""
NAMES = [name for name in Kernels.__dataclass_fields__ if name not in ("name", "threads")]
REFERENCE = Kernels("reference", 1, **{name: getattr(reference, name) for name in NAMES})


def select(name: str = "auto", threads: int = 1) -> Kernels:
    """The kernels called `name`: reference, native, native:SET for one instruction set, or cuda.

    auto stands for the value of the environment variable RAY_LIR_KERNELS, read at every call; if the variable is unset or empty, for
    the fastest kernels of the CPU.

    Args:
        threads: how many a call may use; 0 for all cores.

    Raises:
        KernelUnavailable: if an explicit choice cannot run here.
        ConfigError: if there is no such set.
    """
    variable = os.environ.get(VARIABLE, "").strip() if name == "auto" else ""
    if not variable:
        return load(name, threads)
    try:
        return load(variable, threads)
    except RayLirError as error:
        raise type(error)(f"the environment variable {VARIABLE} is {variable!r}: {error}") from None


@cache
def load(name: str, threads: int) -> Kernels:
    """`select` without the environment variable: auto stands for the fastest kernels of the CPU."""
    if name == "reference" or (name == "auto" and not native.available()):
        return REFERENCE
    kind, _, instruction_set = name.partition(":")
    if name not in ("auto", "cuda") and kind != "native":
        raise ConfigError(f"unknown kernels {name!r}; use auto, native, native:SET, cuda or reference")
    if name == "cuda":
        from ray_lir.kernels import cuda  # torch and triton, which nothing else of the index tower needs

        return Kernels("cuda", 1, **cuda.functions(NAMES))
    threads = threads or num_cores()
    instruction_set = native.choose(instruction_set)
    return Kernels(f"native:{instruction_set}", threads, **native.functions(instruction_set, threads, NAMES))
