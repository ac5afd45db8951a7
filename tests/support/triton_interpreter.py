"""Runs the GPU kernels in this process: on a GPU if there is one, otherwise under Triton's interpreter."""

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch

import ray_lir.kernels
from ray_lir.kernels import Kernels, select


@contextmanager
def cuda_kernels() -> Iterator[Kernels]:
    """Yield the kernels. Triton chooses between compiling and interpreting on import, so it is imported again."""
    if torch.cuda.is_available():
        yield select("cuda")
        return
    with mock.patch.dict(os.environ, {"TRITON_INTERPRET": "1"}):
        import_anew()
        yield select("cuda")
    import_anew()


def import_anew() -> None:
    """Import Triton's library again, and the kernels at their next use."""
    import triton

    importlib.reload(triton.language.standard)
    importlib.reload(triton.language)
    for name in [name for name in sys.modules if name.startswith("ray_lir.kernels.cuda")]:
        del sys.modules[name]
    vars(ray_lir.kernels).pop("cuda", None)
