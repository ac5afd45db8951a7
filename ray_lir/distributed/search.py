"""Search on Ray: blocks of queries, from files or in memory, go to actors that encode and search them.

A worker opens the whole index. An index that is larger than a machine's disk is held by groups of shards instead: each group is an actor
with some of the shards, and a worker merges every stage over all groups (`ray_lir/engines/stages.py`), so the hits are the same.
"""

import logging
import math
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray.actor import ActorHandle
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from ray_lir import storage
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import threads, use_cores
from ray_lir.distributed.encode import RESERVED_FRACTION, WorkerPool, make_pool
from ray_lir.distributed.gpus import torch_device
from ray_lir.distributed.pipeline import ChunkActor, Pool, run_chunks, run_items
from ray_lir.distributed.ray_map import ray_map
from ray_lir.distributed.room import Demand, check_free_gpus, check_room
from ray_lir.distributed.runtime import error_of, portable_errors
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import TopK
from ray_lir.engines.registry import engine_of
from ray_lir.engines.stages import StageCall, StageLoop, run_stage
from ray_lir.evaluation.runs import check_ids
from ray_lir.index import documents
from ray_lir.index.filters import Filters, unknown_field_warnings
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.shard_groups import split_shards
from ray_lir.index.tombstones import find_in_shard
from ray_lir.index.versions import read_version
from ray_lir.kernels import select
from ray_lir.search.bulk import (
    BlockAnswers,
    BlockEntry,
    BulkSettings,
    OpenIndex,
    QueryBlock,
    Worklist,
    answer_block,
    search_block,
)
from ray_lir.search.grouping import by_document
from ray_lir.search.searcher import (
    BATCH_QUERIES,
    Planner,
    Searcher,
    common_unknown_fields,
    finish,
    matching,
    open_planner,
    open_shards,
    unknown_fields,
)
from ray_lir.storage.local_copy import local_copy
from ray_lir.storage.manifest import files_of

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")
Task = Callable[[Any, Encoder, OpenIndex], Any]
"""Searches a block of queries with the encoder and the opened index."""
GB = 1e9
GROUP_FRACTION, WORKER_FRACTION = 0.5, 0.25
"""CPUs that a group, and a worker beside groups, reserve for each of their threads: they take turns, and reading tasks need room."""
BATCHES_IN_FLIGHT = 3
"""Batches of queries that a worker sends to the groups at a time, so that a group computes while another batch is merged."""
PLANS_KEPT = 8
"""Batches whose query plans, with their tables of centroid scores, a group keeps between two stages."""


@dataclass(frozen=True)
class IndexSource:
    """Where an index version is opened from, on any machine.

    Attributes:
        root: Folder or URL of the index.
        version: Number of the version.
        cache: Local folder for copies of the files, if the index is not on a local or shared disk.
        kernels: Name of the kernels that score.
        residency: auto, memory or disk (ray_lir/index/residency.py).
    """

    root: str
    version: int
    cache: str
    kernels: str = "auto"
    residency: str = "auto"

    def open(self, entries: Sequence[ShardEntry] | None = None) -> Searcher:
        """Open the index, or some of its shards.

        Args:
            entries: Manifest entries of the shards; None opens all.

        Raises:
            FormatError: A file is missing or damaged.
            ConfigError: The store does not answer, or the disk of the cache is full.
        """
        manifest = read_version(self.root, self.version)
        entries = manifest.shards if entries is None else entries
        folder = self._folder(manifest, entries)
        planner = open_planner(folder, manifest, kernels=self.kernels, residency=self.residency)
        return Searcher(planner, open_shards(folder, manifest, entries, on_disk=planner.statistics.on_disk), select(self.kernels))

    def open_planner(self) -> Planner:
        """Open only the data for query plans."""
        manifest = read_version(self.root, self.version)
        return open_planner(self._folder(manifest, ()), manifest, kernels=self.kernels, residency=self.residency)

    def _folder(self, manifest: IndexManifest, entries: Sequence[ShardEntry]) -> str:
        """The local folder that has the shards and the files of the whole index."""
        if storage.is_local(self.root):
            return self.root
        return local_copy(self.root, self.cache, files_of(manifest.model_copy(update={"shards": tuple(entries)})))


def default_cache() -> str:
    """Return the folder for copies of remote indexes: one for each user of a machine."""
    return os.path.join(tempfile.gettempdir(), f"ray_lir-{os.getuid()}", "indexes")


def num_groups(workers: SearchWorkers, root: str, manifest: IndexManifest) -> int:
    """Return the number of shard groups that hold the index; 0 if each worker opens the whole index.

    Args:
        workers: Settings of the workers.
        root: Folder or URL of the index.
        manifest: Manifest of its version.

    Raises:
        ConfigError: The index has fewer shards than groups are needed.
    """
    num_bytes = sum(file.size for file in files_of(manifest))
    groups = workers.groups or 0
    if not groups and workers.disk and not storage.is_local(root) and num_bytes > workers.disk * GB:
        groups = math.ceil(num_bytes / (workers.disk * GB))
    if groups > len(manifest.shards):
        raise ConfigError(
            f"the index has {num_bytes / GB:.1f} GB in {len(manifest.shards)} shards, too few for {groups} groups; "
            f"raise --workers.disk, lower --workers.groups, or build the index with --num_shards {groups} or more"
        )
    return groups


def on_ray(
    worklist: Worklist, source: IndexSource, contract: EncoderContract, encoder: EncoderConfig, workers: SearchWorkers
) -> Iterator[BlockEntry]:
    """Search the blocks that are left on Ray, and yield their entries in any order.

    Args:
        worklist: The blocks.
        source: The index.
        contract: Encoder contract of the index.
        encoder: Where the encoder's weights are, and how it runs.
        workers: Number and size of the workers.

    Raises:
        RayLirError: Raised by a worker.
    """
    task = partial(search_block, settings=worklist.settings, destination=worklist.destination)
    with _search_pools(task, worklist.queries.num_chunks, source, contract, encoder, workers) as pools:
        files = partial(_files, worklist)
        yield from run_chunks(files, worklist.queries.docs_per_chunk, worklist.done, pools, "search")


def answers(
    blocks: Sequence[QueryBlock],
    source: IndexSource,
    contract: EncoderContract,
    encoder: EncoderConfig,
    settings: BulkSettings,
    workers: SearchWorkers,
) -> Iterator[BlockAnswers]:
    """Answer blocks of queries on Ray, and yield the answers in any order. They equal those of `Searcher`, to the bit.

    Args:
        blocks: The queries.
        source: The index.
        contract: Encoder contract of the index.
        encoder: Where the encoder's weights are, and how it runs.
        settings: Settings of the search.
        workers: Number and size of the workers.

    Raises:
        RayLirError: Raised by a worker.
    """
    task = partial(answer_block, settings=settings)
    with _search_pools(task, len(blocks), source, contract, encoder, workers) as pools:
        yield from run_items(blocks, pools, "search")


def find_documents(source: IndexSource, doc_ids: Collection[str], check: bool = False) -> set[str]:
    """Return the ids that are documents of the index. Ray tasks read the ids of each shard; nothing is copied to a cache.

    Args:
        source: The index.
        doc_ids: Document ids.
        check: Whether to check that a TREC run can hold the id of every document of the index.

    Raises:
        ConfigError: A run cannot hold an id.
        FormatError: A file is missing or damaged.
    """
    manifest = read_version(source.root, source.version)
    return set().union(*ray_map(partial(_find_in_shard, source.root, sorted(doc_ids), check), manifest.shards))


def _find_in_shard(root: str, doc_ids: Sequence[str], check: bool, entry: ShardEntry) -> list[str]:
    if check:
        for batch in documents.read_batches(storage.join(root, entry.name, documents.FILE), ["doc_id"]):
            check_ids(batch.column(0).to_pylist(), "document")
    return find_in_shard(root, doc_ids, entry)[1]


def on_open_index(
    task: Callable[[Searcher, Item], Result],
    items: Iterable[Item],
    source: IndexSource,
    encoder: EncoderConfig,
    workers: SearchWorkers,
) -> Iterator[Result]:
    """Apply a function to each item on Ray, with the index opened on the worker. Nothing else runs on the worker's CPUs.

    Args:
        task: Applied to the opened index and an item; must be picklable.
        items: The items.
        source: The index.
        encoder: Decides, with `workers`, whether workers reserve GPUs.
        workers: Size of the workers.

    Raises:
        ConfigError: The workers have groups of shards, so none has the whole index.
        RayLirError: Raised by the function.
    """
    if num_groups(workers, source.root, read_version(source.root, source.version)):
        raise ConfigError("each worker needs the whole index; leave out --workers.groups and --workers.disk")
    pool = make_pool(workers, encoder)
    num_cpus = pool.cpus / RESERVED_FRACTION
    yield from ray_map(partial(_on_open_index, task, source, pool.threads), items, num_cpus=num_cpus, num_gpus=pool.gpus)


def _on_open_index(task: Callable[[Searcher, Item], Result], source: IndexSource, num_threads: int, item: Item) -> Result:
    use_cores(num_threads)
    return task(_opened(source), item)


@lru_cache(maxsize=1)
def _opened(source: IndexSource) -> Searcher:
    """The index, which a worker process opens once."""
    return source.open()


@contextmanager
def _search_pools(
    task: Task, num_blocks: int, source: IndexSource, contract: EncoderContract, encoder: EncoderConfig, workers: SearchWorkers
) -> Iterator[Callable[[frozenset[int]], list[Pool]]]:
    """Start the groups of shards, if any, and yield a function from finished blocks to worker pools."""
    pool = make_pool(workers, encoder)
    groups = num_groups(workers, source.root, read_version(source.root, source.version))
    encoder = encoder.model_copy(update={"device": torch_device(pool.gpus)})
    if pool.gpus:
        source = replace(source, kernels="cuda")
    with _groups(groups, source, pool, must_spread=not workers.groups) as handles:

        def pools(done: frozenset[int]) -> list[Pool]:
            size = min(pool.size, num_blocks - len(done))
            logger.info("search: workers=%d groups=%d threads=%d gpus=%g", size, groups, pool.threads, pool.gpus)
            args = (replace(source, kernels="auto") if handles else source, contract, encoder, task, pool.threads, handles)
            cpus, gpus = (WORKER_FRACTION * pool.threads, 0.0) if handles else (pool.cpus, pool.gpus)
            return [Pool(_SearchWorker, args, size, cpus, gpus)]

        yield pools


def _files(worklist: Worklist, done: frozenset[int]) -> Sequence[Any]:
    return replace(worklist, done=done).files


class _SearchWorker(ChunkActor[Any, Any]):
    """Opens the encoder and the index, and keeps them."""

    def __init__(
        self,
        source: IndexSource,
        contract: EncoderContract,
        encoder: EncoderConfig,
        task: Task,
        num_threads: int,
        groups: Sequence[ActorHandle],
    ):
        torch.set_num_threads(num_threads)
        use_cores(num_threads)
        with portable_errors():
            self._encoder = Encoder.for_contract(contract, encoder)
            self._index: OpenIndex = GroupedSearcher(source.open_planner(), groups) if groups else source.open()
        self._task = task

    def process(self, item: Any) -> Any:
        return self._task(item, self._encoder, self._index)


class GroupedSearcher:
    """An index with its shards spread over groups. It gives the same hits and scores as `Searcher`, to the bit.

    Args:
        planner: Makes query plans.
        groups: Actors of `ShardGroup`, in document order.
    """

    def __init__(self, planner: Planner, groups: Sequence[ActorHandle]):
        self.planner = planner
        self.groups = groups
        self._bounds: np.ndarray = np.array(_get([group.first_document.remote() for group in groups]))

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        *,
        filters: Filters | None = None,
    ) -> list[TopK]:
        """Return the k best documents of each query.

        Args:
            queries: Token embeddings of Q queries.
            k: Documents per query at most.
            engine: Name or parameters of an engine that needs no survey of all shards.
            quality: For the engine auto.
            filters: Conditions on the documents; None searches all.

        Returns:
            One answer per query.

        Raises:
            ConfigError: `k`, the engine or the quality is not possible.
        """
        if filters is not None:
            for warning in unknown_field_warnings(
                common_unknown_fields(_get([each.unknown_fields.remote(filters) for each in self.groups]))
            ):
                logger.warning("%s", warning)
        starts = range(0, len(queries), BATCH_QUERIES)
        batches = [queries.slice(start, min(start + BATCH_QUERIES, len(queries))) for start in starts]

        def ranked(k: int) -> list[TopK]:
            search = partial(self._search, k, engine, quality, filters)
            return [top for answers in threads(search, batches, BATCHES_IN_FLIGHT) for top in answers]

        if not self.planner.manifest.contract.has_passages:
            return ranked(k)
        return by_document(ranked, lambda top: self.doc_ids(top.documents.tolist()), k)

    def _search(self, k: int, engine: str | EngineConfig, quality: str, filters: Filters | None, queries: TokenEmbeddings) -> list[TopK]:
        plans = self.planner.plan(queries, k, engine, quality)
        if not engine_of(plans).served:
            raise ConfigError(
                f"engine {plans[0].params.engine} needs the whole index in one process; leave out --workers.groups and --workers.disk"
            )
        key, stored = os.urandom(8), ray.put(plans)
        loop = StageLoop(plans, [None] * len(plans))
        for call in loop:
            parts = _get(
                [
                    group.run_stage.remote(key, stored, call.number, own, call.limits, filters)
                    for group, own in zip(self.groups, self._owned(call), strict=True)
                ]
            )
            loop.cut(list(zip(*parts, strict=True)), self.planner.kernels)
        return finish(loop.plans, loop.kept[-1])

    def _owned(self, call: StageCall) -> list[list[np.ndarray] | None]:
        """For each group the documents of each plan that it holds; None for the first stage, which chooses among all."""
        if not call.number:
            return [None] * len(self.groups)
        survivors = [documents for documents in call.documents if documents is not None]
        by_plan = [np.split(documents, np.searchsorted(documents, self._bounds[1:])) for documents in survivors]
        return [[owned[group] for owned in by_plan] for group in range(len(self.groups))]

    def doc_ids(self, numbers: Iterable[int]) -> list[str]:
        """Return the ids of documents, in the order of their numbers."""
        return self._gather("doc_ids", numbers)

    def documents(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Return id, title, text and metadata of documents, in the order of their numbers."""
        return self._gather("documents", numbers)

    def _gather(self, method: str, numbers: Iterable[int]) -> list[Any]:
        numbers = np.fromiter(numbers, np.int64)
        holders = np.searchsorted(self._bounds, numbers, side="right") - 1
        found: list[Any] = [None] * len(numbers)
        places = [np.flatnonzero(holders == group) for group in range(len(self.groups))]
        calls = [getattr(group, method).remote(numbers[place]) for group, place in zip(self.groups, places, strict=True)]
        for place, rows in zip(places, _get(calls), strict=True):
            for position, row in zip(place.tolist(), rows, strict=True):
                found[position] = row
        return found


class ShardGroup:
    """An actor that holds some shards of an index.

    Args:
        source: The index.
        entries: Manifest entries of the shards.
        num_threads: Threads that compute.
    """

    def __init__(self, source: IndexSource, entries: Sequence[ShardEntry], num_threads: int):
        use_cores(num_threads)
        with portable_errors():
            self._searcher = source.open(entries)
        self._plans: dict[bytes, Any] = {}

    def first_document(self) -> int:
        """Return the number of the first document of the group."""
        return self._searcher.shards[0].first_document

    def unknown_fields(self, filters: Filters) -> Mapping[str, frozenset[str]]:
        """Return the fields of the filters that no document of the group has."""
        return unknown_fields(self._searcher.shards, filters)

    def run_stage(
        self, key: bytes, plans: Any, number: int, documents: Sequence[np.ndarray] | None, limits: Sequence[int], filters: Filters | None
    ) -> list[TopK]:
        """Run one stage over the shards of the group.

        Args:
            key: Names the batch of queries.
            plans: Plans of the batch. Those of an earlier stage are used instead if they are still here, since they have their tables.
            number: Number of the stage, from 0.
            documents: For each plan the documents to score, ascending; None for the first stage.
            limits: For each plan how many documents the stage keeps.
            filters: Conditions on the documents, for the first stage.

        Returns:
            For each plan the best documents of the group.
        """
        with portable_errors():
            plans = self._plans.setdefault(key, plans)
            while len(self._plans) > PLANS_KEPT:
                del self._plans[next(iter(self._plans))]
            shards = self._searcher.shards
            allowed: Sequence[np.ndarray | None] | None = documents
            if allowed is None:
                allowed = [None if filters is None else matching(shards, filters)] * len(plans)
            call = StageCall(plans, number, allowed, limits)
            return run_stage(call, shards, self._searcher.planner.codec, self._searcher.kernels)

    def doc_ids(self, numbers: np.ndarray) -> list[str]:
        """Return the ids of documents of the group."""
        return self._searcher.doc_ids(numbers)

    def documents(self, numbers: np.ndarray) -> list[dict[str, Any]]:
        """Return id, title, text and metadata of documents of the group."""
        return self._searcher.documents(numbers)


@contextmanager
def _groups(count: int, source: IndexSource, pool: WorkerPool, must_spread: bool) -> Iterator[list[ActorHandle]]:
    """The actors of the groups, in document order; none for 0.

    Args:
        must_spread: Whether each group needs a machine of its own, because the machine's disk holds no more.
    """
    if not count:
        yield []
        return
    manifest = read_version(source.root, source.version)
    each = {"CPU": GROUP_FRACTION * pool.threads, "GPU": pool.gpus}
    demand = Demand("shard group", each, count)
    check_room([demand], "lower --workers.groups, or add machines")
    if pool.gpus:
        check_free_gpus([demand], "lower --workers.groups or --workers.gpus_per_worker")
    machines = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    if must_spread and machines < count:
        logger.info("search: the index needs %d machines and the cluster has %d; waiting for more", count, machines)
    bundle = {name: amount for name, amount in each.items() if amount}
    placed = placement_group([bundle] * count, strategy="STRICT_SPREAD" if must_spread else "SPREAD")
    actor: Any = ray.remote(num_cpus=each["CPU"], num_gpus=each["GPU"], max_restarts=-1, max_task_retries=-1)(ShardGroup)
    try:
        handles = []
        for number, run in enumerate(split_shards(manifest.shards, count)):
            strategy = PlacementGroupSchedulingStrategy(placed, placement_group_bundle_index=number)
            handles.append(actor.options(scheduling_strategy=strategy).remote(source, manifest.shards[run.start : run.stop], pool.threads))
        yield handles
    finally:
        remove_placement_group(placed)


def _get(references: Sequence[Any]) -> Any:
    try:
        return ray.get(list(references))
    except Exception as error:
        raise error_of(error) from None
