"""ShardServer: one group of an index's shards. Every group scores its own documents; the gateway merges their answers."""

import math
import threading
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from ray_lir.engines import ENGINES
from ray_lir.engines.plan import QueryPlan, TopK, run_stage
from ray_lir.formats.manifest import ShardEntry
from ray_lir.kernels import select
from ray_lir.search import Searcher, open_planner, open_shards, read_version


class ShardServer:
    """Opens shards first_shard to end_shard of an index, and no others.

    Serve runs its methods on threads; as many score at a time as it has CPUs, because each needs memory of its own.
    """

    def __init__(self, root: str, version: int, first_shard: int, end_shard: int, num_cpus: float):
        manifest = read_version(root, version)
        shards = open_shards(root, manifest.shards[first_shard:end_shard])
        self.searcher = Searcher(open_planner(root, manifest), shards, select("auto"))
        self.slots = threading.Semaphore(max(1, math.floor(num_cpus)))

    def run_stage(self, plans: Sequence[QueryPlan], number: int, documents: Sequence[np.ndarray | None]) -> list[TopK]:
        """Stage `number` of the plans' engine over this group's shards.

        Args:
            documents: for each plan the survivors of the stage before, of all groups, ascending; None in the first stage.
        """
        stage = ENGINES[plans[0].params.engine].stages[number]
        keeps = [plan.keeps[number] for plan in plans]
        searcher = self.searcher
        with self.slots:
            return run_stage(stage, plans, keeps, searcher.shards, searcher.planner.codec, searcher.kernels, documents)

    def documents(self, numbers: np.ndarray, fields: Sequence[str]) -> list[dict[str, str]]:
        """doc_id and these fields of some of this group's documents, in the order of their numbers."""
        return [{name: row[name] for name in ("doc_id", *fields)} for row in self.searcher.documents(numbers)]

    def ready(self) -> None:
        """Answers as soon as the shards are open."""


def split_shards(shards: Sequence[ShardEntry], num_groups: int) -> list[range]:
    """Runs of neighbouring shards, about equally many tokens each, at least one shard."""
    ends = np.cumsum([shard.num_tokens for shard in shards])
    bounds = [0]
    for group in range(1, num_groups):
        nearest = int(np.abs(ends - ends[-1] * group / num_groups).argmin()) + 1
        bounds.append(min(max(nearest, bounds[-1] + 1), len(shards) - (num_groups - group)))
    return [range(first, end) for first, end in pairwise([*bounds, len(shards)])]
