"""Stage and Engine: the types that an engine's file fills in.

An engine is a plan and a sequence of stages. A stage scores documents of one shard. The cut after each stage is made over all shards
(`ray_lir/engines/stages.py`), so an answer does not depend on how documents are sharded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ray_lir.base.config import Config
from ray_lir.engines.cost import Costs, QueryCost
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

Params = TypeVar("Params", bound=Config)
Plan = TypeVar("Plan", bound=QueryPlan)
StagePlan = TypeVar("StagePlan", bound=QueryPlan, contravariant=True)

Scored = tuple[np.ndarray, np.ndarray]
"""Scores [N] float32 and document numbers [N] inside the shard."""
Allowed = np.ndarray | None
"""Ascending numbers of the documents that a stage may score; None: all."""


@dataclass(frozen=True)
class Stage(Generic[StagePlan]):
    """One stage of an engine.

    Attributes:
        name: as explanations print it.
        description: one sentence that says what the stage scores; explanations print it too.
        run: (plans, shard, codec, kernels, allowed documents of each plan) -> scored documents of each plan. The first stage of an engine
            chooses candidates among the allowed documents; a later stage scores exactly the documents that it receives. A stage may leave
            out documents that cannot pass the cut: those outside the best `plan.stage_limits[number]` of its own shard.
    """

    name: str
    description: str
    run: Callable[[Sequence[StagePlan], IndexShard, ResidualCodec, Kernels, Sequence[Allowed]], list[Scored]]


@dataclass(frozen=True)
class Survey(Generic[Plan]):
    """What an engine must know of all shards before its first stage. All shards must then be in one process.

    Attributes:
        look: (plan, shard, codec, allowed documents) -> what the shard holds.
        settle: (plan, what all shards hold in document order) -> the plan for the stages.
    """

    look: Callable[[Plan, IndexShard, ResidualCodec, Allowed], Any]
    settle: Callable[[Plan, Sequence[Any]], Plan]


@dataclass(frozen=True)
class Automatic(Generic[Params]):
    """How engine `auto` considers an engine.

    Attributes:
        params: fraction of the default number of candidates -> the parameters.
        cost: (index statistics, costs of the kernels, default number of candidates for the fraction) -> estimated time of a query.
    """

    params: Callable[[float], Params]
    cost: Callable[[IndexStatistics, Costs, int], QueryCost]


@dataclass(frozen=True)
class Engine(Generic[Params, Plan]):
    """A way to find the best documents.

    Attributes:
        description: one sentence on what the engine leaves out; documents list the engines with it.
        params: model of its query-time parameters. A field that is None follows from the index's statistics.
        plan: (query, codec, statistics, params, k, kernels) -> the plan of one query.
        stages: run in this order.
        survey: None if the stages need no look at all shards.
        automatic: None if `auto` never chooses the engine.
        postings: whether stages use the posting lists of shards, which take memory.
    """

    description: str
    params: type[Params]
    plan: Callable[[Query, ResidualCodec, IndexStatistics, Params, int, Kernels], Plan]
    stages: tuple[Stage[Plan], ...]
    survey: Survey[Plan] | None = None
    automatic: Automatic[Params] | None = None
    postings: bool = False

    @property
    def served(self) -> bool:
        """Whether a service can run the engine: its groups of shards are in different processes."""
        return self.survey is None
