"""The GPU of a shard group: what fits into its memory, whether it answers, and a first search that compiles its kernels."""

from dataclasses import dataclass, replace

import numpy as np

from ray_lir.base.errors import ConfigError, ShardUnavailable
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import SERVED, VECTOR_ENGINES
from ray_lir.index.manifest import IndexManifest
from ray_lir.planning.sizes import gpu_groups_needed, largest_gpu_group
from ray_lir.search.searcher import Searcher

GB = 1e9
WARM_UP_TOKENS = 32
WARM_UP_QUERIES = (1, 8)
"""Queries in the first searches. One query and a full block of 8 use different programs."""


@dataclass(frozen=True)
class GpuShare:
    """The part of a GPU that a replica may use.

    Attributes:
        fraction: Fraction of the GPU that Ray reserved.
        memory_gb: Memory of the whole GPU in GB (10^9 bytes). None: the memory that the GPU reports.
    """

    fraction: float
    memory_gb: float | None = None

    def check_fits(self, manifest: IndexManifest, num_groups: int) -> None:
        """Check that each group fits into this part of the GPU; without a GPU, everything fits.

        Args:
            manifest: Manifest of the index version.
            num_groups: Number of shard groups.

        Raises:
            ConfigError: A group is too large. The message names the number of groups that fit.
        """
        card = self.memory_gb * GB if self.memory_gb else device_memory()
        if card:
            check_fits_gpu(manifest, num_groups, self.fraction * card)


def device_memory() -> int | None:
    """Return the bytes of memory of this process's GPU; None if torch sees none."""
    import torch  # only groups with GPUs need it

    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None


def check_fits_gpu(manifest: IndexManifest, num_groups: int, num_bytes: float) -> None:
    """Check that each of `num_groups` shard groups fits into `num_bytes` of GPU memory.

    Args:
        manifest: Manifest of the index version.
        num_groups: Number of shard groups.
        num_bytes: Bytes of GPU memory for each group.

    Raises:
        ConfigError: A group is too large. The message names the number of groups that fit.
    """
    needed = largest_gpu_group(manifest, num_groups)
    if needed <= num_bytes:
        return
    problem = f"a group of {num_groups} needs {needed / GB:.2f} GB on its card and has {num_bytes / GB:.2f}"
    groups = gpu_groups_needed(manifest, num_bytes)
    if groups:
        raise ConfigError(f"{problem}; set num_groups to {groups}, or raise shard_gpus")
    raise ConfigError(
        f"{problem}, and so does a group of a single shard; raise shard_gpus, or build the index with more shards (--num_shards, now "
        f"{len(manifest.shards)})"
    )


def check_device() -> None:
    """Compute one number on the GPU.

    Raises:
        ShardUnavailable: The GPU does not answer, or gives a wrong number.
    """
    import torch

    from ray_lir.kernels.cuda.memory import device

    try:
        answer = torch.ones(2, device=device()).sum().item()
    except RuntimeError as error:
        raise ShardUnavailable(f"the GPU does not answer ({str(error).splitlines()[0]}); this replica is replaced") from None
    if answer != 2:
        raise ShardUnavailable(f"the GPU computed 1 + 1 = {answer}; this replica is replaced")


def warm_up(searcher: Searcher) -> None:
    """Search once with every engine of the service, so that shards are on the GPU and kernels are compiled.

    Raises:
        KernelUnavailable: The shards do not fit into the GPU's memory.
    """
    rng = np.random.default_rng(0)
    for num_queries in WARM_UP_QUERIES:
        vectors = [rng.normal(size=(WARM_UP_TOKENS, searcher.manifest.dim)) for _ in range(num_queries)]
        queries = TokenEmbeddings.of([rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in vectors])
        if "queries" in searcher.manifest.contract.weighs:
            queries = replace(queries, weights=np.ones(queries.num_tokens, np.float16))
        for engine in [name for name in SERVED if name in VECTOR_ENGINES] if num_queries == 1 else ["exact"]:
            searcher.search(queries, 1, engine)
