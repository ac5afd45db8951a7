"""Groups of shards: how an index that is spread over processes or machines is divided."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ray_lir.index.manifest import ShardEntry


def split_shards(shards: Sequence[ShardEntry], num_groups: int) -> list[range]:
    """Divide the shards of an index into runs of neighbours with about equally many tokens.

    Args:
        shards: Manifest entries of all shards, in document order.
        num_groups: Number of runs.

    Returns:
        Positions in `shards`, one range a group. Each has at least one shard; with fewer shards than groups the last ranges are empty.
    """
    ends = np.cumsum([shard.num_tokens for shard in shards])
    bounds = [0]
    filled = min(num_groups, len(shards))
    for group in range(1, filled):
        nearest = int(np.abs(ends - ends[-1] * group / filled).argmin()) + 1
        bounds.append(min(max(nearest, bounds[-1] + 1), len(shards) - (filled - group)))
    bounds += [len(shards)] * (num_groups - filled + 1)
    return [range(first, end) for first, end in pairwise(bounds)]
