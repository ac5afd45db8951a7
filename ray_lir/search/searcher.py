"""Searcher: an index opened for search in this process. It plans a query once, runs each stage on every shard, and merges the results."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any, Literal

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
from ray_lir.engines.scoring.terms import with_terms
from ray_lir.engines.stages import run_stages
from ray_lir.index import documents as documents_file
from ray_lir.index.codec import ResidualCodec, read_codec
from ray_lir.index.filters import Filters, unknown_field_warnings
from ray_lir.index.lexical import read_statistics
from ray_lir.index.manifest import IndexManifest, ShardEntry
from ray_lir.index.norms import directions, kept_norms
from ray_lir.index.passages import span_in_text
from ray_lir.index.residency import on_disk
from ray_lir.index.shard import IndexShard, open_shard
from ray_lir.index.versions import latest_version, read_cluster_sizes, read_version
from ray_lir.kernels import Kernels, select
from ray_lir.search.grouping import by_document
from ray_lir.storage.manifest import FileEntry, check_file, files_of

logger = logging.getLogger(__name__)

MAX_K = 100_000
MAX_VERSION = 2**63 - 1
BATCH_QUERIES = 64
"""Queries that are searched together. The limit bounds the memory of their centroid scores."""


@dataclass(frozen=True)
class Planner:
    """Plans queries. It needs the codec and the cluster sizes of an index, but no shard.

    Attributes:
        manifest: Manifest of the index version.
        scorer: Search side of the index's scorer.
        codec: The codec, with the scorer's data.
        statistics: Statistics of the whole index.
        kernels: The kernels that score centroids.
        tuning: The result of jobs.tune; None if the version was not tuned.
        shard_kernels: Name of the kernels that score documents, for the choice of engine `auto`. Empty: the name of `kernels`.
    """

    manifest: IndexManifest
    scorer: SearchScorer
    codec: ResidualCodec
    statistics: IndexStatistics
    kernels: Kernels
    tuning: Tuning | None = None
    shard_kernels: str = ""

    def plan(
        self, queries: TokenEmbeddings, k: int = 10, engine: str | EngineConfig = "auto", quality: str = "balanced"
    ) -> list[QueryPlan]:
        """Return one plan for each query, all of the same engine.

        Args:
            queries: Token embeddings of Q queries, with the index's D, and with `weights` if the scorer weighs query tokens.
            k: Documents to return for each query.
            engine: auto, the name of an engine, or an engine's parameters.
            quality: fast, balanced or exact, for engine auto.

        Returns:
            Q plans.

        Raises:
            ConfigError: The dimensions differ, or `k`, the engine or the quality is not valid.
            IncompatibleError: The scorer weighs query tokens, and the queries have no weights.
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
        plans = [
            replace(engine_plan(query, self.codec, self.statistics, params, k, self.kernels), unit_norms=self.statistics.unit_norms)
            for query in _split(queries, self.scorer, self.codec, self.kernels)
        ]
        return [with_terms(plan, params, self.scorer, self.codec) for plan in plans]


def open_planner(
    root: str,
    manifest: IndexManifest,
    verify: bool = False,
    kernels: str = "auto",
    tuning: Tuning | None = None,
    opened: Planner | None = None,
    residency: str = "auto",
) -> Planner:
    """Return the planner of an index version. It reads the codec, the cluster sizes and the scorer's file.

    Args:
        root: Path or URL of the index.
        manifest: Manifest of the version.
        verify: Compare the digests of the files with the manifest.
        kernels: Name of the kernels that score centroids; auto for the fastest of this machine.
        tuning: The result of jobs.tune; None if the version was not tuned.
        opened: The planner of another version; it shares its codec if both have the same one. None: there is none.
        residency: auto, memory or disk (index/residency.py). Engine auto takes the disk into account.

    Raises:
        ConfigError: The residency does not exist.
        IncompatibleError: The index lacks token weights or the file that its scorer needs.
        FormatError: A file is missing or truncated, or, with `verify`, differs from its digest.
    """
    check_complete(manifest)
    shared = opened if opened and _codec_files(opened.manifest) == _codec_files(manifest) else None
    for file in files_of((manifest.cluster_sizes, manifest.lexical, None if shared else _codec_files(manifest))):
        check_file(root, file, content=verify)
    scorer = scorer_of(manifest)
    codec = shared.codec if shared else with_scorer_data(read_codec(root, manifest), root, manifest)
    sizes = read_cluster_sizes(root, manifest)
    selected = select(kernels)
    statistics = IndexStatistics(
        manifest.num_docs,
        manifest.num_tokens,
        sizes,
        manifest.dim,
        scorer.cost(codec),
        unit_norms=manifest.unit_norms,
        lexical=read_statistics(root, manifest),
        on_disk=selected.name != "cuda" and on_disk(manifest, residency),  # a GPU holds whole shards
    )
    return Planner(manifest, scorer, codec, statistics, selected, tuning)


def _codec_files(manifest: IndexManifest) -> tuple[FileEntry, FileEntry | None]:
    return manifest.codec, manifest.scorer_file


def finish(plans: Sequence[QueryPlan], last: Sequence[TopK]) -> list[TopK]:
    """Return the answers of the last stage, each with the parameters of its plan."""
    return [replace(top, params=plan.params) for plan, top in zip(plans, last, strict=True)]


@dataclass(frozen=True)
class Searcher:
    """One version of an index, opened for search. Later updates of the index do not change it.

    Attributes:
        planner: Plans the queries.
        shards: All shards, in document order.
        kernels: The kernels that score documents.
    """

    planner: Planner
    shards: tuple[IndexShard, ...]
    kernels: Kernels

    @classmethod
    def open(
        cls,
        root: storage.PathOrUrl,
        version: int | None = None,
        kernels: str = "auto",
        verify: bool = False,
        residency: str = "auto",
    ) -> "Searcher":
        """Open an index on a local disk. Its arrays are memory-mapped.

        Args:
            root: Folder of the index.
            version: The version to open; None for the latest.
            kernels: Name of the kernels; auto for the fastest of this machine.
            verify: Read every file and compare its digest with the manifest.
            residency: memory: the index is expected to fit in memory. disk: residuals stay on the disk, and those of the documents to
                rescore are prefetched; answers are the same to the bit. auto: disk if the index is larger than three quarters of the
                memory that this process may use, which is logged.

        Raises:
            ConfigError: The folder is not on a local disk, or the kernels do not exist here, or the residency does not exist.
            FormatError: There is no index, or a file is missing or truncated, or, with `verify`, differs from its digest.
            IncompatibleError: This version of ray_lir does not know the scorer, or the index lacks what the scorer needs.
        """
        root = storage.absolute(root)
        if not storage.is_local(root):
            raise ConfigError(f"{root} is not on a local disk; copy the index to one and open the copy")
        version = latest_version(root) if version is None else whole_number("version", version, 1, MAX_VERSION)
        manifest = read_version(root, version)
        planner = open_planner(root, manifest, verify, kernels, read_tuning(root, version), residency=residency)
        return cls(planner, open_shards(root, manifest, verify=verify, on_disk=planner.statistics.on_disk), select(kernels))

    @property
    def manifest(self) -> IndexManifest:
        """Manifest of the open version: counts, codec, encoder contract and files."""
        return self.planner.manifest

    @property
    def residency(self) -> Literal["memory", "disk"]:
        """Whether residuals are in memory or on the disk (index/residency.py)."""
        return "disk" if self.planner.statistics.on_disk else "memory"

    def search(
        self,
        queries: TokenEmbeddings,
        k: int = 10,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        only: Iterable[int] | np.ndarray | None = None,
        filters: Filters | Mapping[str, Any] | str | None = None,
    ) -> list[TopK]:
        """Return the k best documents for each query; in an index of passages, the best passage of each of them.

        Args:
            queries: Token embeddings of Q queries, as `Encoder.encode_queries` returns them. Engines bm25 and hybrid need their `texts`.
            k: Documents to return for each query; fewer are returned if the index holds fewer that `only` and `filters` allow.
            engine: auto, the name of an engine, or an engine's parameters such as `ScanParams(ncandidates=1000)`.
            quality: fast, balanced or exact, for engine auto.
            only: Numbers of the documents that may be returned, in any order; None for all. It applies before any cut. Deleted documents
                are never returned.
            filters: Conditions on the documents' metadata: `Filters`, text (`year >= 2020, tags ~ news`) or a dict
                (`{"year": {">=": 2020}}`); None for no conditions. They also apply before any cut, together with `only`. A field that no
                document has is logged as a warning.

        Returns:
            Q answers. `scores` [<= k] float32 descend; `documents` [<= k] int64. Ties go to the lower document number. Answers of engine
            hybrid have `sides`.

        Raises:
            ConfigError: The dimensions differ, or `k`, the engine, the quality, `only` or `filters` is not valid. Or the engine needs
                lexical postings or texts, and the index or the queries have none.
            IncompatibleError: The scorer weighs query tokens, and the queries have no weights.
        """
        queries = check_embeddings("queries", queries)
        k = whole_number("k", k, 1, MAX_K)
        allowed = self._allowed(only, filters)
        if not self.manifest.contract.has_passages:
            return self._ranked(queries, k, engine, quality, allowed)
        return by_document(
            lambda depth: self._ranked(queries, depth, engine, quality, allowed), lambda top: self.parents(top.documents).tolist(), k
        )

    def _ranked(self, queries: TokenEmbeddings, k: int, engine: str | EngineConfig, quality: str, allowed: np.ndarray | None) -> list[TopK]:
        """Return the k best rows for each query, which are passages if the index has passages."""
        size = min(BATCH_QUERIES, max(self.kernels.queries_together, -(-len(queries) // num_cores())))
        batches = [queries.slice(start, min(start + size, len(queries))) for start in range(0, len(queries), size)]
        # Several batches run on one core each; a single batch uses all cores.
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
        """Ascending numbers of the documents that a search may return; None for all live documents."""
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
        """Return the numbers of the live documents that pass the filters: [N] int64, ascending.

        A field that no document has is logged as a warning.

        Raises:
            ConfigError: The filters are not valid.
        """
        filters = Filters.of(filters)
        for warning in unknown_field_warnings(unknown_fields(self.shards, filters)):
            logger.warning("%s", warning)
        return matching(self.shards, filters)

    def documents(self, numbers: Iterable[int] | np.ndarray) -> list[dict[str, Any]]:
        """Return the documents with these numbers, in the same order.

        Returns:
            For each document a dict with the strings doc_id, title and text, and the dict metadata. For a passage, the text is that of
            the passage, and `passage` is a dict with its first character (`start`) and end in the document's text.

        Raises:
            ConfigError: A number is not in the index.
            FormatError: The metadata of a document is not a JSON object.
        """
        numbers = number_list("numbers", numbers, self.manifest.num_numbers)
        found: dict[int, dict[str, Any]] = {}
        for shard, owned in self._by_shard(numbers):
            rows: list[dict[str, Any]] = list(documents_file.rows(shard.documents, owned - shard.first_document))
            if shard.windows is not None and shard.of_passages:
                for row, (_, first, end) in zip(rows, shard.windows[owned - shard.first_document].tolist(), strict=True):
                    row["passage"] = dict(zip(("start", "end"), span_in_text(row["title"], first, end), strict=True))
            found.update(zip(owned.tolist(), ({**row, "metadata": from_json(row["metadata"], row["doc_id"])} for row in rows), strict=True))
        return [found[number] for number in numbers.tolist()]

    def parents(self, numbers: Iterable[int] | np.ndarray) -> np.ndarray:
        """Return the number of the first passage of each passage's document, [N] int64; the numbers themselves without passages.

        Raises:
            ConfigError: A number is not in the index.
        """
        numbers = number_list("numbers", numbers, self.manifest.num_numbers)
        found = numbers.copy()
        for shard, owned in self._by_shard(numbers):
            inside = np.isin(numbers, owned)
            found[inside] = shard.first_document + shard.parents[numbers[inside] - shard.first_document]
        return found

    def passages_of(self, number: int) -> np.ndarray:
        """Return the numbers of all passages of the document of a passage, [P] int64; only the number without passages.

        Raises:
            ConfigError: The number is not in the index.
        """
        [parent] = self.parents([number])
        [(shard, _)] = self._by_shard(np.array([parent]))
        return shard.first_document + shard.passages_of(int(parent) - shard.first_document)

    def whole_document(self, number: int) -> dict[str, Any]:
        """Return a document as `documents` does, with its whole text also if the index has passages.

        Args:
            number: Number of the document, or of one of its passages.

        Raises:
            ConfigError: The number is not in the index.
            FormatError: The metadata of the document is not a JSON object.
        """
        [parent] = self.parents([number])
        [(shard, _)] = self._by_shard(np.array([parent]))
        row = shard.whole_row(int(parent) - shard.first_document)
        return {**row, "metadata": from_json(row["metadata"], row["doc_id"])}

    def doc_ids(self, numbers: Iterable[int] | np.ndarray) -> list[str]:
        """Return the ids of the documents with these numbers, in the same order.

        Raises:
            ConfigError: A number is not in the index.
        """
        numbers = number_list("numbers", numbers, self.manifest.num_numbers)
        found: dict[int, str] = {}
        for shard, owned in self._by_shard(numbers):
            found.update(zip(owned.tolist(), documents_file.column(shard.documents, "doc_id", owned - shard.first_document), strict=True))
        return [found[number] for number in numbers.tolist()]

    def find(self, doc_ids: Iterable[str]) -> dict[str, int]:
        """Return the numbers of documents by id; in an index of passages, of the first passage of each.

        Ids that the index does not hold, or that are deleted, are left out.
        """
        doc_ids = id_set("doc_ids", doc_ids)
        return {doc_id: shard.first_document + row for shard in self.shards for doc_id, row in shard.find(doc_ids).items()}

    def _by_shard(self, numbers: np.ndarray) -> list[tuple[IndexShard, np.ndarray]]:
        spans = [(shard, numbers >= shard.first_document, numbers < shard.first_document + shard.num_docs) for shard in self.shards]
        return [(shard, numbers[low & high]) for shard, low, high in spans if (low & high).any()]


def matching(shards: Sequence[IndexShard], filters: Filters) -> np.ndarray:
    """Return the numbers of the live documents of some shards that pass the filters: [N] int64, ascending."""
    return np.concatenate([np.zeros(0, np.int64), *(shard.first_document + shard.matching(filters) for shard in shards)])


def unknown_fields(shards: Sequence[IndexShard], filters: Filters) -> dict[str, frozenset[str]]:
    """Return the filter fields that no document of these shards has, each with the field names that do occur."""
    return common_unknown_fields([shard.unknown_fields(filters) for shard in shards])


def common_unknown_fields(parts: Sequence[Mapping[str, frozenset[str]]]) -> dict[str, frozenset[str]]:
    """Return the filter fields that are unknown in every part of an index, each with the field names that occur in any part."""
    common = set.intersection(*map(set, parts)) if parts else set()
    return {field: frozenset().union(*(part[field] for part in parts)) for field in (parts[0] if parts else ()) if field in common}


def open_shards(
    root: str,
    manifest: IndexManifest,
    entries: Sequence[ShardEntry] | None = None,
    verify: bool = False,
    opened: Mapping[str, IndexShard] = MappingProxyType({}),
    on_disk: bool = False,
) -> tuple[IndexShard, ...]:
    """Return shards of an index with memory-mapped arrays.

    Args:
        root: Folder of the index.
        manifest: Manifest of the version.
        entries: Manifest entries of the shards to open; None for all shards.
        verify: Compare the digests of the files with the manifest.
        opened: Shards that are open for other versions, by name; they are not read again.
        on_disk: Whether residuals stay on the disk (index/residency.py).

    Raises:
        FormatError: A file is missing or truncated, or, with `verify`, differs from its digest.
    """
    entries = manifest.shards if entries is None else entries
    return tuple(open_shard(root, entry, manifest, verify, opened.get(entry.name), on_disk) for entry in entries)


def _split(queries: TokenEmbeddings, scorer: SearchScorer, codec: ResidualCodec, kernels: Kernels) -> list[Query]:
    """Rotated queries with vectors of unit length. The original lengths become factors of the weights, so that score tables hold cosines at
    any scale of the encoder. For a scorer that requires unit vectors, vectors are not normalized."""
    weights = np.ones(queries.num_tokens, np.float32) if queries.weights is None else queries.weights.astype(np.float32)
    norms = np.ones_like(weights) if scorer.requires_unit_vectors else kept_norms(queries.values)
    vectors = directions(queries.values, norms)
    split: list[Query] = []
    for first, end in zip(queries.offsets[:-1], queries.offsets[1:], strict=True):
        lengths = norms[first:end]
        query_norms = None if (lengths == 1).all() else lengths
        text = None if queries.texts is None else queries.texts[len(split)]
        split.append(Query(codec.rotate(vectors[first:end], kernels), weights[first:end] * lengths, query_norms, text))
    return split
