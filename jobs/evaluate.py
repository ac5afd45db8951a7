"""Measures the quality and latency of an index on the judged queries of a BEIR dataset."""

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, create_model

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, EncoderConfig, canonical_json, digest
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import require
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset, has_queries_as_documents, load_dataset
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.engines import ENGINES, resolve
from ray_lir.engines.plan import TopK
from ray_lir.evaluation import metrics
from ray_lir.evaluation.coverage import check_coverage, judged_documents
from ray_lir.evaluation.latency import percentiles_ms, time_each
from ray_lir.evaluation.runs import Run, check_ids, format_run, read_tag
from ray_lir.index import documents
from ray_lir.index.versions import latest_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import manifest_digest

from .cli import main

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder

logger = logging.getLogger(__name__)

QUERIES_AT_ONCE = 256
"""Queries between two reports of progress."""


class QueryEncoderConfig(Config):
    """Where the weights of the index's encoder lie now, and how they are run; its conventions are the index's."""

    checkpoint: str | None = None
    """Checkpoint folder or name. None: the one that the index was made with."""
    trust_remote_code: bool = False
    """Run Python code that the checkpoint brings (`auto_map` in its config.json) with your rights. Only for checkpoints you have read."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """auto: float16 on a GPU, bfloat16 on a CPU that multiplies it natively, float32 otherwise."""


class EvaluateFields(Config):
    """Evaluates an index: ir-measures and latency percentiles as JSON, and the run as a TREC file on request."""

    index: str
    """Folder of the index."""
    dataset: str
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download."""
    split: str = "test"
    """Which judgements: qrels/SPLIT.tsv."""
    engine: str = "auto"
    """auto, or one of the engines whose parameters are below, such as --warp.nprobe 64."""
    quality: Literal["fast", "balanced", "exact"] = "balanced"
    """For the engine auto: how much of the exact ranking it has to keep."""
    k: int = Field(default=100, ge=1)
    """Documents found for each query; measures that look deeper are left out."""
    ignore_identical_ids: bool | Literal["auto"] = "auto"
    """Leave out hits whose id is the query's own: auto (for ArguAna and Quora, as BEIR does), yes or no."""
    run: str | None = None
    """Writes the run to this file, in TREC format. An existing file is replaced only if it is the run of this configuration."""
    per_query: str | None = None
    """Writes each query's measures to this file, as JSON."""
    overwrite: bool = False
    """Replace the files `run` and `per_query` if they are there."""
    latency_queries: int = Field(default=20, ge=0)
    """Queries, spread over the split, whose latency is measured one at a time; 0 measures none."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()


_ENGINE_FIELDS: dict[str, Any] = {name: (engine.params, engine.params()) for name, engine in ENGINES.items()}
EvaluateConfig = create_model("EvaluateConfig", __base__=EvaluateFields, __doc__=EvaluateFields.__doc__, **_ENGINE_FIELDS)
"""The job's fields and, under each engine's name, that engine's parameters."""


def evaluate(config: EvaluateFields) -> dict[str, Any]:
    """Searches every judged query and measures the answers.

    Raises:
        ConfigError: if the engine, the dataset, the split or a path is wrong, the index holds no judged document, an output
            cannot be written, or the run format cannot carry an id; nothing is searched then.
        Conflict: if another job wrote an output meanwhile.
        FormatError: if the index or the dataset is damaged.
        IncompatibleError: if the encoder is not the one that the index was made with.
    """
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

    require("ir_measures", "measuring a run")
    version = latest_version(config.index)
    searcher = Searcher.open(config.index, version)
    planner = searcher.planner
    engine = resolve(_engine(config), planner.statistics, planner.kernels.name, config.quality, config.k, planner.tuning)
    dataset = load_dataset(config.dataset, config.split)
    judged = searcher.find(judged_documents(dataset.qrels))
    coverage = check_coverage(dataset.qrels, judged, f"{dataset.name}/{dataset.split}", config.index)
    ignores = has_queries_as_documents(dataset.name) if config.ignore_identical_ids == "auto" else config.ignore_identical_ids
    tag = _tag(config, searcher, dataset, engine, ignores)
    outputs = _check_outputs(config, searcher, dataset, tag)
    contract = searcher.manifest.contract
    given = config.encoder.model_dump()
    encoder = Encoder.for_contract(contract, EncoderConfig(**given | {"checkpoint": given["checkpoint"] or contract.checkpoint}))

    with logs.stage("encode queries") as record:
        ids, texts = list(dataset.queries), list(dataset.queries.values())
        parts = (encoder.encode_queries(texts[first:end], ids[first:end]) for first, end in _blocks(len(ids)))
        queries = concatenate(list(track(parts, "encode queries", len(ids), len, "queries")))
        record.update(queries=len(queries), tokens=queries.num_tokens)
    with logs.stage("search") as record:
        depth = config.k + ignores
        found = (searcher.search(queries.slice(first, end), depth, engine) for first, end in _blocks(len(queries)))
        answers = [answer for part in track(found, "search", len(queries), len, "queries") for answer in part]
        record.update(queries=len(answers), engine=engine.engine)
    run, identical = _run(searcher, queries, answers, config.k, ignores)
    with logs.stage("measure") as record:  # the log keeps the measures if an output cannot be written after all
        values = metrics.evaluate(run, dataset.qrels, metrics.measures_up_to(config.k))
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
        "k": config.k,
        "ignore_identical_ids": ignores,
        "identical_ids_dropped": identical if ignores else 0,
        **coverage.counts(),
        "engine": engine.engine,
        "params": _summary([answer.params for answer in answers if answer.params]),
        "index": {"path": config.index, "version": version, "manifest": manifest_digest(searcher.manifest), **_sizes(searcher)},
        "encoder": {"checkpoint": encoder.contract.checkpoint, "fingerprint": contract.fingerprint},
        "latency_ms": _latency(config, searcher, encoder, dataset, queries, engine),
    }


def _blocks(num_queries: int) -> Iterator[tuple[int, int]]:
    return ((first, min(first + QUERIES_AT_ONCE, num_queries)) for first in range(0, max(1, num_queries), QUERIES_AT_ONCE))


def _engine(config: EvaluateFields) -> str | Config:
    """The chosen engine with its parameters, if any were given."""
    given = [name for name in ENGINES if name in config.model_fields_set]
    if not given:
        return config.engine
    if given != [config.engine]:
        other = next(name for name in given if name != config.engine)
        raise ConfigError(f"--{other}.* is given, but the engine is {config.engine}; say --engine {other}, or leave it out")
    return getattr(config, config.engine)


def _tag(config: EvaluateFields, searcher: Searcher, dataset: Dataset, engine: Config, ignores: bool) -> str:
    """The run's name, which carries a digest of everything that decides its content."""
    settings = {
        "index": manifest_digest(searcher.manifest),
        "queries": dataset.queries,
        "engine": engine.model_dump(mode="json"),
        "k": config.k,
        "ignores": ignores,
        "encoder": config.encoder.model_dump(mode="json"),
    }
    return f"ray_lir-{engine.engine}-{digest(settings)[:12]}"


def _check_outputs(config: EvaluateFields, searcher: Searcher, dataset: Dataset, tag: str) -> dict[str, OutputFile]:
    """The output files by the names of their flags, checked before the work."""
    outputs = {}
    if config.run:
        check_ids(dataset.queries, "query")
        for shard in searcher.shards:
            check_ids(documents.column(shard.documents, "doc_id", shard.found_documents), "document")
        same = not config.overwrite and storage.exists(config.run) and not storage.is_folder(config.run) and read_tag(config.run) == tag
        if same:
            logger.info("%s is a run of this configuration and is written again", config.run)
        outputs["run"] = OutputFile.check(config.run, "--run", config.overwrite or same)
    if config.per_query:
        outputs["per_query"] = OutputFile.check(config.per_query, "--per_query", config.overwrite)
    if len({output.url for output in outputs.values()}) < len(outputs):
        raise ConfigError(f"--run and --per_query name the same file {config.run}; give two")
    return outputs


def _run(searcher: Searcher, queries: TokenEmbeddings, answers: list[TopK], k: int, ignores: bool) -> tuple[Run, int]:
    """The run, and how many hits had the id of their query: they are left out of it if `ignores` is true."""
    run: Run = {
        query_id: list(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
        for query_id, answer in zip(queries.doc_ids, answers, strict=True)
    }
    identical = metrics.num_identical_ids(run)
    if ignores:
        run = metrics.without_identical_ids(run)
        logger.info("search: %d hits with the id of their query were left out", identical)
    elif identical:
        logger.warning(
            "search: %d queries found a document with their own id; if queries are documents here, set --ignore_identical_ids yes",
            identical,
        )
    return {query_id: ranking[:k] for query_id, ranking in run.items()}, identical


def _latency(
    config: EvaluateFields, searcher: Searcher, encoder: "Encoder", dataset: Dataset, queries: TokenEmbeddings, engine: Config
) -> dict[str, Any] | None:
    """Percentiles of one query at a time, searching and encoding apart; None if none are wanted."""
    if not config.latency_queries:
        return None
    texts = list(dataset.queries.values())
    chosen = np.unique(np.linspace(0, len(texts) - 1, min(config.latency_queries, len(texts))).astype(int)).tolist()
    searching = time_each(lambda i: searcher.search(queries.slice(i, i + 1), config.k, engine), chosen)
    encoding = time_each(lambda i: encoder.encode_queries([texts[i]]), chosen)
    return {
        "search": percentiles_ms(searching),
        "encode": percentiles_ms(encoding),
        "queries": len(chosen),
        "kernels": searcher.kernels.name,
    }


def _summary(params: list[Config]) -> dict[str, Any]:
    """The parameters used; one that differed between queries is given as its least and greatest value."""
    values = {name: [getattr(each, name) for each in params] for name in type(params[0]).model_fields if name != "engine"}
    return {name: each[0] if len(set(each)) == 1 else [min(each), max(each)] for name, each in values.items()}


def _sizes(searcher: Searcher) -> dict[str, int]:
    manifest = searcher.manifest
    return {"num_docs": manifest.num_docs, "num_tokens": manifest.num_tokens, "num_shards": len(manifest.shards), "nbits": manifest.nbits}


if __name__ == "__main__":
    main(EvaluateConfig, evaluate)
