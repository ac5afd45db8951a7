"""The executor: the one loop over an engine's stages, for shards in this process and for groups of shards elsewhere.

`StageLoop` decides which documents each stage scores, and makes the cut. It does not know where the shards are. Its driver scores a
`StageCall` on every part of the index and returns the parts to the loop. `run_stages` is the driver for shards in this process. The gateway
(serving/scatter.py) and bulk search are drivers for groups of shards. All drivers therefore make the same cuts.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ray_lir.base.paging import prefetch, release
from ray_lir.base.short_repr import ShortRepr
from ray_lir.engines.engine import Allowed, Stage
from ray_lir.engines.plan import QueryPlan, TopK, merge
from ray_lir.engines.registry import engine_of, stages_of
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels


@dataclass(frozen=True, eq=False, repr=False)
class StageCall(ShortRepr):
    """The input of one stage for several plans. It applies to any part of the index.

    Attributes:
        plans: P plans of one engine.
        number: Position of the stage, from 0.
        documents: [P] ascending document numbers of the index. In stage 0, the allowed documents; None for all live documents. In later
            stages, the survivors of the previous stage.
        limits: [P] number of documents that the stage keeps.
    """

    plans: Sequence[QueryPlan]
    number: int
    documents: Sequence[Allowed]
    limits: Sequence[int]

    @property
    def stage(self) -> Stage[Any]:
        """Return the stage."""
        return stages_of(self.plans)[self.number]


class StageLoop:
    """Runs the stages of several plans. Iterate over the calls, and pass the scores of each call to `cut` before the next call:

        for call in loop:
            loop.cut(score(call, shards, codec, kernels), kernels)

    Args:
        plans: P plans of one engine, completed by `settle` if the engine has a survey.
        documents: [P] ascending numbers of the allowed documents; None for all live documents.
        ahead: None for a search over the whole index. For a search over one of several groups: how many of the group's own best documents
            each later stage scores. These stages keep all documents that they score, because the cut is made over all groups.

    Attributes:
        kept: The best documents, for each stage that has run and each plan. If the engine has a fusion, its result is the last entry,
            except in a search over one of several groups.
        seconds: Wall-clock time of each stage, including the cut.
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
        fusion = engine_of(self.plans).fusion
        if fusion and self.ahead is None:
            start = time.perf_counter()
            stages = zip(*self.kept, strict=True)
            self.kept.append([fusion.run(plan, each) for plan, each in zip(self.plans, stages, strict=True)])
            self.seconds[-1] += time.perf_counter() - start

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
            parts: For each plan, the scores from every part of the index. The parts hold different documents.
            kernels: The kernels that select the top documents.
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
    """Run all stages of several plans over shards in this process.

    Args:
        plans: P plans of one engine, as the planner returned them.
        shards: The shards, in document order.
        codec: The codec of the index.
        kernels: The kernels that score documents and select the top documents.
        documents: [P] ascending numbers of the allowed documents; None for all live documents.
        ahead: See `StageLoop`.

    Returns:
        The finished loop. Its `plans` are completed by the survey, if there is one, and `kept[-1]` has the answers.
    """
    loop = StageLoop(settle(plans, shards, codec, documents), documents, ahead)
    for call in loop:
        loop.cut(score(call, shards, codec, kernels), kernels)
    return loop


def run_stage(call: StageCall, shards: Sequence[IndexShard], codec: ResidualCodec, kernels: Kernels) -> list[TopK]:
    """Run one stage over shards in this process.

    Args:
        call: The input of the stage.
        shards: The shards, in document order.
        codec: The codec of the index.
        kernels: The kernels that score documents and select the top documents.

    Returns:
        For each plan the best documents of these shards, at most the limit of the call.
    """
    parts = score(call, shards, codec, kernels)
    return [merge(each, limit, kernels) for each, limit in zip(parts, call.limits, strict=True)]


def score(call: StageCall, shards: Sequence[IndexShard], codec: ResidualCodec, kernels: Kernels) -> list[list[TopK]]:
    """Run one stage on each shard, without a cut.

    Args:
        call: The input of the stage.
        shards: The shards, in document order.
        codec: The codec of the index.
        kernels: The kernels that score documents.

    Returns:
        For each plan one part a shard, with document numbers of the index.
    """
    stage = call.stage
    parts: list[list[TopK]] = [[] for _ in call.plans]
    inside = [[_in_shard(documents, shard) for documents in call.documents] for shard in shards]
    pages = [_prefetched(shard, allowed) for shard, allowed in zip(shards, inside, strict=True)] if stage.reads_vectors else ()
    for shard, allowed in zip(shards, inside, strict=True):
        for part, (scores, numbers) in zip(parts, stage.run(call.plans, shard, codec, kernels, allowed), strict=True):
            part.append(TopK(scores, numbers + shard.first_document))
    for each in pages:
        release(each)
    return parts


def _prefetched(shard: IndexShard, allowed: Sequence[Allowed]) -> np.ndarray:
    """Start to read the vectors of a shard's documents from the disk; nothing for half of the shard or more, which is read as a whole.

    Returns:
        The ranges of pages, [m, 2] uint64. Few of them are read again soon, so they are the first to free.
    """
    if not shard.on_disk or any(numbers is None or 2 * len(numbers) >= shard.num_docs for numbers in allowed):
        return np.zeros((0, 2), np.uint64)
    pages = shard.vector_pages(np.unique(np.concatenate([numbers for numbers in allowed if numbers is not None])))
    prefetch(pages)
    return pages


def settle(
    plans: Sequence[QueryPlan], shards: Sequence[IndexShard], codec: ResidualCodec, documents: Sequence[Allowed]
) -> Sequence[QueryPlan]:
    """Complete plans by the engine's survey of all shards.

    Args:
        plans: P plans of one engine, as the planner returned them.
        shards: All shards of the index, in document order.
        codec: The codec of the index.
        documents: [P] ascending numbers of the allowed documents; None for all live documents.

    Returns:
        P completed plans; the same plans if the engine has no survey.
    """
    survey = engine_of(plans).survey
    if survey is None:
        return plans
    return [
        survey.settle(plan, [survey.look(plan, shard, codec, _in_shard(allowed, shard)) for shard in shards])
        for plan, allowed in zip(plans, documents, strict=True)
    ]


def _in_shard(documents: Allowed, shard: IndexShard) -> Allowed:
    """The allowed documents of a shard, by their numbers inside it; for None the live documents of the shard."""
    if documents is None:
        return shard.live
    first, end = np.searchsorted(documents, (shard.first_document, shard.first_document + shard.num_docs))
    return documents[first:end] - shard.first_document
