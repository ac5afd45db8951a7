"""Scatter: one request's calls to the shard groups, which of them answered, and the answer of those alone."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ray_lir.engines.plan import QueryPlan, TopK, merge
from ray_lir.errors import FormatError, ShardUnavailable
from ray_lir.explain import TokenMatches
from ray_lir.kernels import Kernels

from .turn import Turn


@dataclass(frozen=True)
class Found:
    """Answers to some plans.

    Attributes:
        kept: for each stage and plan the best documents over all groups that answered.
        documents: fields of the last stage's documents, by number.
        stage_seconds: of each stage; document_seconds: of fetching the fields.
        coverage: the share of the documents that were searched.
        missing: groups that were left out, and why.
    """

    kept: list[list[TopK]]
    documents: dict[int, dict[str, Any]]
    stage_seconds: list[float]
    document_seconds: float
    coverage: float
    missing: dict[str, str]


class GroupLost(Exception):
    """A group did not answer and is left out from now on."""


class Scatter:
    """Asks the groups that still take part; a group that fails or is late is left out for the rest of the request.

    What is answered is always what the remaining groups alone would answer: if one is lost after its documents have
    displaced others' at a cut, the cut is made again without it and the later stages run again.

    Args:
        min_coverage: the share of documents below which ShardUnavailable is raised. While it allows for a loss, no step
            may take more than its share of the time that is left; otherwise giving up early would gain nothing.
    """

    def __init__(self, turn: Turn, kernels: Kernels, min_coverage: float = 1.0):
        self.turn = turn
        self.groups = {group.name: group for group in turn.snapshot.groups}
        self.num_docs = sum(group.num_docs for group in turn.snapshot.groups)
        self.min_coverage = min_coverage
        self.kernels = kernels
        self.missing: dict[str, str] = {}
        self._first: dict[str, list[TopK]] = {}

    @property
    def coverage(self) -> float:
        return sum(group.num_docs for group in self.groups.values()) / self.num_docs

    async def find(self, plans: list[QueryPlan], fields: Sequence[str]) -> Found:
        """The best documents of each plan, with their fields.

        Raises:
            ShardUnavailable: if fewer documents than min_coverage could be searched.
        """
        while True:
            try:
                kept, seconds = await self._stages(plans)
                start = time.perf_counter()
                documents = await self._documents(kept[-1], fields)
                return Found(kept, documents, seconds, time.perf_counter() - start, self.coverage, self.missing)
            except GroupLost:
                continue

    async def matches(self, plans: list[QueryPlan], answers: Sequence[TopK]) -> list[dict[int, TokenMatches]]:
        """For each plan what its query tokens matched in its documents. Raises ShardUnavailable if a group does not answer."""
        numbers = [np.sort(answer.documents) for answer in answers]
        calls = {}
        for name, group in self.groups.items():
            mine = [group.own(each) for each in numbers]
            if any(len(each) for each in mine):
                calls[name] = ("matches", plans, mine)
        asked = await asyncio.gather(*(self.turn.ask(name, *call) for name, call in calls.items()))
        return [{number: match for part in asked for number, match in part[position].items()} for position in range(len(plans))]

    async def _stages(self, plans: list[QueryPlan]) -> tuple[list[list[TopK]], list[float]]:
        num_stages = len(plans[0].keeps)
        kept: list[list[TopK]] = []
        seconds = []
        for number in range(num_stages):
            start = time.perf_counter()
            steps = num_stages - number + 1
            parts = await (self._later_stage(plans, number, kept[-1], steps) if number else self._first_stage(plans, steps))
            kept.append([merge(answers, plan.keeps[number], self.kernels) for plan, *answers in zip(plans, *parts, strict=True)])
            seconds.append(time.perf_counter() - start)
        return kept, seconds

    async def _first_stage(self, plans: list[QueryPlan], steps: int) -> list[list[TopK]]:
        """What it found stays true when a group is lost, so no group is asked twice."""
        everything: list[None] = [None] * len(plans)
        calls = {name: ("run_stage", plans, 0, everything) for name in self.groups if name not in self._first}
        await self._ask(calls, steps, self._first)
        return [self._first[name] for name in self.groups]

    async def _later_stage(self, plans: list[QueryPlan], number: int, before: Sequence[TopK], steps: int) -> list[list[TopK]]:
        survivors = [np.sort(answer.documents) for answer in before]
        calls = {name: ("run_stage", plans, number, [group.own(each) for each in survivors]) for name, group in self.groups.items()}
        answers = await self._ask(calls, steps, {})
        return [answers[name] for name in self.groups]

    async def _documents(self, answers: Sequence[TopK], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        numbers = np.unique(np.concatenate([answer.documents for answer in answers]))
        shares = {name: mine for name, group in self.groups.items() if len(mine := group.own(numbers))}
        calls = {name: ("documents", mine, fields) for name, mine in shares.items()}
        rows = await self._ask(calls, 1, {})
        return {number: row for name, mine in shares.items() for number, row in zip(mine.tolist(), rows[name], strict=True)}

    async def _ask(self, calls: dict[str, tuple[Any, ...]], steps: int, answers: dict[str, Any]) -> dict[str, Any]:
        """Adds each group's answer to `answers`; `steps` is how many steps, this one included, share the time that is left.

        Raises:
            GroupLost: if a group is left out from now on, and the others are still enough.
            ShardUnavailable: if they are not.
        """
        now = asyncio.get_running_loop().time()
        until = self.turn.deadline if self.min_coverage >= 1 else now + (self.turn.deadline - now) / steps
        turn = replace(self.turn, deadline=until)
        asked = await asyncio.gather(*(turn.ask(name, *call) for name, call in calls.items()), return_exceptions=True)
        lost = {}
        for name, answer in zip(calls, asked, strict=True):
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
