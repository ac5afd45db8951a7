"""The inner loops of indexing and search, behind one record of functions: `select` says which set runs them."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ray_lir.errors import ConfigError, KernelUnavailable
from ray_lir.kernels import reference


@dataclass(frozen=True)
class Kernels:
    """A set of kernels; signatures, shapes and meaning are those of `kernels.reference`."""

    name: str
    assign: Callable[..., np.ndarray]
    pack: Callable[..., np.ndarray]
    decompress: Callable[..., np.ndarray]
    maxsim: Callable[..., np.ndarray]
    centroid_maxsim: Callable[..., np.ndarray]
    posting_scores: Callable[..., np.ndarray]
    top_k: Callable[..., tuple[np.ndarray, np.ndarray]]


REFERENCE = Kernels(
    name="reference",
    assign=reference.assign,
    pack=reference.pack,
    decompress=reference.decompress,
    maxsim=reference.maxsim,
    centroid_maxsim=reference.centroid_maxsim,
    posting_scores=reference.posting_scores,
    top_k=reference.top_k,
)


def select(name: str = "auto") -> Kernels:
    """The kernels called `name`; auto is the fastest set this machine has.

    Raises:
        KernelUnavailable: if an explicit choice cannot run here.
        ConfigError: if there is no such set.
    """
    if name in ("auto", "reference"):
        return REFERENCE
    if name in ("native", "cuda"):
        raise KernelUnavailable(f"kernels {name!r} are not part of this version of ray_lir; use auto or reference")
    raise ConfigError(f"unknown kernels {name!r}; use auto or reference")
