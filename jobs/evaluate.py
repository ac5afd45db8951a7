"""Measures the quality and latency of an index on the judged queries of a BEIR dataset."""

from typing import Any, Literal

import numpy as np
from pydantic import Field, create_model

from ray_lir import logs
from ray_lir.config import Config, EncoderConfig, canonical_json
from ray_lir.engines import ENGINES, resolve
from ray_lir.engines.plan import TopK
from ray_lir.errors import ConfigError
from ray_lir.evaluation import metrics
from ray_lir.evaluation.datasets import Dataset, load_dataset
from ray_lir.evaluation.latency import percentiles_ms, time_each
from ray_lir.evaluation.runs import Run, write_run
from ray_lir.formats import storage
from ray_lir.formats.manifest import manifest_digest
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.models.encoder import Encoder
from ray_lir.search import Searcher, latest_version

from .cli import main


class QueryEncoderConfig(Config):
    """Where the weights of the index's encoder lie now, and how they are run; its conventions are the index's."""

    checkpoint: str | None = None
    """Checkpoint folder or name. None: the one that the index was made with."""
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
    ignore_identical_ids: bool = False
    """Leave out hits whose id is the query's own (BEIR's convention for ArguAna and Quora)."""
    run: str | None = None
    """Writes the run to this file, in TREC format."""
    per_query: str | None = None
    """Writes each query's measures to this file, as JSON."""
    latency_queries: int = Field(default=20, ge=0)
    """Queries, spread over the split, whose latency is measured one at a time; 0 measures none."""
    encoder: QueryEncoderConfig = QueryEncoderConfig()


_ENGINE_FIELDS: dict[str, Any] = {name: (engine.params, engine.params()) for name, engine in ENGINES.items()}
EvaluateConfig = create_model("EvaluateConfig", __base__=EvaluateFields, __doc__=EvaluateFields.__doc__, **_ENGINE_FIELDS)
"""The job's fields and, under each engine's name, that engine's parameters."""


def evaluate(config: EvaluateFields) -> dict[str, Any]:
    """Searches every judged query and measures the answers.

    Raises:
        ConfigError: if the engine, the dataset, the split or a path is wrong.
        FormatError: if the index or the dataset is damaged.
        IncompatibleError: if the encoder is not the one that the index was made with.
    """
    version = latest_version(config.index)
    searcher = Searcher.open(config.index, version)
    planner = searcher.planner
    engine = resolve(_engine(config), planner.statistics, planner.kernels.name, config.quality, config.k, planner.tuning)
    dataset = load_dataset(config.dataset, config.split)
    for path in filter(None, (config.run, config.per_query)):
        if storage.is_folder(path):
            raise ConfigError(f"{path} is a folder; name a file in it")
    contract = searcher.manifest.contract
    given = config.encoder.model_dump()
    encoder = Encoder.for_contract(contract, EncoderConfig(**given | {"checkpoint": given["checkpoint"] or contract.checkpoint}))

    with logs.stage("encode queries") as record:
        queries = encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
        record.update(queries=len(queries), tokens=queries.num_tokens)
    with logs.stage("search") as record:
        depth = config.k + config.ignore_identical_ids
        answers = searcher.search(queries, depth, engine)
        record.update(queries=len(answers), engine=engine.engine)
    run = _run(searcher, queries, answers, config)
    values = metrics.evaluate(run, dataset.qrels, metrics.up_to(config.k))
    if config.run:
        write_run(config.run, run, f"ray_lir-{engine.engine}")
    if config.per_query:
        by_query = {query_id: {name: values[name][query_id] for name in values} for query_id in dataset.queries}
        storage.write_bytes(config.per_query, canonical_json(by_query))
    return {
        "dataset": dataset.name,
        "split": dataset.split,
        "queries": len(dataset.queries),
        **metrics.means(values),
        "k": config.k,
        "ignore_identical_ids": config.ignore_identical_ids,
        "engine": engine.engine,
        "params": _summary([answer.params for answer in answers if answer.params]),
        "index": {"path": config.index, "version": version, "manifest": manifest_digest(searcher.manifest), **_sizes(searcher)},
        "encoder": {"checkpoint": encoder.contract.checkpoint, "fingerprint": contract.fingerprint},
        "latency_ms": _latency(config, searcher, encoder, dataset, queries, engine),
    }


def _engine(config: EvaluateFields) -> str | Config:
    """The chosen engine with its parameters, if any were given."""
    given = [name for name in ENGINES if name in config.model_fields_set]
    if not given:
        return config.engine
    if given != [config.engine]:
        other = next(name for name in given if name != config.engine)
        raise ConfigError(f"--{other}.* is given, but the engine is {config.engine}; say --engine {other}, or leave it out")
    return getattr(config, config.engine)


def _run(searcher: Searcher, queries: TokenEmbeddings, answers: list[TopK], config: EvaluateFields) -> Run:
    run: Run = {
        query_id: list(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
        for query_id, answer in zip(queries.doc_ids, answers, strict=True)
    }
    if config.ignore_identical_ids:
        run = metrics.without_identical_ids(run)
    return {query_id: ranking[: config.k] for query_id, ranking in run.items()}


def _latency(
    config: EvaluateFields, searcher: Searcher, encoder: Encoder, dataset: Dataset, queries: TokenEmbeddings, engine: Config
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
