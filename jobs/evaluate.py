"""Measures the quality and latency of an index on the judged queries of one or more data sets."""

import logging
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, create_model

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, canonical_json, digest
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.corpus.datasets import Dataset, has_queries_as_documents, load_datasets
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.engines import ENGINES
from ray_lir.engines.params import EngineConfig
from ray_lir.evaluation import metrics
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.evaluation.latency import percentiles_ms, time_each
from ray_lir.evaluation.runs import check_ids, format_run, read_tag
from ray_lir.index.manifest import IndexManifest
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import manifest_digest

from .cli import main
from .dataset_search import fill, search_dataset
from .query_search import QueryEncoderConfig, QuerySearch

logger = logging.getLogger(__name__)


class EvaluateFields(Config):
    """Measures the quality of an index (measures of ir-measures) and its latency. On request it writes the run as a TREC file.

    The job runs in this process. With a --workers flag, or if the index is on an object store, it searches on a Ray cluster.

    With several data sets, the result has the mean of each measure over the data sets, the mean weighted by their queries, and the result
    of each. {dataset} in --index, --run and --per_query stands for the name of each data set, and {collection} for that of its corpus.
    """

    index: str
    """Folder or URL of the index."""
    dataset: str | tuple[str, ...]
    """Folder or URL of a collection (BEIR, LoTTE, MS MARCO), a name to download, or ir_datasets:ID. Several are separated by commas. A
    folder of collections, such as CQADupStack, gives each of its parts."""
    split: str = "test"
    """Split of the judgements: qrels/SPLIT.tsv. LoTTE: test, test.search or test.forum. TREC Deep Learning: dl19 or dl20."""
    query_length: int | None = Field(default=None, ge=3)
    """Query length in tokens. None: the index's."""
    query_lengths: dict[str, Annotated[int, Field(ge=3)]] = {}
    """Query length of single data sets by name, such as {arguana: 300}; it overrides query_length. The recipes evaluate_*.yaml hold those
    of the papers."""
    engine: str = "auto"
    """auto, or one of the engines below. Their parameters are fields too, such as --warp.nprobe 64."""
    quality: Literal["fast", "balanced", "exact"] = "balanced"
    """For the engine auto: how closely it must follow the exact ranking."""
    k: int = Field(default=100, ge=1)
    """Documents to find for each query. Default measures with a larger cutoff are left out. Without --k, the largest cutoff of
    --measures counts if it is above 100."""
    measures: str = ""
    """Further measures, in the notation of ir-measures: "nDCG@10 R@1000 RR@10 Success@5 AP Judged@10". The default measures, nDCG@10,
    RR@10, Success@5, R@10 and R@100, are always reported."""
    ignore_identical_ids: bool | Literal["auto"] = "auto"
    """Leave out hits with the id of their query: yes, no, or auto (only for ArguAna and Quora, as BEIR does)."""
    run: str | None = None
    """File for the run, in TREC format. An existing file is replaced only if it is a run of this configuration."""
    per_query: str | None = None
    """File for the measures of each query, as JSON."""
    overwrite: bool = False
    """Replace existing files at --run and --per_query."""
    latency_queries: int = Field(default=20, ge=0)
    """Number of queries, spread over the split, to measure latency with, one at a time, in this process. 0: measure no latency."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()
    workers: SearchWorkers = SearchWorkers()


_ENGINE_FIELDS: dict[str, Any] = {name: (engine.params, engine.params()) for name, engine in ENGINES.items()}
EvaluateConfig = create_model("EvaluateConfig", __base__=EvaluateFields, __doc__=EvaluateFields.__doc__, **_ENGINE_FIELDS)
"""The job's fields and, under each engine's name, that engine's parameters."""


def evaluate(config: EvaluateFields) -> dict[str, Any]:
    """Search for every judged query and measure the results.

    Returns:
        Measures by their ir-measures names, settings, sizes of the index, and latency percentiles in milliseconds. With several data sets:
        means over the data sets, weighted_means over the queries, and in datasets the result of each.

    Raises:
        ConfigError: The engine, a measure, the dataset, the split or a path is wrong. Or the index holds no judged document, an
            output cannot be written, or the run format cannot hold an id. Nothing was searched.
        Conflict: Another job wrote an output file at the same time.
        FormatError: The index or the dataset is damaged.
        IncompatibleError: The encoder is not the one that the index was built with.
    """
    require("ir_measures", "measuring a run")
    measures = _measures(config)
    config = config.model_copy(update={"k": _depth(config, measures)})
    datasets = load_datasets(config.dataset, config.split)
    check_names(config.query_lengths, datasets)
    if len(datasets) == 1:
        return _evaluate(config, datasets[0], measures, {})
    _check_places(config, datasets)
    searches: dict[tuple[str, int | None], QuerySearch] = {}
    for dataset in datasets:  # a missing index is found before the first search
        _open(config, dataset, searches)
    results = {dataset.name: _evaluate(config, dataset, measures, searches) for dataset in datasets}
    return {
        "dataset": list(results),
        "split": config.split,
        "queries": sum(result["queries"] for result in results.values()),
        **_means(results, dict.fromkeys(results, 1)),
        "weighted_means": _means(results, {name: result["queries"] for name, result in results.items()}),
        "k": config.k,
        "datasets": results,
    }


def check_names(lengths: Mapping[str, int], datasets: Sequence[Dataset]) -> None:
    """Log a warning if a query length is given for a data set that is not evaluated.

    Args:
        lengths: Name of a data set -> query length.
        datasets: The data sets.
    """
    unused = [name for name in lengths if all(name not in (dataset.name, dataset.collection) for dataset in datasets)]
    if unused and len(unused) == len(lengths):
        logger.warning("evaluate: query_lengths names %s, and the data sets are %s", ", ".join(unused), [each.name for each in datasets])


def _check_places(config: EvaluateFields, datasets: Sequence[Dataset]) -> None:
    """Check that several data sets do not write to one file."""
    for name in ("run", "per_query"):
        path = getattr(config, name)
        if path and len({fill(path, dataset) for dataset in datasets}) < len(datasets):
            raise ConfigError(f"--{name} {path} is one file for {len(datasets)} data sets; put {{dataset}} into its name")


def _means(results: Mapping[str, dict[str, Any]], weights: Mapping[str, int]) -> dict[str, float]:
    """The mean of each measure that all data sets have."""
    first, *others = results.values()
    names = [name for name in first["measures"] if all(name in other["measures"] for other in others)]
    total = sum(weights.values())
    return {name: sum(results[each][name] * weight for each, weight in weights.items()) / total for name in names}


def _evaluate(
    config: EvaluateFields, dataset: Dataset, measures: tuple[str, ...], searches: dict[tuple[str, int | None], QuerySearch]
) -> dict[str, Any]:
    """Evaluate one data set."""
    search, length = _open(config, dataset, searches)
    paths = {name: fill(path, dataset) for name in ("index", "run", "per_query") if (path := getattr(config, name))}
    config = config.model_copy(update=paths)
    engine = search.engine(_engine(config), config.k, config.quality)
    ignores = has_queries_as_documents(dataset.name) if config.ignore_identical_ids == "auto" else config.ignore_identical_ids
    tag = _tag(config, search.manifest, dataset, engine, ignores, length)
    with search.session():
        present = search.present(judged_documents(dataset.qrels), check=config.run is not None)
        coverage = check_coverage(dataset.qrels, present, f"{dataset.name}/{dataset.split}", config.index)
        outputs = _check_outputs(config, dataset, tag)
        run, identical, answers = search_dataset(search, dataset, engine, config.k, ignores)
    with logs.phase("measure") as record:  # logged, so that the measures survive if an output cannot be written
        values = metrics.evaluate(run, dataset.qrels, tuple(dict.fromkeys((*metrics.measures_up_to(config.k), *measures))))
        record.update(metrics.means(values))
    if "run" in outputs:
        outputs["run"].write(format_run(run, tag))
    if "per_query" in outputs:
        by_query = {query_id: {name: values[name][query_id] for name in values} for query_id in dataset.queries}
        outputs["per_query"].write(canonical_json(by_query))
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "queries": len(dataset.queries),
        **metrics.means(values),
        "measures": list(values),
        "query_length": search.query_length,
        "k": config.k,
        "ignore_identical_ids": ignores,
        "identical_ids_dropped": identical if ignores else 0,
        **coverage.counts(),
        "engine": engine.engine,
        "params": _summary([answer.params for answer in answers if answer.params]),
        "index": {
            "path": config.index,
            "version": search.version,
            "manifest": manifest_digest(search.manifest),
            **_sizes(search.manifest),
        },
        "encoder": {"checkpoint": search.manifest.contract.checkpoint, "fingerprint": search.manifest.contract.fingerprint},
        **_latency(config, search, dataset, engine),
    }


def _open(config: EvaluateFields, dataset: Dataset, searches: dict[tuple[str, int | None], QuerySearch]) -> tuple[QuerySearch, int | None]:
    """The index of a data set and its query length. `searches` holds the indexes that are open, by path and query length."""
    index = fill(config.index, dataset)
    length = config.query_lengths.get(dataset.name, config.query_lengths.get(dataset.collection, config.query_length))
    if (index, length) not in searches:
        workers = config.workers if "workers" in config.model_fields_set else None
        searches[index, length] = QuerySearch.open(index, config.encoder, workers, length)
    return searches[index, length], length


def _measures(config: EvaluateFields) -> tuple[str, ...]:
    """The names of the requested measures. Raises ConfigError if --k is below the cutoff of one of them."""
    measures = metrics.parse_measures(config.measures)
    deepest = max(measures, key=metrics.cutoff, default=None)
    if deepest and "k" in config.model_fields_set and metrics.cutoff(deepest) > config.k:
        raise ConfigError(f"{deepest} needs {metrics.cutoff(deepest)} hits a query, but --k is {config.k}; raise --k or leave it out")
    return measures


def _depth(config: EvaluateFields, measures: tuple[str, ...]) -> int:
    """The number of hits a query: `k`, or the largest cutoff of the requested measures."""
    return max(config.k, *map(metrics.cutoff, measures), 0)


def _engine(config: EvaluateFields) -> str | EngineConfig:
    """The engine's parameters if any of them is set, else the engine's name."""
    set_engines = [name for name in ENGINES if name in config.model_fields_set]
    if not set_engines:
        return config.engine
    if set_engines != [config.engine]:
        other = next(name for name in set_engines if name != config.engine)
        raise ConfigError(f"--{other}.* is set, but the engine is {config.engine}; add --engine {other}, or remove --{other}.*")
    return getattr(config, config.engine)


def _tag(config: EvaluateFields, manifest: IndexManifest, dataset: Dataset, engine: EngineConfig, ignores: bool, length: int | None) -> str:
    """The run's tag, with a digest of everything that determines its content."""
    settings = {
        "index": manifest_digest(manifest),
        "queries": dataset.queries,
        **({"query_length": length} if length else {}),
        "engine": engine.model_dump(mode="json"),
        "k": config.k,
        "ignores": ignores,
        "encoder": config.encoder.model_dump(mode="json"),
    }
    return f"ray_lir-{engine.engine}-{digest(settings)[:12]}"


def _check_outputs(config: EvaluateFields, dataset: Dataset, tag: str) -> dict[str, OutputFile]:
    """The output files by the names of their flags, checked before the search."""
    outputs = {}
    if config.run:
        check_ids(dataset.queries, "query")
        same = not config.overwrite and storage.exists(config.run) and not storage.is_folder(config.run) and read_tag(config.run) == tag
        if same:
            logger.info("%s is a run of this configuration and will be replaced", config.run)
        outputs["run"] = OutputFile.check(config.run, "--run", config.overwrite or same)
    if config.per_query:
        outputs["per_query"] = OutputFile.check(config.per_query, "--per_query", config.overwrite)
    if len({output.url for output in outputs.values()}) < len(outputs):
        raise ConfigError(f"--run and --per_query name the same file {config.run}; give two files")
    return outputs


def _latency(config: EvaluateFields, search: QuerySearch, dataset: Dataset, engine: EngineConfig) -> dict[str, Any]:
    """Percentiles of the milliseconds of searching and of encoding one query in this process. None if latency_queries is 0, or, with the
    reason, if the index is not on a disk of this machine."""
    if not config.latency_queries:
        return {"latency_ms": None}
    searcher = search.searcher
    if searcher is None:
        return {"latency_ms": None, "latency_reason": "the index is on an object store; latency is measured on a copy on a local disk"}
    texts = list(dataset.queries.values())
    chosen = [texts[i] for i in np.unique(np.linspace(0, len(texts) - 1, min(config.latency_queries, len(texts))).astype(int))]
    queries = search.encoder.encode_queries(chosen)
    searching = time_each(lambda i: searcher.search(queries.slice(i, i + 1), config.k, engine), range(len(chosen)))
    encoding = time_each(lambda text: search.encoder.encode_queries([text]), chosen)
    return {
        "latency_ms": {
            "search": percentiles_ms(searching),
            "encode": percentiles_ms(encoding),
            "queries": len(chosen),
            "kernels": searcher.kernels.name,
        }
    }


def _summary(params: list[EngineConfig]) -> dict[str, Any]:
    """The parameters used. A parameter that differed between queries is listed as [smallest, largest]."""
    values = {name: [getattr(each, name) for each in params] for name in type(params[0]).model_fields if name != "engine"}
    return {name: each[0] if len(set(each)) == 1 else [min(each), max(each)] for name, each in values.items()}


def _sizes(manifest: IndexManifest) -> dict[str, int]:
    return {
        "num_docs": manifest.num_documents,
        "num_tokens": manifest.num_tokens,
        "num_shards": len(manifest.shards),
        "nbits": manifest.nbits,
    }


if __name__ == "__main__":
    main(EvaluateConfig, evaluate)
