"""Stage and Engine: the types that an engine's file fills in.

An engine is a plan and a sequence of stages. A stage scores documents of one shard. The cut after each stage is made over all shards
(`ray_lir/engines/stages.py`), so an answer does not depend on how documents are sharded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.base.config import Config
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

Scored = tuple[np.ndarray, np.ndarray]
"""Scores [N] float32 and document numbers [N] inside the shard."""
Survey = dict[str, np.ndarray]
Allowed = np.ndarray | None
"""Ascending numbers of the documents that a stage may score; None: all."""
StageFunction = Callable[[Sequence[Any], IndexShard, ResidualCodec, Kernels, Sequence[Allowed]], list[Scored]]
"""Scores documents of a shard, for each plan. The first stage of an engine chooses candidates among the allowed documents; a later stage
scores exactly the documents that it receives. A stage may leave out documents that cannot pass the cut: those outside the best
`plan.stage_limits[number]` of its own shard."""


@dataclass(frozen=True)
class Stage:
    """One stage of an engine.

    Attributes:
        name: as explanations print it.
        description: one sentence that says what the stage scores; explanations print it too.
        run: scores documents of one shard.
    """

    name: str
    description: str
    run: StageFunction


@dataclass(frozen=True)
class Engine:
    """A way to find the best documents.

    Attributes:
        params: model of the query-time parameters; None in a field means that the value follows from the index's statistics.
        plan: makes the plan of one query: (query, codec, statistics, params, k, kernels).
        stages: run in this order.
        survey: for an engine that must look at all shards before its first stage: (plan, shard, codec, allowed documents) -> what the
            shard holds.
        settle: (plan, surveys of all shards in document order) -> the plan for the stages.
    """

    params: type[Config]
    plan: Callable[[Query, ResidualCodec, IndexStatistics, Any, int, Kernels], QueryPlan]
    stages: tuple[Stage, ...]
    survey: Callable[[QueryPlan, IndexShard, ResidualCodec, Allowed], Survey] | None = None
    settle: Callable[[QueryPlan, Sequence[Survey]], QueryPlan] | None = None

    @property
    def served(self) -> bool:
        """Whether a service can run the engine: a survey needs all shards in one process."""
        return self.survey is None
