"""Searcher: an index opened for search in this process. Plan once, run each stage on every shard, merge."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from ray_lir import storage
from ray_lir.base.arguments import id_set, number_list, number_set, whole_number
from ray_lir.base.errors import ConfigError
from ray_lir.base.parallel import num_cores, one_blas_thread, threads
from ray_lir.corpus.metadata import from_json
from ray_lir.embeddings.contract import check_weights
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, check_embeddings
from ray_lir.engines import ENGINES, Tuning, read_tuning, resolve
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import IndexStatistics, Query, QueryPlan, TopK
from ray_lir.engines.scoring.registry import check_complete, scorer_of, with_scorer_data
from ray_lir.engines.scoring.scorer import SearchScorer
from ray_lir.engines.stages import run_stages
from ray_lir.index import documents as documents_file
from ray_lir.index.codec import ResidualCodec, read_codec
from ray_lir.index.filters import Filters, unknown_field_warnings
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.norms import directions, kept_norms
from ray_lir.index.shard import IndexShard, open_shard
from ray_lir.index.versions import latest_version, read_cluster_sizes, read_version
from ray_lir.kernels import Kernels, select
from ray_lir.storage.manifest import check_file, files_of

logger = logging.getLogger(__name__)

MAX_K = 100_000
MAX_VERSION = 2**63 - 1
BATCH_QUERIES = 64
"""Queries searched together: bounds the memory of their centroid scores."""


@dataclass(frozen=True)
class Planner:
    """Makes query plans from what is the same for the whole index: the codec and the cluster sizes, no shard."""

    manifest: IndexManifest
    scorer: SearchScorer
    codec: ResidualCodec
    statistics: IndexStatistics
    kernels: Kernels
    tuning: Tuning | None = None
    shard_kernels: str = ""
    """Name of the kernels that score documents, by which `auto` chooses the engine. Empty: those that make the plans."""

    def plan(
        self, queries: TokenEmbeddings, k: int = 10, engine: str | EngineConfig = "auto", quality: str = "balanced"
    ) -> list[QueryPlan]:
        """One plan a query, all of the same engine.

        Args:
            queries: token embeddings of the queries, D as the index; `weights` if the scorer has them.
            k: how many documents are wanted.
            engine: a name, or the engine's parameters.
            quality: fast, balanced or exact, for the engine auto.

        Raises:
            ConfigError: if the dimensions differ, or k, the engine or the quality is not possible.
            IncompatibleError: if the scorer weighs queries, and these have no weights.
        """
        queries = check_embeddings("queries", queries)
        k = whole_number("k", k, 1, MAX_K)
        if queries.dim != self.manifest.dim:
            raise ConfigError(
                f"the queries have {queries.dim} dimensions and the index {self.manifest.dim}; "
                f"encode them with {self.manifest.contract.checkpoint}"
            )
        if "queries" in self.manifest.contract.weighs:
            check_weights(self.manifest.contract, "queries", queries.weights is not None)
        params = resolve(engine, self.statistics, self.shard_kernels or self.kernels.name, quality, k, self.tuning)
        engine_plan = ENGINES[params.engine].plan
        return [
            replace(
                engine_plan(query, self.codec, self.statistics, params, k, self.kernels),
                scorer_terms=self.scorer.terms(query, self.codec),
                unit_norms=self.statistics.unit_norms,
            )
            for query in _split(queries, self.scorer, self.codec, self.kernels)
        ]


def open_planner(root: str, manifest: IndexManifest, verify: bool = False, kernels: str = "auto", tuning: Tuning | None = None) -> Planner:
    """Reads the codec, cluster sizes and scorer file of an index version.

    Raises:
        IncompatibleError: if the index lacks what its scorer needs.
        FormatError: if a file is missing, cut or (with verify) altered.
    """
    check_complete(manifest)
    for file in files_of((manifest.codec, manifest.cluster_sizes, manifest.scorer_file)):
        check_file(root, file, content=verify)
    scorer = scorer_of(manifest)
    codec = with_scorer_data(read_codec(root, manifest), root, manifest)
    sizes = read_cluster_sizes(root, manifest)
    statistics = IndexStatistics(
        manifest.num_docs, manifest.num_tokens, sizes, manifest.dim, scorer.cost(codec), unit_norms=manifest.unit_norms
    )
    return Planner(manifest, scorer, codec, statistics, select(kernels), tuning)


def finish(plans: Sequence[QueryPlan], last: Sequence[TopK]) -> list[TopK]:
    """The answers of the last stage, with the parameters that gave them."""
    return [TopK(top.scores, top.documents, plan.params) for plan, top in zip(plans, last, strict=True)]


@dataclass(frozen=True)
class Searcher:
    """A snapshot of an index: it never changes while it is open.

    Attributes:
        planner: makes plans.
        shards: all shards, in document order.
        kernels: what computes scores.
    """

    planner: Planner
    shards: tuple[IndexShard, ...]
    kernels: Kernels

    @classmethod
    def open(cls, root: storage.PathOrUrl, version: int | None = None, kernels: str = "auto", verify: bool = False) -> "Searcher":
        """Maps an index on a local disk; `verify` reads every file and compares digests.

        Raises:
            FormatError: if there is no index, or a file is missing, cut or (with verify) altered.
        """
        root = storage.absolute(root)
        if not storage.is_local(root):
            raise ConfigError(f"{root} is not on a local disk; copy the index to one and open the copy")
        version = latest_version(root) if version is None else whole_number("version", version, 1, MAX_VERSION)
        manifest = read_version(root, version)
        planner = open_planner(root, manifest, verify, kernels, read_tuning(root, version))
        return cls(planner, open_shards(root, manifest, verify=verify), select(kernels))

    @property
    def manifest(self) -> IndexManifest:
        return self.planner.manifest

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        only: Iterable[int] | np.ndarray | None = None,
        filters: Filters | Mapping[str, Any] | str | None = None,
    ) -> list[TopK]:
        """The best k documents of each query.

        Args:
            queries: token embeddings of the queries (Encoder.encode_queries).
            k: how many documents, at most; fewer come back from an index, or a candidate set, that holds fewer.
            engine: auto, the name of an engine, or an engine's parameters such as ScanParams(ncandidates=1000).
            quality: fast, balanced or exact, for the engine auto.
            only: numbers of the documents that may be found, in any order; None for all. Others are left out before any cut is
                made, and deleted documents are never found.
            filters: what the documents must be like, as Filters, text (`year >= 2020, tags ~ news`) or a dict ({"year": {">=": 2020}});
                others are left out, and those not in `only`. A field that no document has is logged as a warning.

        Raises:
            ConfigError: if the dimensions differ, or k, the engine or the quality is not possible.
        """
        queries = check_embeddings("queries", queries)
        k = whole_number("k", k, 1, MAX_K)
        allowed = self._allowed(only, filters)
        size = min(BATCH_QUERIES, max(self.kernels.queries_together, -(-len(queries) // num_cores())))
        batches = [queries.slice(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
        # A batch a core, or all cores for the only one.
        kernels = self.kernels if len(batches) > 1 else select(self.kernels.name, threads=0)
        spread = threads if len(batches) > 1 else map
        with one_blas_thread() if kernels.uses_blas else nullcontext():
            return [top for answers in spread(partial(self._search, kernels, k, engine, quality, allowed), batches) for top in answers]

    def _search(
        self, kernels: Kernels, k: int, engine: str | EngineConfig, quality: str, allowed: np.ndarray | None, queries: TokenEmbeddings
    ) -> list[TopK]:
        plans = self.planner.plan(queries, k, engine, quality)
        loop = run_stages(plans, self.shards, self.planner.codec, kernels, [allowed] * len(plans))
        return finish(loop.plans, loop.kept[-1])

    def _allowed(self, only: Iterable[int] | np.ndarray | None, filters: Filters | Mapping[str, Any] | str | None) -> np.ndarray | None:
        """Numbers of the documents that a search may find, ascending; None: all that are not deleted."""
        if only is None:
            return None if filters is None else self.matching(filters)
        chosen = number_set("only", only, self.manifest.num_numbers)
        if filters is not None:
            return np.intersect1d(self.matching(filters), chosen, assume_unique=True)
        for shard in self.shards:
            if shard.deleted is not None:
                chosen = np.setdiff1d(chosen, shard.first_document + shard.deleted.astype(np.int64), assume_unique=True)
        return chosen

    def matching(self, filters: Filters | Mapping[str, Any] | str) -> np.ndarray:
        """Numbers of the documents that are not deleted and that the filters let through, ascending. A field that no document has is
        logged as a warning.

        Raises:
            ConfigError: if the filters cannot be read.
        """
        filters = Filters.of(filters)
        for warning in unknown_field_warnings(unknown_fields(self.shards, filters)):
            logger.warning("%s", warning)
        return matching(self.shards, filters)

    def documents(self, numbers: Iterable[int] | np.ndarray) -> list[dict[str, Any]]:
        """The documents with these numbers, in their order.

        Returns:
            For each a dict with doc_id, title and text, strings, and metadata, a dict.

        Raises:
            ConfigError: if there is no document of such a number.
            FormatError: if metadata is not a JSON object.
        """
        numbers = number_list("numbers", numbers, self.manifest.num_numbers)
        found: dict[int, dict[str, Any]] = {}
        for shard, owned in self._by_shard(numbers):
            rows = documents_file.rows(shard.documents, owned - shard.first_document)
            found.update(zip(owned.tolist(), ({**row, "metadata": from_json(row["metadata"], row["doc_id"])} for row in rows), strict=True))
        return [found[number] for number in numbers.tolist()]

    def doc_ids(self, numbers: Iterable[int] | np.ndarray) -> list[str]:
        """The ids of documents, in the order of their numbers."""
        numbers = number_list("numbers", numbers, self.manifest.num_numbers)
        found: dict[int, str] = {}
        for shard, owned in self._by_shard(numbers):
            found.update(zip(owned.tolist(), documents_file.column(shard.documents, "doc_id", owned - shard.first_document), strict=True))
        return [found[number] for number in numbers.tolist()]

    def find(self, doc_ids: Iterable[str]) -> dict[str, int]:
        """The numbers of those of these documents that the index holds."""
        doc_ids = id_set("doc_ids", doc_ids)
        return {doc_id: shard.first_document + row for shard in self.shards for doc_id, row in shard.find(doc_ids).items()}

    def _by_shard(self, numbers: np.ndarray) -> list[tuple[IndexShard, np.ndarray]]:
        spans = [(shard, numbers >= shard.first_document, numbers < shard.first_document + shard.num_docs) for shard in self.shards]
        return [(shard, numbers[low & high]) for shard, low, high in spans if (low & high).any()]


def matching(shards: Sequence[IndexShard], filters: Filters) -> np.ndarray:
    """Numbers of the documents of some shards that are not deleted and that the filters let through, ascending."""
    return np.concatenate([np.zeros(0, np.int64), *(shard.first_document + shard.matching(filters) for shard in shards)])


def unknown_fields(shards: Sequence[IndexShard], filters: Filters) -> dict[str, frozenset[str]]:
    """The fields of the filters that no document of these shards has, each with the names of the fields that some have."""
    return common_unknown_fields([shard.unknown_fields(filters) for shard in shards])


def common_unknown_fields(parts: Sequence[Mapping[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """The fields that are unknown in every part of an index, with the names of the fields of all parts."""
    common = set.intersection(*map(set, parts)) if parts else set()
    return {field: frozenset().union(*(part[field] for part in parts)) for field in (parts[0] if parts else ()) if field in common}


def open_shards(
    root: str, manifest: IndexManifest, entries: Sequence[ShardEntry] | None = None, verify: bool = False
) -> tuple[IndexShard, ...]:
    """Maps some shards (None: all) of an index."""
    entries = manifest.shards if entries is None else entries
    return tuple(open_shard(root, entry, manifest, verify) for entry in entries)


def _split(queries: TokenEmbeddings, scorer: SearchScorer, codec: ResidualCodec, kernels: Kernels) -> list[Query]:
    """Each query with rows of unit length; the lengths become factors of the weights, so that tables hold cosines whatever the encoder's
    scale. A scorer that requires unit vectors gets the vectors as they are."""
    weights = np.ones(queries.num_tokens, np.float32) if queries.weights is None else queries.weights.astype(np.float32)
    norms = np.ones_like(weights) if scorer.requires_unit_vectors else kept_norms(queries.values)
    vectors = directions(queries.values, norms)
    split = []
    for first, end in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
        lengths = norms[first:end]
        query_norms = None if (lengths == 1).all() else lengths
        split.append(Query(codec.rotate(vectors[first:end], kernels), weights[first:end] * lengths, query_norms))
    return split
