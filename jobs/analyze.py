"""Runs the analyses of the papers on one or more indexes and a data set: numbers as JSON, figures as PNG and SVG."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, canonical_json
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import is_installed, missing_message, require
from ray_lir.corpus.datasets import Dataset, has_queries_as_documents, load_dataset
from ray_lir.evaluation import metrics
from ray_lir.evaluation.analyses import ANALYSES, Analysis, AnalysisSettings
from ray_lir.evaluation.analyses.analysis import Numbers
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.storage.concurrent_writes import OutputFile

from .analyzed_index import AnalyzedIndex
from .cli import main
from .query_search import QueryEncoderConfig, QuerySearch

logger = logging.getLogger(__name__)

FIGURES = ("png", "svg")
STYLE: dict[str, Any] = {
    "svg.hashsalt": "ray_lir",  # equal numbers give equal files
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "text.parse_math": False,  # a $ in a query or a name is a $
}
SIZE = (10, 4.5)
"""Width and height of a figure, in inches."""


class AnalyzeConfig(Config):
    """Runs the analyses of the papers on one or more indexes and the judged queries of a data set.

    Each analysis writes its numbers as JSON, and a figure as PNG and SVG that shows all indexes side by side. The analyses:
    k_prime, score_distribution, token_retrieval, geometry, candidates, token_weights, query_length, cost, candidate_recall, relations,
    attention. docs/papers.md lists the figure or table that each reproduces. An index on a local disk is needed.
    """

    index: str | tuple[str, ...]
    """Folder of an index, or several, separated by commas. NAME=FOLDER gives an index a name for the figures."""
    dataset: str
    """Folder or URL of a collection (BEIR, LoTTE, MS MARCO), a name to download, or ir_datasets:ID."""
    split: str = "test"
    """Split of the judgements."""
    embeddings: str | tuple[str, ...] = ()
    """Folders of the embeddings that the indexes were built from, separated by commas, in the order of --index. The analyses
    score_distribution, token_retrieval, geometry and k_prime then use the original vectors, not the decompressed ones."""
    output: str
    """Local folder for the results."""
    analyses: str = "all"
    """Names of analyses, separated by commas. all: every analysis that the index has the data for."""
    num_queries: int | None = Field(default=None, ge=1)
    """Number of judged queries to analyze, a random sample. None: all."""
    query_length: int | None = Field(default=None, ge=3)
    """Query length in tokens. None: the index's."""
    ignore_identical_ids: bool | Literal["auto"] = "auto"
    """Leave out hits with the id of their query: yes, no, or auto (only for ArguAna and Quora, as BEIR does)."""
    analysis: AnalysisSettings = AnalysisSettings()
    encoder: QueryEncoderConfig = QueryEncoderConfig()
    overwrite: bool = False
    """Replace existing results in the output folder."""


def analyze(config: AnalyzeConfig) -> dict[str, Any]:
    """Run the analyses, and write numbers and figures.

    Returns:
        The folder, the files of each analysis, and the reason why an analysis was left out for an index.

    Raises:
        ConfigError: A path, a name or a setting is wrong, the index holds no judged document, or an analysis that is named lacks data.
        FormatError: An index or the data set is damaged.
        IncompatibleError: The encoder is not the one that an index was built with.
    """
    require("ir_measures", "measuring a run")
    names = _names(config.analyses)
    settings = config.analysis.model_copy(update={"measure": _measure(config.analysis.measure)})
    folder = storage.local_output(config.output)
    outputs = {name: OutputFile.check(str(folder / f"{name}.json"), "--output", config.overwrite) for name in names}
    dataset = _sampled(load_dataset(config.dataset, config.split), config)
    places = _places(config.index)
    originals = _originals(config.embeddings, len(places))
    models = {name: _open(config, place, dataset, own) for (name, place), own in zip(places.items(), originals, strict=True)}
    skipped = {name: _left_out(name, models, settings, config.analyses != "all") for name in names}
    files: dict[str, list[str]] = {}
    for name in names:
        analysis, reasons = ANALYSES[name], skipped[name]
        if len(reasons) == len(models):
            continue
        with logs.phase(name):
            results = {model: analysis.run(index, settings) for model, index in models.items() if model not in reasons}
        outputs[name].write(canonical_json(_report(analysis, dataset, settings, results, reasons)))
        files[name] = [f"{name}.json", *_draw(analysis, results, folder, name)]
    return {
        "output": str(folder),
        "dataset": dataset.name,
        "split": dataset.split,
        "queries": len(dataset.queries),
        "models": {name: model.scorer for name, model in models.items()},
        "analyses": files,
        "left_out": {name: reasons for name, reasons in skipped.items() if reasons},
    }


def _names(text: str) -> list[str]:
    """The names of the requested analyses."""
    names = list(ANALYSES) if text == "all" else [each.strip() for each in text.split(",") if each.strip()]
    unknown = [name for name in names if name not in ANALYSES]
    if unknown or not names:
        raise ConfigError(f"no analysis {unknown[0] if unknown else text!r}; the analyses are {', '.join(ANALYSES)}")
    return list(dict.fromkeys(names))


def _measure(text: str) -> str:
    measures = metrics.parse_measures(text)
    if len(measures) != 1:
        raise ConfigError(f"--analysis.measure must name one measure, and it is {text!r}")
    return measures[0]


def _places(index: str | tuple[str, ...]) -> dict[str, str]:
    """The folder of each index by its name."""
    places = [index] if isinstance(index, str) and storage.is_folder(index) else index.split(",") if isinstance(index, str) else index
    found: dict[str, str] = {}
    for place in (each.strip() for each in places):
        name, equals, path = place.partition("=")
        if not name or not equals or storage.is_folder(place):
            name, path = storage.base_name(place), place
        if name in found:
            raise ConfigError(f"two indexes have the name {name!r}; give them names: --index first={found[name]},second={path}")
        found[name] = path
    return found


def _originals(embeddings: str | tuple[str, ...], count: int) -> Sequence[str | None]:
    """The embeddings of each index."""
    folders = [each.strip() for each in (embeddings.split(",") if isinstance(embeddings, str) else embeddings)]
    if folders and len(folders) != count:
        raise ConfigError(f"--embeddings names {len(folders)} folders for {count} indexes; name one for each, or none")
    return folders or [None] * count


def _sampled(dataset: Dataset, config: AnalyzeConfig) -> Dataset:
    """The data set with a sample of its queries."""
    ids = list(dataset.queries)
    if config.num_queries is None or config.num_queries >= len(ids):
        return dataset
    chosen = np.sort(np.random.default_rng(config.analysis.seed).permutation(len(ids))[: config.num_queries])
    queries = {ids[number]: dataset.queries[ids[number]] for number in chosen.tolist()}
    return replace(dataset, queries=queries, qrels={query_id: dataset.qrels[query_id] for query_id in queries})


def _open(config: AnalyzeConfig, place: str, dataset: Dataset, original: str | None) -> AnalyzedIndex:
    search = QuerySearch.open(place, config.encoder, None, config.query_length)
    ignores = has_queries_as_documents(dataset.name) if config.ignore_identical_ids == "auto" else config.ignore_identical_ids
    check_coverage(dataset.qrels, search.present(judged_documents(dataset.qrels)), f"{dataset.name}/{dataset.split}", place)
    return AnalyzedIndex(search, dataset, ignores, original)


def _left_out(name: str, models: Mapping[str, AnalyzedIndex], settings: AnalysisSettings, is_named: bool) -> dict[str, str]:
    """The reason of each model that an analysis leaves out. An analysis that is named must be possible for a model."""
    reasons = {model: reason for model, index in models.items() if (reason := ANALYSES[name].missing(index, settings))}
    if len(reasons) == len(models) and is_named:
        raise ConfigError(f"the analysis {name} is not possible: {next(iter(reasons.values()))}")
    for model, reason in reasons.items():
        logger.info("analyze: %s is left out for %s: %s", name, model, reason)
    return reasons


def _report(
    analysis: Analysis, dataset: Dataset, settings: AnalysisSettings, results: Mapping[str, Numbers], reasons: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "title": analysis.title,
        "source": analysis.source,
        "dataset": dataset.name,
        "split": dataset.split,
        "queries": len(dataset.queries),
        "settings": settings.model_dump(mode="json"),
        "models": dict(results),
        "left_out": dict(reasons),
    }


def _draw(analysis: Analysis, results: Mapping[str, Numbers], folder: Path, name: str) -> list[str]:
    """Write the figure in each format; return the names of the files. Without matplotlib there are none."""
    if not is_installed("matplotlib"):
        logger.warning("analyze: no figures: %s", missing_message("matplotlib", "drawing"))
        return []
    import matplotlib  # takes a second to load
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, STYLE)):
        figure = Figure(figsize=SIZE, layout="constrained")
        # Legends leave out labels that begin with _.
        analysis.draw(figure, {f" {model}" if model.startswith("_") else model: found for model, found in results.items()})
        figure.suptitle(f"{analysis.title} ({analysis.source})", fontsize=11)
        for suffix in FIGURES:
            figure.savefig(folder / f"{name}.{suffix}", metadata={"Date": None} if suffix == "svg" else None)
    return [f"{name}.{suffix}" for suffix in FIGURES]


if __name__ == "__main__":
    main(AnalyzeConfig, analyze)
