"""ShardServer: one group of an index's shards. Every group scores its own documents; the gateway merges their answers."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import numpy as np

from ray_lir import storage
from ray_lir.base.errors import ShardUnavailable
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.engines.registry import stages_of
from ray_lir.engines.stages import StageCall, StageLoop, run_stage, run_stages
from ray_lir.index.filters import Filters
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.metadata_fields import SampledFields
from ray_lir.index.shard import IndexShard
from ray_lir.index.shard_groups import split_shards
from ray_lir.index.versions import existing_version, read_version
from ray_lir.kernels import select
from ray_lir.search.explain import StageScores, TokenMatches, kept_out, match_tokens, shard_of, stage_scores
from ray_lir.search.searcher import Planner, Searcher, matching, open_planner, open_shards, unknown_fields
from ray_lir.storage.local_copy import local_copy, remove_other_copies
from ray_lir.storage.manifest import files_of

from .batching import Batcher
from .gpu import GpuShare, check_device, warm_up
from .replica import Replica
from .versions import Served, Versions

STUCK_AFTER_S = 120.0
"""A call that computes longer than this makes the replica unhealthy, and Ray Serve starts another."""

SHORT_S = 0.01
"""Calls whose kind took at most this long the last time run in the event loop, because a thread would add a tenth to their time."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class GroupAnswer:
    """The result of a group's search over its own documents.

    Attributes:
        stages: The best documents of each stage that ran, for each plan, best first.
        seconds: Time of each stage.
        documents: Fields of the last stage's best documents, by document number.
        unknown_fields: Fields of the filters that no document of the group has, each with the field names that documents do have.
    """

    stages: list[list[TopK]]
    seconds: list[float]
    documents: dict[int, dict[str, Any]]
    unknown_fields: dict[str, frozenset[str]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class SearchCall:
    """One call of `ShardServer.search`; its arguments are the attributes."""

    served: Served
    plans: Sequence[QueryPlan]
    filters: Filters | None
    ahead: tuple[int, ...]
    fields: Sequence[str] | None

    @property
    def kind(self) -> Hashable:
        """Return the key of calls that one pass over the shards can answer: equal version, engine and stages."""
        first = self.plans[0]
        stages = tuple(stage.name for stage in stages_of(self.plans)[: len(first.stage_limits)])
        return self.served.answering, first.params.engine, stages, self.ahead, first.scorer_terms is None


class ShardServer(Replica[Searcher]):
    """Runs searches over the shards of one group, in each version of the index that requests need.

    The number of calls that compute at the same time is the number of CPUs, because each call needs its own memory. Other calls wait. A
    call that is cancelled while it waits never starts.

    Args:
        root: Folder or URL of the index.
        version: Version of the index to serve first.
        group: Number of the group.
        num_groups: Number of groups.
        num_cpus: CPUs of the replica, which compute one call each.
        verify: Read every file and compare its digest when a version is opened.
        cache: Folder for copies of the shards if the index is on an object store.
        kernels: Name of the kernels that score.
        gpu: The part of a GPU that Ray reserved, for `cuda` kernels. Concurrent searches are then merged into one pass over the shards, up
            to `queries_together` queries of the kernels. None: the group searches on the CPU.
        pool: Threads that it shares with other groups of its process. None: threads of its own.
        residency: auto, memory or disk (ray_lir/index/residency.py).

    Raises:
        FormatError: A file is missing, truncated or (with verify) altered.
        ConfigError: The group does not fit into its part of the GPU.
        KernelUnavailable: There is no GPU.
    """

    def __init__(
        self,
        root: str,
        version: int,
        group: int,
        num_groups: int,
        num_cpus: float,
        verify: bool,
        cache: str | None,
        kernels: str = "auto",
        gpu: GpuShare | None = None,
        residency: str = "auto",
        pool: ThreadPoolExecutor | None = None,
    ):
        super().__init__()
        self.residency = residency
        self.root = root
        self.group = group
        self.num_groups = num_groups
        self.verify = verify
        self.cache = cache
        self.gpu = gpu
        self.kernels = select(kernels)
        self.merged: Batcher[SearchCall, GroupAnswer] = Batcher(
            lambda calls: self._timed(None, _search_together, self.versions, calls),
            lambda call: len(call.plans),
            self.kernels.queries_together,
        )
        self.pool = pool or ThreadPoolExecutor(max(1, math.floor(num_cpus)))
        self.began: dict[int, float] = {}
        self.calls = 0
        self.seconds: dict[Hashable, float] = {}
        self.opened: WeakValueDictionary[str, IndexShard] = WeakValueDictionary()
        version = existing_version(root, version)
        self.versions = Versions(self._open, version)
        self.versions.open(version)

    async def search(
        self, served: Served, plans: Sequence[QueryPlan], filters: Filters | None, ahead: Sequence[int], fields: Sequence[str] | None
    ) -> GroupAnswer:
        """Run the first stage of the plans' engine over this group's shards, and later stages for the group's own best documents.

        The gateway needs the later scores of most of these documents once it knows the best documents of all groups.

        Args:
            served: Versions that the request carries.
            plans: One plan for each query, all of the same engine.
            filters: Conditions on the documents; None for all documents.
            ahead: For each later stage, how many of this group's best documents enter it; empty to run only the first stage.
            fields: Fields to return of the last stage's best documents; None for no documents.
        """
        kind = (plans[0].params.engine, len(plans)) if filters is None else None  # the time of filters depends on their conditions
        call = SearchCall(served, plans, filters, tuple(ahead), fields)
        if self.gpu:
            return await self.merged(call)
        return await self._compute(_search, self.versions, call, kind=kind)

    async def run_stage(self, served: Served, plans: Sequence[QueryPlan], number: int, documents: Sequence[np.ndarray]) -> list[TopK]:
        """Run one later stage of the plans' engine for some of this group's documents.

        Args:
            served: Versions that the request carries.
            plans: One plan for each query, all of the same engine.
            number: Number of the stage, from 1.
            documents: For each plan, numbers of documents that the stage before kept, ascending.
        """
        call = StageCall(plans, number, documents, [plan.stage_limits[number] for plan in plans])
        return await self._compute(_run_stage, self.versions, served, call)

    async def rescore(self, served: Served, plan: QueryPlan, numbers: np.ndarray) -> TopK:
        """Return the exact scores of some of this group's documents, best first.

        Args:
            served: Versions that the request carries.
            plan: Plan of the query, of the engine exact.
            numbers: Document numbers, in any order.
        """
        call = StageCall([plan], 0, [np.sort(numbers)], [len(numbers)])
        [answer] = await self._compute(_run_stage, self.versions, served, call)
        return answer

    async def matches(self, served: Served, plans: Sequence[QueryPlan], numbers: Sequence[np.ndarray]) -> list[dict[int, TokenMatches]]:
        """Return the matches of the query tokens in some of this group's documents.

        Args:
            served: Versions that the request carries.
            plans: One plan for each query.
            numbers: For each plan, numbers of the documents.

        Returns:
            For each plan, the matches by document number.
        """
        return await self._compute(_matches, self.versions, served, plans, numbers)

    async def stage_scores(
        self, served: Served, plan: QueryPlan, number: int, filters: Filters | None
    ) -> tuple[list[StageScores], str | None]:
        """Return a document's score in every stage, and the filter or deletion that excludes it from the search.

        Args:
            served: Versions that the request carries.
            plan: Plan of the query.
            number: Number of the document.
            filters: Conditions on the documents; None for all documents.
        """
        return await self._compute(_stage_scores, self.versions, served, plan, number, filters)

    async def documents(self, served: Served, numbers: np.ndarray, fields: Sequence[str]) -> list[dict[str, Any]]:
        """Return doc_id and some fields of this group's documents.

        Args:
            served: Versions that the request carries.
            numbers: Numbers of the documents.
            fields: Names of the fields.

        Returns:
            One dict for each document, in the order of `numbers`.
        """
        return await asyncio.to_thread(lambda: _rows(self.versions.get(served), numbers, fields))

    async def fields(self, served: Served) -> SampledFields:
        """Return the metadata fields in a sample of this group's documents, with their kinds and values."""
        return await asyncio.to_thread(_fields, self.versions, served)

    async def whole_document(self, served: Served, number: int) -> dict[str, Any]:
        """Return doc_id, title, text and metadata of one of this group's documents; the whole text also in an index of passages.

        Args:
            served: Versions that the request carries.
            number: Number of the document, or of one of its passages.
        """
        return await asyncio.to_thread(lambda: self.versions.get(served).whole_document(number))

    async def passages_of(self, served: Served, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return the numbers of all passages of some documents of this group; only the number itself without passages.

        Args:
            served: Versions that the request carries.
            numbers: Numbers of documents, or of passages of them.
        """
        return await asyncio.to_thread(lambda: [self.versions.get(served).passages_of(number) for number in numbers])

    async def find(self, served: Served, doc_ids: Sequence[str]) -> dict[str, int]:
        """Return the numbers of documents by id, for documents that this group holds."""
        return await asyncio.to_thread(_find, self.versions, served, doc_ids)

    async def open_version(self, version: int) -> None:
        """Open a version so that it can be served. Raises FormatError if it is damaged."""
        await asyncio.to_thread(self.versions.open, version)

    async def adopt(self, served: Served) -> None:
        """Store the served versions, close versions that no request can reach, and remove their copies."""
        await asyncio.to_thread(self.versions.get, served)
        self.versions.keep(served.reachable)
        if self.cache and not storage.is_local(self.root):
            await asyncio.to_thread(self._let_go, served.reachable)

    async def ready(self) -> None:
        """Return as soon as the shards are open."""

    def check_health(self) -> None:
        """Raise ShardUnavailable if a call hangs or the GPU does not answer. Ray Serve calls this regularly."""
        longest = max((time.monotonic() - began for began in list(self.began.values())), default=0.0)
        if longest > STUCK_AFTER_S:
            raise ShardUnavailable(f"a call has been computing for {longest:.0f} seconds; look at this machine's disk and load")
        if self.gpu and not self.began:  # a call in progress shows that the device answers; a hanging call is detected above
            check_device()

    def _open(self, version: int) -> Searcher:
        manifest = read_version(self.root, version)
        run = split_shards(manifest.shards, self.num_groups)[self.group]
        shards = manifest.shards[run.start : run.stop]
        if self.gpu:
            self.gpu.check_fits(manifest, self.num_groups)
        opened = next((searcher.planner for searcher in reversed(self.versions.opened())), None)
        planner = open_planner(self.root, manifest, self.verify, self.kernels.name, opened=opened, residency=self.residency)
        searcher = self._open_shards(planner, manifest, shards)
        if self.gpu:
            warm_up(searcher)
        elif planner.statistics.on_disk:
            for shard in searcher.shards:
                _ = shard.posting_documents  # `auto` probes then, and the first query would wait for these lists
        return searcher

    def _open_shards(self, planner: Planner, manifest: IndexManifest, shards: Sequence[ShardEntry]) -> Searcher:
        folder, verify = self.root, self.verify
        if not storage.is_local(self.root):
            new = [file for shard in shards for file in files_of(shard.tombstones if shard.name in self.opened else shard)]
            folder, verify = local_copy(self.root, self.cache or "", new), False
        opened = open_shards(folder, manifest, shards, verify, self.opened, planner.statistics.on_disk)
        self.opened.update(zip((shard.name for shard in shards), opened, strict=True))
        return Searcher(planner, opened, self.kernels)

    def _let_go(self, versions: Sequence[int]) -> None:
        shards = [shard for version in versions for shard in read_version(self.root, version).shards]
        remove_other_copies(self.root, self.cache or "", [file for shard in shards for file in files_of(shard)])

    async def _compute(self, work: Callable[..., Result], *args: Any, kind: Hashable = None) -> Result:
        """Return the result of `work`. It runs on a thread, unless it is the only call and the last call of its kind was short."""
        self.calls += 1
        try:
            await asyncio.sleep(0)  # count calls that arrived at the same time
            if self.calls == 1 and not self.began and self.seconds.get(kind, math.inf) <= SHORT_S:
                return self._timed(kind, work, *args)
            return await asyncio.get_running_loop().run_in_executor(self.pool, self._timed, kind, work, *args)
        finally:
            self.calls -= 1

    def _timed(self, kind: Hashable, work: Callable[..., Result], *args: Any) -> Result:
        thread, start = threading.get_ident(), time.monotonic()
        self.began[thread] = start
        try:
            return work(*args)
        finally:
            del self.began[thread]
            if kind is not None:
                self.seconds[kind] = time.monotonic() - start


def _search(versions: Versions[Searcher], call: SearchCall) -> GroupAnswer:
    searcher = versions.get(call.served)
    loop = _run(searcher, call.plans, [_allowed(searcher, call)] * len(call.plans), call.ahead)
    return _answer(searcher, call, loop.kept, loop.seconds)


def _search_together(versions: Versions[Searcher], calls: Sequence[SearchCall]) -> list[GroupAnswer | Exception]:
    """Return the answer of each call. Calls with the same version, engine and stages are answered in one pass over the shards."""
    answers: dict[int, GroupAnswer | Exception] = {}
    passes: dict[Hashable, list[int]] = {}
    allowed: dict[int, np.ndarray | None] = {}
    for position, call in enumerate(calls):
        try:
            allowed[position] = _allowed(versions.get(call.served), call)
            passes.setdefault(call.kind, []).append(position)
        except Exception as error:  # wrong filters in one call do not affect the others
            answers[position] = error
    for positions in passes.values():
        try:
            answers |= _one_pass(versions, calls, positions, allowed)
        except Exception as error:
            answers |= dict.fromkeys(positions, error)
    return [answers[position] for position in range(len(calls))]


def _one_pass(
    versions: Versions[Searcher], calls: Sequence[SearchCall], positions: Sequence[int], allowed: Mapping[int, np.ndarray | None]
) -> dict[int, GroupAnswer]:
    searcher = versions.get(calls[positions[0]].served)
    plans = [plan for position in positions for plan in calls[position].plans]
    documents = [allowed[position] for position in positions for _ in calls[position].plans]
    loop = _run(searcher, plans, documents, calls[positions[0]].ahead)
    answers, start = {}, 0
    for position in positions:
        end = start + len(calls[position].plans)
        answers[position] = _answer(searcher, calls[position], [kept[start:end] for kept in loop.kept], loop.seconds)
        start = end
    return answers


def _run(searcher: Searcher, plans: Sequence[QueryPlan], allowed: Sequence[np.ndarray | None], ahead: Sequence[int]) -> StageLoop:
    return run_stages(plans, searcher.shards, searcher.planner.codec, searcher.kernels, allowed, ahead)


def _allowed(searcher: Searcher, call: SearchCall) -> np.ndarray | None:
    return None if call.filters is None else matching(searcher.shards, call.filters)


def _answer(searcher: Searcher, call: SearchCall, kept: list[list[TopK]], seconds: list[float]) -> GroupAnswer:
    best = [top.documents[: plan.stage_limits[-1]] for plan, top in zip(call.plans, kept[-1], strict=True)]
    numbers = np.unique(np.concatenate(best))
    rows = {} if call.fields is None else dict(zip(numbers.tolist(), _rows(searcher, numbers, call.fields), strict=True))
    return GroupAnswer(kept, seconds, rows, {} if call.filters is None else unknown_fields(searcher.shards, call.filters))


def _rows(searcher: Searcher, numbers: np.ndarray, fields: Sequence[str]) -> list[dict[str, Any]]:
    names = ("doc_id", "passage", *fields) if searcher.manifest.contract.has_passages else ("doc_id", *fields)
    return [{name: row[name] for name in names} for row in searcher.documents(numbers)]


def _run_stage(versions: Versions[Searcher], served: Served, call: StageCall) -> list[TopK]:
    searcher = versions.get(served)
    return run_stage(call, searcher.shards, searcher.planner.codec, searcher.kernels)


def _matches(versions: Versions[Searcher], served: Served, plans: Any, numbers: Any) -> list[dict[int, TokenMatches]]:
    searcher = versions.get(served)
    codec = searcher.planner.codec
    return [
        {number: match_tokens(plan, shard_of(searcher.shards, number), codec, number) for number in documents.tolist()}
        for plan, documents in zip(plans, numbers, strict=True)
    ]


def _stage_scores(
    versions: Versions[Searcher], served: Served, plan: QueryPlan, number: int, filters: Filters | None
) -> tuple[list[StageScores], str | None]:
    searcher = versions.get(served)
    shard = shard_of(searcher.shards, number)
    return stage_scores(plan, shard, searcher.planner.codec, searcher.kernels, number), kept_out(shard, number, filters)


def _find(versions: Versions[Searcher], served: Served, doc_ids: Sequence[str]) -> dict[str, int]:
    return versions.get(served).find(doc_ids)


def _fields(versions: Versions[Searcher], served: Served) -> SampledFields:
    fields = SampledFields()
    for shard in versions.get(served).shards:
        fields.merge(shard.sampled_fields)
    return fields
