"""Scatter: sends one request's calls to the shard groups, leaves out groups that fail, and merges the answers of the others."""

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_lir.base.errors import FormatError, ShardUnavailable
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.engines.registry import stages_of
from ray_lir.engines.stages import StageCall, StageLoop
from ray_lir.index.filters import Filters, unknown_field_warnings
from ray_lir.kernels import Kernels
from ray_lir.search.explain import TokenMatches
from ray_lir.search.searcher import common_unknown_fields

from .request_context import RequestContext
from .workers.shard_server import GroupAnswer


@dataclass(frozen=True)
class Found:
    """The results of a search over all groups that answered.

    Attributes:
        kept: For each stage and plan, the best documents over these groups.
        documents: Fields of the last stage's documents, by document number.
        stage_seconds: Time of each stage.
        document_seconds: Time of fetching the fields.
        coverage: Fraction of the live documents that were searched.
        missing: Names of the groups that were left out, each with the reason.
    """

    kept: list[list[TopK]]
    documents: dict[int, dict[str, Any]]
    stage_seconds: list[float]
    document_seconds: float
    coverage: float
    missing: dict[str, str]


MAX_AHEAD = 8
"""Largest number of plans for which groups run later stages without being asked. With few plans, a second message costs more than
scores that turn out to be unnecessary."""
AHEAD_FACTOR, AHEAD_MORE = 1.5, 8
"""A group runs later stages for AHEAD_FACTOR * (documents that the stage keeps / groups) + AHEAD_MORE of its documents. If more of its
documents are kept, the gateway asks for the rest."""
MAX_SENT = 100
"""Largest number of documents for which groups send fields with their answers. For more, the fields are fetched at the end."""


class GroupLost(Exception):
    """A group did not answer and is left out from now on."""


class Scatter:
    """Calls the shard groups for one request. A group that fails or is late is left out for the rest of the request.

    The result always equals the result of the remaining groups alone. If a group is lost after its documents displaced others at a cut,
    that cut and the later stages run again without it.

    Args:
        context: The request's version, deadline and transport.
        kernels: Merge the results of the groups.
        min_coverage: Fraction of the documents below which ShardUnavailable is raised. While it allows a loss, each step may take an
            equal part of the remaining time. Otherwise giving up early has no benefit, and each step may take all of it.
        filters: Conditions on the documents, which every group evaluates on its own documents; None for all documents.
    """

    def __init__(self, context: RequestContext, kernels: Kernels, min_coverage: float = 1.0, filters: Filters | None = None):
        self.context = context
        self.groups = {group.name: group for group in context.snapshot.groups}
        self.num_docs = sum(group.num_live for group in context.snapshot.groups)
        self.min_coverage = min_coverage
        self.kernels = kernels
        self.filters = filters
        self.missing: dict[str, str] = {}
        self._answers: dict[str, GroupAnswer] = {}

    @property
    def coverage(self) -> float:
        return sum(group.num_live for group in self.groups.values()) / self.num_docs if self.num_docs else 1.0

    @property
    def warnings(self) -> list[str]:
        """Return one line for each field in the filters that no document has, which is probably a mistake."""
        return unknown_field_warnings(common_unknown_fields([self._answers[name].unknown_fields for name in self.groups]))

    async def find(self, plans: list[QueryPlan], fields: Sequence[str]) -> Found:
        """Return the best documents of each plan, with their fields.

        Raises:
            ShardUnavailable: Fewer documents than `min_coverage` could be searched.
        """
        while True:
            try:
                await self._search(plans, fields)
                kept, seconds = await self._stages(plans)
                start = time.perf_counter()
                documents = await self._documents(kept[-1], fields)
                return Found(kept, documents, seconds, time.perf_counter() - start, self.coverage, self.missing)
            except GroupLost:
                continue

    async def matches(self, plans: list[QueryPlan], answers: Sequence[TopK]) -> list[dict[int, TokenMatches]]:
        """Return for each plan the matches of its query tokens, by document. Raises ShardUnavailable if a group does not answer."""
        numbers = [np.sort(answer.documents) for answer in answers]
        calls = {}
        for name, group in self.groups.items():
            owned = [group.own(each) for each in numbers]
            if any(len(each) for each in owned):
                calls[name] = ("matches", plans, owned)
        replies = await asyncio.gather(*(self.context.call(name, *call) for name, call in calls.items()))
        return [{number: match for part in replies for number, match in part[position].items()} for position in range(len(plans))]

    async def _search(self, plans: list[QueryPlan], fields: Sequence[str]) -> None:
        """Ask each group for its own results, once: they stay valid when another group is lost."""
        ahead = _ahead(plans, len(self.groups))
        sent = fields if len(ahead) + 1 == len(plans[0].stage_limits) and sum(plan.stage_limits[-1] for plan in plans) <= MAX_SENT else None
        calls = {name: ("search", plans, self.filters, ahead, sent) for name in self.groups if name not in self._answers}
        await self._ask(calls, len(plans[0].stage_limits) - len(ahead) + 1, self._answers)

    async def _stages(self, plans: list[QueryPlan]) -> tuple[list[list[TopK]], list[float]]:
        """Return the documents that each stage keeps over all groups, and the seconds of each stage.

        The groups have run the first stage, and the later stages for their own best documents. Missing scores are requested.
        """
        found = [self._answers[name] for name in self.groups]
        loop = StageLoop(plans, [None] * len(plans))
        slowest = []
        for call in loop:
            ran = [answer for answer in found if call.number < len(answer.stages)]
            parts = [[answer.stages[call.number][plan] for answer in ran] for plan in range(len(plans))]
            loop.cut(await self._completed(plans, call, parts) if call.number else parts, self.kernels)
            slowest.append(max((answer.seconds[call.number] for answer in ran), default=0.0))
        return loop.kept, [sum(seconds) for seconds in zip(slowest, loop.seconds, strict=True)]

    async def _completed(self, plans: list[QueryPlan], call: StageCall, parts: list[list[TopK]]) -> list[list[TopK]]:
        """Return the scores of each plan's documents in a later stage: known scores, and scores that are requested from the groups."""
        number, survivors = call.number, [each for each in call.documents if each is not None]
        known = [_among(each, documents) for each, documents in zip(parts, survivors, strict=True)]
        if all(len(top.documents) == len(documents) for top, documents in zip(known, survivors, strict=True)):
            return [[top] for top in known]
        unknown = [np.setdiff1d(documents, top.documents) for top, documents in zip(known, survivors, strict=True)]
        calls = {}
        for name, group in self.groups.items():
            owned = [group.own(each) for each in unknown]
            if any(len(each) for each in owned):
                calls[name] = ("run_stage", plans, number, owned)
        answers = await self._ask(calls, len(plans[0].stage_limits) - number + 1, {})
        return [[top, *(answer[plan] for answer in answers.values())] for plan, top in enumerate(known)]

    async def _documents(self, answers: Sequence[TopK], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        numbers = np.unique(np.concatenate([answer.documents for answer in answers]))
        sent = {number: row for name in self.groups for number, row in self._answers[name].documents.items()}
        lacking = np.array([number for number in numbers.tolist() if number not in sent], np.int64)
        owned = {name: part for name, group in self.groups.items() if len(part := group.own(lacking))}
        rows = await self._ask({name: ("documents", part, fields) for name, part in owned.items()}, 1, {})
        sent |= {number: row for name, part in owned.items() for number, row in zip(part.tolist(), rows[name], strict=True)}
        return {number: sent[number] for number in numbers.tolist()}

    async def _ask(self, calls: dict[str, tuple[Any, ...]], steps: int, answers: dict[str, Any]) -> dict[str, Any]:
        """Call some groups and add their answers to `answers`.

        Args:
            calls: Method and arguments for each group.
            steps: Number of remaining steps, this one included, among which the remaining time is divided.
            answers: Answers by group name.

        Raises:
            GroupLost: A group failed and is left out from now on; the other groups cover enough documents.
            ShardUnavailable: The other groups cover too few documents.
        """
        if not calls:
            return answers
        now = asyncio.get_running_loop().time()
        until = self.context.deadline if self.min_coverage >= 1 else now + (self.context.deadline - now) / steps
        context = replace(self.context, deadline=until)
        replies = await asyncio.gather(*(context.call(name, *call) for name, call in calls.items()), return_exceptions=True)
        lost = {}
        for name, answer in zip(calls, replies, strict=True):
            if isinstance(answer, (ShardUnavailable, FormatError)):
                lost[name] = str(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers[name] = answer
        if lost:
            self._leave_out(lost)
            raise GroupLost
        return answers

    def _leave_out(self, lost: dict[str, str]) -> None:
        self.missing |= lost
        self.groups = {name: group for name, group in self.groups.items() if name not in lost}
        if not self.groups or self.coverage < self.min_coverage:
            reasons = "; ".join(self.missing.values())
            raise ShardUnavailable(f"{self.coverage:.0%} of the documents could be searched, less than min_coverage: {reasons}")


def _ahead(plans: list[QueryPlan], num_groups: int) -> list[int]:
    """Return for each later stage how many of its own best documents a group scores without being asked."""
    if num_groups > 1 and len(plans) > MAX_AHEAD:
        return []
    stages = stages_of(plans)
    limits = [
        (len(stages[number].columns) or 1) * max(plan.stage_limits[number] for plan in plans)
        for number in range(len(plans[0].stage_limits) - 1)
    ]
    return [keep if num_groups == 1 else min(keep, math.ceil(AHEAD_FACTOR * keep / num_groups) + AHEAD_MORE) for keep in limits]


def _among(parts: Sequence[TopK], numbers: np.ndarray) -> TopK:
    """Return the scores in `parts` of some documents. They are few, so a Python set takes a tenth of the time of NumPy."""
    known = set(numbers.tolist())
    kept = [[place for place, number in enumerate(part.documents.tolist()) if number in known] for part in parts]
    if not parts:
        return TopK(np.zeros(0, np.float32), np.zeros(0, np.int64))
    scores = np.concatenate([part.scores[places] for part, places in zip(parts, kept, strict=True)])
    documents = np.concatenate([part.documents[places] for part, places in zip(parts, kept, strict=True)])
    return TopK(scores, documents)
