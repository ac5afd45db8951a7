"""Compares two runs, or two indexes, on the judged queries of data sets: difference, interval, and tests of difference and equivalence."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import Field

from ray_lir import storage
from ray_lir.base.config import Config, canonical_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.corpus.datasets import Dataset, document_ids, has_queries_as_documents, load_datasets
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.engines import ENGINES
from ray_lir.evaluation import metrics
from ray_lir.evaluation.comparisons import compare_measures
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.evaluation.runs import Run, read_run
from ray_lir.search.bulk import read_hits
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import MANIFEST

from .cli import main, show_fields
from .dataset_search import fill, search_dataset
from .query_search import QueryEncoderConfig, QuerySearch

logger = logging.getLogger(__name__)

COLUMNS = ("measure", "first", "second", "difference", "interval", "p (Holm)", "equivalence p", "verdict")


class CompareConfig(Config):
    """Compares two runs, or two indexes, on the judged queries of one or more data sets.

    Each of FIRST and SECOND is a run file (TREC format or Parquet), the output folder of `search --queries`, or the folder of an index. The
    result lists, for each measure: both means, the difference (second - first) with its confidence interval, the p value of a paired
    randomisation test, and the p value of an equivalence test. p values are corrected by Holm's method for the number of measures. A
    difference that is not significant is called undecided; only the equivalence test can show that two runs agree.
    """

    first: str
    """A run file, a folder of hits or an index. With several data sets, {dataset} in the path stands for the name of each, and
    {collection} for the name of its corpus."""
    second: str
    """The run or index that is compared with the first one."""
    dataset: str | tuple[str, ...]
    """Data set: a folder, URL or name; or several, separated by commas. Several count alike, whatever their number of queries."""
    split: str = "test"
    """Split of the judgements."""
    measures: str = "nDCG@10 R@100"
    """Measures to compare, in the notation of ir-measures."""
    margin: float = Field(default=0.01, gt=0)
    """The largest difference that counts as equivalent."""
    alpha: float = Field(default=0.05, gt=0, lt=0.5)
    """Level of the tests. The interval has confidence 1 - alpha."""
    resamples: int = Field(default=10_000, ge=100)
    """Sign vectors of the randomisation test, and resamples of the bootstrap."""
    seed: int = 0
    """Seed of both."""
    ignore_identical_ids: bool | Literal["auto"] = "auto"
    """Leave out hits with the id of their query: yes, no, or auto (only for ArguAna and Quora, as BEIR does)."""
    check_documents: bool = True
    """Check that the corpus of the data set holds every document of a run. This reads the ids of the whole corpus."""
    k: int | None = Field(default=None, ge=1)
    """For an index: documents to find for each query. None: the largest cutoff of the measures, and at least 100."""
    engine: str = "auto"
    """For an index: auto, or the name of an engine."""
    second_engine: str | None = None
    """For the second index: another engine, so that one index can be compared under two engines. None: `engine`."""
    quality: Literal["fast", "balanced", "exact"] = "balanced"
    """For the engine auto: how closely it must follow the exact ranking."""
    output: str | None = None
    """File for the result with the measures of each query, as JSON."""
    overwrite: bool = False
    """Replace an existing file at --output."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()
    workers: SearchWorkers = SearchWorkers()


@dataclass(frozen=True)
class Side:
    """One of the two compared systems.

    Attributes:
        values: Measures of every query, one entry per data set.
        about: What was read or searched, for the result.
    """

    values: list[metrics.PerQuery]
    about: dict[str, Any]


def compare(config: CompareConfig) -> dict[str, Any]:
    """Compare two runs or indexes, and return both means, the difference and the tests of each measure.

    Raises:
        ConfigError: A path, a measure, the split or a setting is wrong, or a run holds documents or queries of another collection.
        FormatError: A run, an index or a data set is damaged.
        IncompatibleError: The encoder is not the one that an index was built with.

    Source: docs/algorithms.md#83-significance
    """
    require("ir_measures", "measuring a run")
    names = metrics.parse_measures(config.measures)
    if not names:
        raise ConfigError("--measures names no measure; give one or more, such as nDCG@10")
    output = OutputFile.check(config.output, "--output", config.overwrite) if config.output else None
    datasets = load_datasets(config.dataset, config.split)
    places = {name: _places(path, name, datasets) for name, path in (("first", config.first), ("second", config.second))}
    _check_engines(config, places)
    sides = {name: _measure(config, name, places[name], datasets, names) for name in places}
    first, second = sides["first"], sides["second"]
    found = compare_measures(first.values, second.values, config.margin, config.alpha, config.resamples, config.seed)
    result = {
        "dataset": datasets[0].name if len(datasets) == 1 else [dataset.name for dataset in datasets],
        "split": config.split,
        "queries": sum(len(dataset.queries) for dataset in datasets),
        "first": first.about,
        "second": second.about,
        "margin": config.margin,
        "alpha": config.alpha,
        "resamples": config.resamples,
        "seed": config.seed,
        "measures": {name: each.fields() for name, each in found.items()},
    }
    if len(datasets) > 1:
        result["datasets"] = {dataset.name: _by_dataset(first, second, number) for number, dataset in enumerate(datasets)}
    if output:
        per_query = [
            {name: {query_id: [one[name][query_id], other[name][query_id]] for query_id in one[name]} for name in one}
            for one, other in zip(first.values, second.values, strict=True)
        ]
        output.write(canonical_json({**result, "per_query": dict(zip((each.name for each in datasets), per_query, strict=True))}))
    return result


def show(result: dict[str, Any], _: CompareConfig) -> None:
    """Print the comparison as a table."""
    show_fields({name: result[name] for name in ("dataset", "queries", "first", "second", "margin")})
    rows = [COLUMNS] + [
        (
            name,
            f"{each['first']:.4f}",
            f"{each['second']:.4f}",
            f"{each['difference']:+.4f}",
            "[" + ", ".join("none" if end is None else f"{end:+.4f}" for end in each["interval"]) + "]",
            f"{each['p_holm']:.4f}",
            f"{each['equivalence_p_holm']:.4f}",
            each["verdict"],
        )
        for name, each in result["measures"].items()
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())


def _places(path: str, name: str, datasets: list[Dataset]) -> list[str]:
    """The path of the run or index of each data set."""
    places = [fill(path, dataset) for dataset in datasets]
    for place in places:
        if not storage.exists(place):
            raise ConfigError(f"--{name}: there is no run and no index at {place}; check the path")
    return places


def _is_index(place: str) -> bool:
    return storage.is_folder(place) and not storage.exists(storage.join(place, MANIFEST))


def _check_engines(config: CompareConfig, places: Mapping[str, list[str]]) -> None:
    for engine in (config.engine, config.second_engine):
        if engine not in (None, "auto", *ENGINES):
            raise ConfigError(f"unknown engine {engine!r}; the engines are auto, {', '.join(ENGINES)}")
    if config.second_engine and not _is_index(places["second"][0]):
        raise ConfigError(f"--second_engine is set, but {config.second} is a run and not an index; leave it out")


def _measure(config: CompareConfig, name: str, places: list[str], datasets: list[Dataset], names: tuple[str, ...]) -> Side:
    """Read or search the runs of one side, and measure them."""
    values, absent, cut = [], 0, 0
    about: dict[str, Any] = {"path": getattr(config, name), "kind": "index" if _is_index(places[0]) else "run"}
    for place, dataset in zip(places, datasets, strict=True):
        ignores = has_queries_as_documents(dataset.name) if config.ignore_identical_ids == "auto" else config.ignore_identical_ids
        if _is_index(place):
            engine = (config.second_engine if name == "second" else None) or config.engine
            run, about["engine"] = _search(config, place, dataset, engine, ignores, names)
        else:
            run = _read(place)
            _check_run(run, place, dataset, config.check_documents)
            run = metrics.without_identical_ids(run) if ignores else run
            cut += _warn_of_cut_runs(run, place, dataset, names)
        absent += sum(not run.get(query_id) for query_id in dataset.queries)
        values.append(metrics.evaluate(run, dataset.qrels, names))
    if absent:
        logger.warning("compare: %s has no results for %d judged queries; their measures are 0", about["path"], absent)
    return Side(values, {**about, "queries_without_results": absent})


def _search(
    config: CompareConfig, place: str, dataset: Dataset, engine_name: str, ignores: bool, names: tuple[str, ...]
) -> tuple[Run, str]:
    """The run of an index, and the engine's name."""
    search = QuerySearch.open(place, config.encoder, config.workers if "workers" in config.model_fields_set else None)
    deepest = max(map(metrics.cutoff, names))
    k = config.k or max(deepest, 100)
    if k < deepest:
        raise ConfigError(f"a measure needs {deepest} hits a query, but --k is {k}; raise --k or leave it out")
    engine = search.engine(engine_name, k, config.quality)
    with search.session():
        check_coverage(dataset.qrels, search.present(judged_documents(dataset.qrels)), f"{dataset.name}/{dataset.split}", place)
        run, _, _ = search_dataset(search, dataset, engine, k, ignores)
    return run, engine.engine


def _read(place: str) -> Run:
    """The run of a file, or of the output folder of a bulk search."""
    if not storage.is_folder(place):
        return read_run(place)
    run: Run = {}
    for part in read_hits(place).parts:
        run.update(read_run(storage.join(place, part.name)))
    return run


def _check_run(run: Run, place: str, dataset: Dataset, check_documents: bool) -> None:
    """Check that a run and a data set belong to one collection."""
    name = f"{dataset.name}/{dataset.split}"
    if not any(query_id in run for query_id in dataset.qrels):
        example = next(iter(run))
        raise ConfigError(
            f"{place} has results for none of the {len(dataset.qrels)} judged queries of {name} (it has query {example!r}); "
            "give the run and the data set of one collection and split"
        )
    found = {doc_id for query_id in dataset.qrels for doc_id, _ in run.get(query_id, ())}
    unknown = found.difference(judged_documents(dataset.qrels))
    if not check_documents or not unknown:
        return
    known = document_ids(dataset)
    if known is None:
        logger.warning("compare: %s has no corpus, so the documents of %s are not checked", name, place)
        return
    unknown.difference_update(known)
    if unknown:
        raise ConfigError(
            f"{place} lists {len(unknown)} documents that the corpus of {name} lacks (for example {min(unknown)!r}); give the run and the "
            "data set of one collection, or set --check_documents no"
        )


def _warn_of_cut_runs(run: Run, place: str, dataset: Dataset, names: tuple[str, ...]) -> int:
    """Log a warning if no query has as many documents as a measure looks at."""
    deepest, longest = max(map(metrics.cutoff, names)), max(len(run.get(query_id, ())) for query_id in dataset.qrels)
    if longest < deepest:
        logger.warning("compare: %s has at most %d documents a query, and a measure looks at %d", place, longest, deepest)
    return int(longest < deepest)


def _by_dataset(first: Side, second: Side, number: int) -> dict[str, Any]:
    """Both means of each measure on one data set."""
    one, other = metrics.means(first.values[number]), metrics.means(second.values[number])
    return {name: {"first": one[name], "second": other[name], "difference": other[name] - one[name]} for name in one}


if __name__ == "__main__":
    main(CompareConfig, compare, show=show, positional=("first", "second"))
