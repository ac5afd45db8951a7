"""The search of a job's queries: in this process or on a Ray cluster, with the same answers to the bit."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Literal, TypeVar

from ray_lir import storage
from ray_lir.base.config import Config, EncoderConfig
from ray_lir.base.extras import require
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.engines import read_tuning, resolve
from ray_lir.engines.params import EngineConfig
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.bulk import BlockAnswers, BulkSettings, QueryBlock, answer_block
from ray_lir.search.searcher import Planner, Searcher, open_planner

if TYPE_CHECKING:
    from ray_lir.distributed.search import IndexSource
    from ray_lir.encoder.encoder import Encoder

Item = TypeVar("Item")
Result = TypeVar("Result")


class QueryEncoderConfig(Config):
    """The encoder of the queries. The index fixes its conventions; these fields say where its weights are and how it runs."""

    checkpoint: str | None = None
    """Checkpoint folder or name. None: the checkpoint that the index records."""
    trust_remote_code: bool = False
    """Run the Python code of the checkpoint (`auto_map` in its config.json) with your rights. Only for checkpoints you have read."""
    device: str = "auto"
    """Device of the encoder: auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    """Precision of the encoder. auto: float16 on a GPU, bfloat16 on a CPU with native bfloat16 products, float32 otherwise. int8:
    products of 7-bit numbers on a CPU."""


@dataclass(frozen=True)
class QuerySearch:
    """A version of an index, and where its queries are searched.

    Attributes:
        root: Folder or URL of the index.
        version: Number of the version.
        planner: Planner of the version.
        searcher: The version opened in this process; None if it is on an object store.
        encoder_config: Where the encoder's weights are, and how it runs.
        workers: Workers on a Ray cluster; None searches in this process.
        residency: auto, memory or disk (ray_lir/index/residency.py).
    """

    root: str
    version: int
    planner: Planner
    searcher: Searcher | None
    encoder_config: EncoderConfig
    workers: SearchWorkers | None
    residency: str = "auto"

    @classmethod
    def open(
        cls,
        index: str,
        encoder: QueryEncoderConfig,
        workers: SearchWorkers | None,
        query_length: int | None = None,
        residency: str = "auto",
    ) -> "QuerySearch":
        """Open the latest version of an index.

        Args:
            index: Folder or URL of the index.
            encoder: The encoder of the queries.
            workers: Workers on a Ray cluster. None: this process, or a cluster if the index is on an object store.
            query_length: Query length in tokens. None: the index's.
            residency: auto, memory or disk (ray_lir/index/residency.py).

        Raises:
            ConfigError: Ray is needed and not installed.
            FormatError: There is no index, or a file is damaged.
        """
        root = storage.absolute(index)
        version = latest_version(root)
        searcher = Searcher.open(root, version, residency=residency) if storage.is_local(root) else None
        if searcher is None:
            workers = workers or SearchWorkers()
            planner = open_planner(root, read_version(root, version), tuning=read_tuning(root, version))
        else:
            planner = searcher.planner
        if workers:
            require("ray", "searching on a cluster")
        settings = encoder.model_dump()
        settings["checkpoint"] = settings["checkpoint"] or planner.manifest.contract.checkpoint
        return cls(root, version, planner, searcher, EncoderConfig(**settings, query_length=query_length), workers, residency)

    @property
    def manifest(self) -> IndexManifest:
        """Manifest of the index version."""
        return self.planner.manifest

    @property
    def query_length(self) -> int:
        """Query length in tokens."""
        return self.encoder_config.query_length or self.manifest.contract.query_length

    @property
    def kernels(self) -> str:
        """Name of the kernels that score."""
        return "cuda" if self.workers and self.workers.gpus_per_worker else self.planner.kernels.name

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder, loaded in this process."""
        from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

        return Encoder.for_contract(self.manifest.contract, self.encoder_config)

    @property
    def source(self) -> "IndexSource":
        """The index for workers on other machines."""
        from ray_lir.distributed.search import IndexSource, default_cache  # Ray takes seconds to load

        cache = self.workers.cache if self.workers else None
        return IndexSource(self.root, self.version, cache or default_cache(), "cuda" if self.kernels == "cuda" else "auto", self.residency)

    def session(self) -> AbstractContextManager[None]:
        """Return the context in which to call the other methods: a connection to Ray if the search needs one."""
        if self.workers is None:
            return nullcontext()
        from ray_lir.distributed.runtime import ray_session

        return ray_session()

    def engine(self, engine: str | EngineConfig, k: int, quality: str = "balanced") -> EngineConfig:
        """Return the parameters of an engine.

        Args:
            engine: Name or parameters of an engine, or auto.
            k: Documents per query.
            quality: For the engine auto.

        Raises:
            ConfigError: There is no such engine or quality.
        """
        return resolve(engine, self.planner.statistics, self.kernels, quality, k, self.planner.tuning)

    def present(self, doc_ids: Sequence[str], check: bool = False) -> Collection[str]:
        """Return the ids that are documents of the index.

        Args:
            doc_ids: Document ids.
            check: Whether to check that a TREC run can hold the ids of all documents of the index.

        Raises:
            ConfigError: A run cannot hold an id.
        """
        if self.searcher is None:
            from ray_lir.distributed.search import find_documents

            return find_documents(self.source, doc_ids, check)
        if check:
            from ray_lir.evaluation.runs import check_ids
            from ray_lir.index import documents

            for shard in self.searcher.shards:
                check_ids(documents.column(shard.documents, "doc_id", shard.found_documents), "document")
        return self.searcher.find(doc_ids)

    def answers(self, blocks: Sequence[QueryBlock], settings: BulkSettings) -> Iterator[BlockAnswers]:
        """Answer blocks of queries, and yield the answers in any order.

        Args:
            blocks: The queries.
            settings: Settings of the search.

        Raises:
            ConfigError: The cluster has no room for a worker, or a setting is not possible.
            FormatError: A file of the index is damaged.
            IncompatibleError: The encoder is not the one that the index was built with.
        """
        if self.workers is None:
            assert self.searcher is not None
            return (answer_block(block, self.encoder, self.searcher, settings) for block in blocks)
        from ray_lir.distributed.search import answers

        return answers(blocks, self.source, self.manifest.contract, self.encoder_config, settings, self.workers)

    def map_on_index(self, function: Callable[[Searcher, Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """Apply a function to the opened index and each item, and yield the results in order.

        On a cluster, each call is a task on a worker that opens the whole index and reserves the CPUs (and GPUs) it computes on.

        Args:
            function: Applied to each item; must be picklable for a cluster.
            items: The items.

        Raises:
            ConfigError: The workers have groups of shards, so none has the whole index.
        """
        if self.workers is None:
            assert self.searcher is not None
            return map(partial(function, self.searcher), items)
        from ray_lir.distributed.search import on_open_index

        return on_open_index(function, items, self.source, self.encoder_config, self.workers)
