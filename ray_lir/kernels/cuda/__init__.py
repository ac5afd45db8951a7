"""The kernels for NVIDIA GPUs, in Triton and torch.

This package is imported only when its kernels are selected. Arguments and results are NumPy arrays. Shards and codecs are copied to the
GPU when they are first used, and the copies are freed together with them. Products of float16 are summed in float32, so a token's score is
within about 1e-3 of the reference. With TRITON_INTERPRET=1 in the environment everything runs on a CPU, slowly.
"""

from dataclasses import dataclass

import numpy as np

from ray_lir.base.errors import KernelUnavailable
from ray_lir.kernels import native
from ray_lir.kernels.protocol import Kernels
from ray_lir.kernels.reference import REFERENCE

try:
    from ray_lir.kernels.cuda import building, memory, postings, relations, scoring
except ImportError as error:
    raise KernelUnavailable(
        f"kernels 'cuda' need torch and triton ({error}): pip install 'ray_lir[gpu]'; or use auto, native or reference"
    ) from None


def kernels() -> Kernels:
    """Return the kernels for the GPU.

    Raises:
        KernelUnavailable: There is no GPU.
    """
    memory.device()
    return _CudaKernels()


@dataclass(frozen=True)
class _CudaKernels:
    name: str = "cuda"
    threads: int = 1
    queries_together: int = 64
    """Queries to score in one call, because a token is decoded once for a block of queries."""
    uses_blas: bool = False

    assign = staticmethod(building.assign)
    nearest_cells = staticmethod(building.nearest_cells)
    assign_in_cells = staticmethod(building.assign_in_cells)
    rotate = staticmethod(building.rotate)
    compress = staticmethod(building.compress)
    maxsim = staticmethod(scoring.maxsim)
    centroid_scores = staticmethod(scoring.centroid_scores)
    residual_maxsim = staticmethod(scoring.residual_maxsim)
    nearest_maxsim = staticmethod(scoring.nearest_maxsim)
    relation_maxsim = staticmethod(relations.relation_maxsim)
    centroid_maxsim = staticmethod(scoring.centroid_maxsim)
    scan_table = staticmethod(scoring.scan_table)
    scan_codes = staticmethod(scoring.scan_codes)
    probe = staticmethod(postings.probe)
    candidates = staticmethod(postings.candidates)
    posting_scores = staticmethod(postings.posting_scores)

    def top_k(self, scores: np.ndarray, documents: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best, computed on the host, where the scores are."""
        return (native.kernels("", 1) if native.available() else REFERENCE).top_k(scores, documents, k)
