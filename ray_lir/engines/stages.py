"""The executor: the one loop over an engine's stages, for shards in this process and for groups of shards elsewhere.

`StageLoop` decides what each stage scores and makes the cut. It does not know where the shards are: its driver scores a `StageCall` on
every part of the index and hands the parts back. `run_stages` is the driver for shards in this process. The gateway (serving/scatter.py)
and bulk search are drivers for groups of shards. So a search over the whole index and a search over groups make the same cuts.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.base.short_repr import ShortRepr
from ray_lir.engines.engine import Allowed, Stage
from ray_lir.engines.plan import QueryPlan, TopK, merge
from ray_lir.engines.registry import engine_of
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


@dataclass(frozen=True, eq=False, repr=False)
class StageCall(ShortRepr):
    """What one stage scores for some plans, on any part of the index.

    Attributes:
        plans: P plans of one engine.
        number: of the stage, from 0.
        documents: [P] document numbers of the index, ascending. In stage 0 the documents that may be found, None for all that are not
            deleted; later the survivors of the stage before.
        limits: [P] how many documents the stage keeps.
    """

    plans: Sequence[QueryPlan]
    number: int
    documents: Sequence[Allowed]
    limits: Sequence[int]

    @property
    def stage(self) -> Stage[Any]:
        """Return the stage."""
        return engine_of(self.plans).stages[self.number]


class StageLoop:
    """Runs the stages of some plans: iterate over the calls, and hand the scores of each call to `cut` before the next.

        for call in loop:
            loop.cut(score(call, shards, codec, kernels), kernels)

    Args:
        plans: P plans of one engine, settled if the engine needs a survey (`settle`).
        documents: [P] ascending numbers of the documents that may be found; None for all that are not deleted.
        ahead: None for a search over the whole index. For one of several groups: how many of the group's own best documents go on to each
            later stage. Those stages keep all that they score, because the cut is made over all groups.

    Attributes:
        kept: for each stage that has run, and each plan, the best documents.
        seconds: wall-clock time of each stage, cut included.
    """

    def __init__(self, plans: Sequence[QueryPlan], documents: Sequence[Allowed], ahead: Sequence[int] | None = None):
        self.plans = plans
        self.documents = documents
        self.ahead = ahead
        self.num_stages = len(plans[0].stage_limits) if ahead is None else 1 + len(ahead)
        self.kept: list[list[TopK]] = []
        self.seconds: list[float] = []
        self._limits: Sequence[int] = ()
        self._start = 0.0

    def __iter__(self) -> Iterator[StageCall]:
        """Yield the call of each stage."""
        for number in range(self.num_stages):
            self._start = time.perf_counter()
            call = self._call(number)
            self._limits = call.limits
            yield call

    def _call(self, number: int) -> StageCall:
        limits = [plan.stage_limits[number] for plan in self.plans]
        if number == 0:
            return StageCall(self.plans, number, self.documents, limits)
        if self.ahead is None:
            return StageCall(self.plans, number, [np.sort(best.documents) for best in self.kept[-1]], limits)
        survivors = [np.sort(best.documents[: self.ahead[number - 1]]) for best in self.kept[-1]]
        return StageCall(self.plans, number, survivors, [len(documents) for documents in survivors])

    def cut(self, parts: Sequence[Sequence[TopK]], kernels: Kernels) -> None:
        """Keep the best documents of the stage that ran last.

        Args:
            parts: for each plan the scores of every part of the index, about different documents.
            kernels: choose the best.
        """
        self.kept.append([merge(each, limit, kernels) for each, limit in zip(parts, self._limits, strict=True)])
        self.seconds.append(time.perf_counter() - self._start)


def run_stages(
    plans: Sequence[QueryPlan],
    shards: Sequence[IndexShard],
    codec: ResidualCodec,
    kernels: Kernels,
    documents: Sequence[Allowed],
    ahead: Sequence[int] | None = None,
) -> StageLoop:
    """Run all stages of some plans over shards in this process.

    Args:
        plans: P plans of one engine, as the planner made them.
        shards: in document order.
        codec: of the index.
        kernels: score documents and choose the best.
        documents: [P] ascending numbers of the documents that may be found; None for all that are not deleted.
        ahead: as for `StageLoop`.

    Returns:
        The finished loop: its `plans` are settled, and `kept[-1]` are the answers.
    """
    loop = StageLoop(settle(plans, shards, codec, documents), documents, ahead)
    for call in loop:
        loop.cut(score(call, shards, codec, kernels), kernels)
    return loop


def run_stage(call: StageCall, shards: Sequence[IndexShard], codec: ResidualCodec, kernels: Kernels) -> list[TopK]:
    """Run one stage over shards in this process.

    Args:
        call: what to score.
        shards: in document order.
        codec: of the index.
        kernels: score documents and choose the best.

    Returns:
        For each plan the best documents of these shards, at most the call's limit.
    """
    parts = score(call, shards, codec, kernels)
    return [merge(each, limit, kernels) for each, limit in zip(parts, call.limits, strict=True)]


def score(call: StageCall, shards: Sequence[IndexShard], codec: ResidualCodec, kernels: Kernels) -> list[list[TopK]]:
    """Score a call on each shard.

    Args:
        call: what to score.
        shards: in document order.
        codec: of the index.
        kernels: score documents.

    Returns:
        For each plan one part a shard, with document numbers of the index.
    """
    parts: list[list[TopK]] = [[] for _ in call.plans]
    for shard in shards:
        allowed = [_in_shard(documents, shard) for documents in call.documents]
        for part, (scores, numbers) in zip(parts, call.stage.run(call.plans, shard, codec, kernels, allowed), strict=True):
            part.append(TopK(scores, numbers + shard.first_document))
    return parts


def settle(
    plans: Sequence[QueryPlan], shards: Sequence[IndexShard], codec: ResidualCodec, documents: Sequence[Allowed]
) -> Sequence[QueryPlan]:
    """Return the plans completed by a survey of all shards, for an engine that needs one; the same plans for any other engine.

    Args:
        plans: P plans of one engine, as the planner made them.
        shards: all shards of the index, in document order.
        codec: of the index.
        documents: [P] as for `StageLoop`.
    """
    survey = engine_of(plans).survey
    if survey is None:
        return plans
    return [
        survey.settle(plan, [survey.look(plan, shard, codec, _in_shard(allowed, shard)) for shard in shards])
        for plan, allowed in zip(plans, documents, strict=True)
    ]


def _in_shard(documents: Allowed, shard: IndexShard) -> Allowed:
    """The documents that a shard holds, by their numbers in it; for None those that are not deleted."""
    if documents is None:
        return shard.live
    first, end = np.searchsorted(documents, (shard.first_document, shard.first_document + shard.num_docs))
    return documents[first:end] - shard.first_document
