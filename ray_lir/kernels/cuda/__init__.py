"""The kernels for NVIDIA GPUs, in Triton and torch, with the signatures of kernels.reference.

Imported only when they are selected. Arrays come and go as NumPy's; shards and codecs are copied to the GPU when they are
first used and leave it with the object. Scores are summed in float32 from products of float16: a token's is within about
1e-3 of the reference's. With TRITON_INTERPRET=1 in the environment everything runs, slowly, on a CPU.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ray_lir.base.errors import KernelUnavailable
from ray_lir.kernels import native, reference

try:
    from ray_lir.kernels.cuda import building, memory, postings, relations, scoring
except ImportError as error:
    raise KernelUnavailable(
        f"kernels 'cuda' need torch and triton ({error}): pip install 'ray_lir[gpu]'; or use auto, native or reference"
    ) from None

MODULES = (scoring, relations, building, postings)


def functions(names: Sequence[str]) -> dict[str, Callable[..., Any]]:
    """The kernels by name. Scores are on the host when the best are picked, so `top_k` is the host's.

    Raises:
        KernelUnavailable: if there is no GPU.
    """
    memory.device()
    ours = {name: getattr(module, name) for module in MODULES for name in names if module.__dict__.get(name)}
    return ours | {"top_k": native.top_k if native.available() else reference.top_k}
