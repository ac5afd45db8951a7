"""Stage and Engine: the types that every engine's file builds its `ENGINE` from.

An engine is a function that plans a query, and a sequence of stages. A stage scores documents of one shard. `ray_lir/engines/stages.py`
makes the cut after each stage over all shards, so an answer does not depend on how documents are sharded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from ray_lir.engines.cost import Costs, QueryCost
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, TopK
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels

Params = TypeVar("Params", bound=EngineConfig)
Plan = TypeVar("Plan", bound=QueryPlan)
StagePlan = TypeVar("StagePlan", bound=QueryPlan, contravariant=True)

Scored = tuple[np.ndarray, np.ndarray]
"""Scores [N] float32, or [N, columns], and document numbers [N] inside the shard."""
Allowed = np.ndarray | None
"""Document numbers [A] inside the shard that a stage may score, ascending; None for all documents of the shard."""


@dataclass(frozen=True)
class Stage(Generic[StagePlan]):
    """One stage of an engine.

    `run` scores documents of one shard, for P plans of this engine. The first stage selects candidates among the allowed documents. A later
    stage scores exactly the documents that it receives. A stage may leave out documents that cannot pass the cut, which are the documents
    below the best `plan.stage_limits[i]` of the shard, i being the stage's position.

    Args of `run`:
        plans: P plans of this engine.
        shard: The shard to score.
        codec: The codec of the index.
        kernels: The kernels that compute scores.
        documents: One `Allowed` a plan. In the first stage, the documents that the search may return. In a later stage, the survivors of
            the previous stage in this shard, never None.

    Returns of `run`:
        One `Scored` a plan: scores [N] float32, -inf for documents that rank last, and document numbers [N] int64 inside the shard.

    Attributes:
        name: Name of the stage in explanations.
        description: One sentence that says what the stage scores. Explanations print it.
        run: The function described above.
        columns: Names and descriptions of the stage's scores, for a stage that gives a document several: scores [N, columns], -inf for a
            document that a column does not score. The cut keeps the best documents of each column. Empty for one score [N].
        reads_vectors: Whether the stage decodes the vectors of all documents that it receives. They are then prefetched if residuals stay
            on the disk.
        runs: (parameters of a plan) -> whether its engine runs the stage; None for a stage that always runs.
    """

    name: str
    description: str
    run: Callable[[Sequence[StagePlan], IndexShard, ResidualCodec, Kernels, Sequence[Allowed]], list[Scored]]
    columns: tuple[tuple[str, str], ...] = ()
    reads_vectors: bool = False
    runs: Callable[[EngineConfig], bool] | None = None


@dataclass(frozen=True)
class Survey(Generic[Plan]):
    """A pass over all shards before the first stage. An engine with a survey needs all shards in one process.

    Attributes:
        look: (plan, shard, codec, allowed documents) -> the findings of one shard, of any type.
        settle: (plan, findings of all shards in document order) -> the completed plan, which the stages receive.
    """

    look: Callable[[Plan, IndexShard, ResidualCodec, Allowed], Any]
    settle: Callable[[Plan, Sequence[Any]], Plan]


@dataclass(frozen=True)
class Fusion(Generic[Plan]):
    """The last step of an engine with several scores a document: it makes one score of them. It runs once, over all shards.

    Attributes:
        name: Name of the step in explanations.
        description: One sentence that says what the score is. Explanations print it.
        run: (plan, documents kept by each stage) -> the best documents, with `sides`.
    """

    name: str
    description: str
    run: Callable[[Plan, Sequence[TopK]], TopK]


@dataclass(frozen=True)
class Automatic(Generic[Params]):
    """The parameters and the estimated cost by which engine `auto` compares an engine with others.

    Attributes:
        params: (fraction of the default number of candidates) -> the parameters.
        cost: (index statistics, costs of the kernels, number of candidates, k) -> the estimated time of a query. The number of
            candidates is `IndexStatistics.default_candidates` for the same fraction.
    """

    params: Callable[[float], Params]
    cost: Callable[[IndexStatistics, Costs, int, int], QueryCost]


@dataclass(frozen=True)
class Engine(Generic[Params, Plan]):
    """A method to find the best documents.

    `plan` prepares one query, once for all shards. It reads no shard.

    Args of `plan`:
        query: The query of n tokens.
        codec: The codec of the index.
        statistics: Statistics of the index, from which defaults follow.
        params: The parameters of the request.
        k: Documents to return.
        kernels: The kernels that score centroids.

    Returns of `plan`:
        A `QueryPlan`, or a subclass with arrays of the engine's own. `params` has all defaults filled in, and `stage_limits` has one entry
        for each stage that will run.

    Attributes:
        description: One phrase that says which documents are scored exactly. docs/reference.md and ARCHITECTURE.md list it.
        params: Model of the query-time parameters. A field that is None gets a default from the statistics of the index.
        plan: The function described above.
        stages: All stages, in the order in which they run; `stages_of` returns those of a plan.
        survey: The pass over all shards before the first stage; None if the engine needs none.
        automatic: Parameters and cost for engine `auto`; None if `auto` never chooses this engine.
        postings: Whether the stages read the posting lists of shards, which take memory.
        lexical: Whether the engine needs lexical postings and the text of the query.
        fusion: The step after the last stage, for stages with several columns; None for other engines.
    """

    description: str
    params: type[Params]
    plan: Callable[[Query, ResidualCodec, IndexStatistics, Params, int, Kernels], Plan]
    stages: tuple[Stage[Plan], ...]
    survey: Survey[Plan] | None = None
    automatic: Automatic[Params] | None = None
    postings: bool = False
    lexical: bool = False
    fusion: Fusion[Plan] | None = None

    def stages_of(self, params: EngineConfig) -> tuple[Stage[Plan], ...]:
        """Return the stages that can run for the parameters of a plan. The last ones do not run if the plan has fewer limits."""
        kept = [stage for stage in self.stages if stage.runs is None or stage.runs(params)]
        return self.stages if len(kept) == len(self.stages) else tuple(kept)

    @property
    def served(self) -> bool:
        """Whether a service offers the engine. A survey needs all shards in one process, and a service spreads them over several."""
        return self.survey is None
