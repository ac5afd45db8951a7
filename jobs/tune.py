"""Finds the fastest engine parameters that reach a recall, and the best weights of hybrid search, and makes them an index's defaults."""

import re
import statistics
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, canonical_json
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.extras import require
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import Dataset, load_dataset
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import TUNING
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.hybrid import LEXICAL_WEIGHT, HybridParams
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plaid import PlaidParams
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.scoring.terms import DEFAULT_RELATION_CANDIDATES
from ray_lir.engines.warp import WarpParams
from ray_lir.evaluation import metrics
from ray_lir.evaluation.latency import time_each
from ray_lir.index.versions import latest_version
from ray_lir.search.bulk import BulkSettings, query_blocks
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import MANIFEST

from .cli import main
from .query_search import QueryEncoderConfig, QuerySearch

SCAN = tuple(ScanParams(candidate_fraction=fraction) for fraction in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16))
PLAID = tuple(PlaidParams(nprobe=nprobe, candidate_fraction=fraction) for nprobe in (2, 8) for fraction in (1 / 4, 1, 4))
WARP = tuple(WarpParams(nprobe=nprobe, candidate_fraction=fraction) for nprobe in (8, 16, 32, 64) for fraction in (1 / 4, 1, 4))
SETTINGS = SCAN + PLAID + WARP
"""Settings to measure. The number of candidates is relative to the default, so a choice also fits other query lengths and other k."""
FUSIONS = (
    HybridParams(fusion="weighted", lexical_weight=LEXICAL_WEIGHT),
    *(HybridParams(fusion="weighted", lexical_weight=tenths / 10) for tenths in (1, 3, 4, 5, 6, 7, 8, 9)),
    *(HybridParams(fusion="rrf", lexical_weight=weight) for weight in (0.5, 0.3, 0.7)),
)
"""Settings of hybrid search to measure; the default is first."""
MEASURED_HITS = 10
QUERIES_PER_BLOCK = 32
"""Queries that are searched exactly together; each worker gets one block at a time."""
QUESTION_WORDS = 12
"""Words of a document that serve as a query, if there is no dataset."""


class TuneConfig(Config):
    """Measures recall and latency of many settings of scan, plaid and warp, stores the curve, and sets what `auto` does on this index.

    On an index with lexical postings and with --dataset, the job also measures nDCG@10 of hybrid search by fusion and weight. The best
    become the defaults of engine hybrid on this index. Use other judgements than those of your test, such as --split dev.

    The job runs in this process. With a --workers flag, or if the index is on an object store, it runs on a Ray cluster: each setting is a
    task that times one query after another on its own CPUs. To time queries on all CPUs of a machine, set --workers.cpus_per_worker to
    that number.
    """

    index: str
    """Folder or URL of the index."""
    target: str = "R@10=0.99"
    """Recall that quality `balanced` must reach: R@k=FRACTION of the exact engine's best k documents."""
    fast_target: float = Field(default=0.95, gt=0, le=1)
    """Recall that quality `fast` must reach."""
    dataset: str | None = None
    """BEIR folder with queries to measure with. None: the first words of documents of the index are the queries."""
    split: str = "test"
    """Split of the dataset that lists the queries and has their judgements."""
    num_queries: int = Field(default=100, ge=1)
    """Number of queries, at most."""
    seed: int = 0
    """Seed of the choice of queries."""
    workers: SearchWorkers = SearchWorkers()


def tune(config: TuneConfig) -> dict[str, Any]:
    """Tune the latest version of an index, store the curve and the choices beside its manifest, and return the choices.

    Raises:
        ConfigError: The target cannot be parsed, or the index cannot be written.
        Conflict: Another job changed, removed or tuned the version at the same time.
    """
    k, target = _read_target(config.target)
    search = QuerySearch.open(config.index, QueryEncoderConfig(), config.workers if "workers" in config.model_fields_set else None)
    version = search.version
    folder = storage.join(search.root, "versions", str(version))
    output = OutputFile.check(storage.join(folder, TUNING), "--index", overwrite=True)
    fuses = config.dataset is not None and search.manifest.lexical is not None
    if fuses:
        require("ir_measures", "measuring hybrid search")
    with search.session():
        judged = _judged_queries(config) if config.dataset else None
        texts = list(judged.queries.values()) if judged else _first_texts(config, search)
        queries = search.encoder.encode_queries(texts)
        with logs.phase("exact") as record:
            blocks = query_blocks({str(number): text for number, text in enumerate(texts)}, QUERIES_PER_BLOCK)
            found = search.answers(blocks, BulkSettings(k=k, engine=ExactParams()))
            exact = [answer.documents for block in sorted(found, key=lambda block: block.number) for answer in block.answers]
            record.update(queries=len(exact))
        with logs.phase("sweep") as record:
            measured = search.map_on_index(partial(_measure, queries, k, exact), SETTINGS)
            curve = list(track(measured, "sweep", len(SETTINGS), lambda _: 1, unit="settings"))
            record.update(settings=len(curve))
        fusions = _fusions(search, judged) if judged and fuses else []
    targets = {"balanced": target, "fast": min(target, config.fast_target)}
    choices = {quality: best for quality, floor in targets.items() if (best := _fastest(curve, floor))}
    result = {
        "k": k,
        "target": target,
        "fast_target": config.fast_target,
        "queries": len(queries),
        "kernels": search.kernels,
        "choices": choices,
        "curve": curve,
    }
    if fusions:
        best = max(fusions, key=lambda point: point["nDCG@10"])
        result |= {"defaults": {"hybrid": best["params"]}, "hybrid": fusions}
    with storage.wrap_errors("write", output.url):
        if not storage.exists(storage.join(folder, MANIFEST)):
            raise Conflict(f"version {version} of {config.index} was removed during the tuning; run again to tune the latest version")
    output.write(canonical_json(result))
    if latest_version(config.index) != version:
        raise Conflict(f"{config.index} has a newer version than {version}, which was tuned; run again to tune the latest version")
    return {name: value for name, value in result.items() if name != "curve"} | {"settings": len(curve), "index": config.index}


def _fusions(search: QuerySearch, judged: Dataset) -> list[dict[str, Any]]:
    """nDCG@10 of every setting of the fusion. Of equal settings, the first is chosen."""
    points: list[dict[str, Any]] = []
    with logs.phase("hybrid") as record:
        blocks = query_blocks(judged.queries, QUERIES_PER_BLOCK)
        for params in track(FUSIONS, "hybrid", len(FUSIONS), lambda _: 1, unit="settings"):
            engine = search.engine(params, MEASURED_HITS)
            found = sorted(search.answers(blocks, BulkSettings(k=MEASURED_HITS, engine=engine)), key=lambda block: block.number)
            ids = [doc_ids for block in found for doc_ids in block.doc_ids]
            run = {query_id: [(doc_id, 0.0) for doc_id in each] for query_id, each in zip(judged.queries, ids, strict=True)}
            value = metrics.means(metrics.evaluate(run, judged.qrels, ("nDCG@10",)))["nDCG@10"]
            points.append({"params": params.model_dump(exclude_unset=True) | {"engine": "hybrid"}, "nDCG@10": value})
        record.update(settings=len(points), best=max(point["nDCG@10"] for point in points))
    return points


def _read_target(text: str) -> tuple[int, float]:
    found = re.fullmatch(r"R@(\d+)=(0?\.\d+|1(?:\.0*)?)", text)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"cannot parse the target {text!r}; write it like R@10=0.99")
    return int(found[1]), float(found[2])


def _judged_queries(config: TuneConfig) -> Dataset:
    """A sample of the dataset's queries, with their judgements."""
    assert config.dataset is not None
    dataset = load_dataset(config.dataset, config.split)
    ids = list(dataset.queries)
    chosen = [ids[i] for i in np.random.default_rng(config.seed).permutation(len(ids))[: config.num_queries]]
    return replace(
        dataset,
        queries={query_id: dataset.queries[query_id] for query_id in chosen},
        qrels={query_id: dataset.qrels[query_id] for query_id in chosen},
    )


def _first_texts(config: TuneConfig, search: QuerySearch) -> list[str]:
    """The first words of documents of the index, as queries."""
    [texts] = search.map_on_index(partial(_first_words, config.seed), [config.num_queries])
    if not texts:
        raise ConfigError(f"{config.index} holds no texts to use as queries; set --dataset to a dataset with queries")
    return texts


def _first_words(seed: int, searcher: Searcher, num_documents: int) -> list[str]:
    live = np.concatenate([shard.first_document + shard.found_documents for shard in searcher.shards])
    numbers = np.sort(np.random.default_rng(seed).permutation(live)[:num_documents])
    texts = [" ".join(row["text"].split()[:QUESTION_WORDS]) for row in searcher.documents(numbers)]
    return [text for text in texts if text]


def _measure(queries: TokenEmbeddings, k: int, exact: list[np.ndarray], searcher: Searcher, params: EngineConfig) -> dict[str, Any]:
    """Recall of the exact engine's best k, and the median milliseconds of one query. Relations are limited as in `auto`."""
    if searcher.planner.statistics.scorer_cost:
        params = params.model_copy(update={"relation_candidates": DEFAULT_RELATION_CANDIDATES})
    answers = searcher.search(queries, k, params)  # computes values that the engine caches, and reads the index into memory
    seconds = time_each(lambda i: searcher.search(queries.slice(i, i + 1), k, params), range(len(queries)))
    recalls = [np.isin(best, answer.documents).mean() for best, answer in zip(exact, answers, strict=True) if len(best)]
    return {"params": params.model_dump(), "recall": float(np.mean(recalls)), "p50_ms": 1e3 * statistics.median(seconds)}


def _fastest(curve: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    reached = [point for point in curve if point["recall"] >= target]
    return min(reached, key=lambda point: point["p50_ms"])["params"] if reached else None


if __name__ == "__main__":
    main(TuneConfig, tune)
