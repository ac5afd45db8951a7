"""Finds the fastest engine parameters that reach a given recall on an index, and makes them its defaults."""

import re
import statistics
from typing import Any

import numpy as np
from pydantic import Field

from ray_lir import storage
from ray_lir.base import logs
from ray_lir.base.config import Config, EncoderConfig, canonical_json
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.progress import track
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import TUNING
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import TopK
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.evaluation.latency import time_each
from ray_lir.index.versions import latest_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import MANIFEST

from .cli import main

SCAN = tuple(ScanParams(candidate_fraction=fraction) for fraction in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16))
WARP = tuple(WarpParams(nprobe=nprobe, candidate_fraction=fraction) for nprobe in (8, 16, 32, 64) for fraction in (1 / 4, 1, 4))
"""Settings to measure. The number of candidates is relative to the default, so a choice also fits other query lengths and other k."""
QUESTION_WORDS = 12
"""Words of a document that serve as a query, if there is no dataset."""


class TuneConfig(Config):
    """Measures recall and latency of many settings of scan and warp, stores the curve, and sets what `auto` does on this index."""

    index: str
    """Folder of the index, on a local disk."""
    target: str = "R@10=0.99"
    """Recall that quality `balanced` must reach: R@k=FRACTION of the exact engine's best k documents."""
    fast_target: float = Field(default=0.95, gt=0, le=1)
    """Recall that quality `fast` must reach."""
    dataset: str | None = None
    """BEIR folder with queries to measure with. None: the first words of documents of the index are the queries."""
    split: str = "test"
    """Split of the dataset that lists the queries."""
    num_queries: int = Field(default=100, ge=1)
    """Number of queries, at most."""
    seed: int = 0
    """Seed of the choice of queries."""


def tune(config: TuneConfig) -> dict[str, Any]:
    """Tune the latest version of an index, store the curve and the choices beside its manifest, and return the choices.

    Raises:
        ConfigError: The target cannot be parsed, or the index is not on a local disk or cannot be written.
        Conflict: Another job changed, removed or tuned the version at the same time.
    """
    k, target = _read_target(config.target)
    version = latest_version(config.index)
    searcher = Searcher.open(config.index, version)
    folder = storage.join(storage.absolute(config.index), "versions", str(version))
    output = OutputFile.check(storage.join(folder, TUNING), "--index", overwrite=True)
    queries = _queries(config, searcher)
    with logs.phase("exact") as record:
        exact = searcher.search(queries, k, "exact")
        record.update(queries=len(queries))
    with logs.phase("sweep") as record:
        sweep = track(SCAN + WARP, "sweep", len(SCAN + WARP), lambda _: 1, unit="settings")
        curve = [_measure(params, searcher, queries, k, exact) for params in sweep]
        record.update(settings=len(curve))
    targets = {"balanced": target, "fast": min(target, config.fast_target)}
    choices = {quality: best for quality, floor in targets.items() if (best := _fastest(curve, floor))}
    result = {
        "k": k,
        "target": target,
        "fast_target": config.fast_target,
        "queries": len(queries),
        "kernels": searcher.kernels.name,
        "choices": choices,
        "curve": curve,
    }
    with storage.wrap_errors("write", output.url):
        if not storage.exists(storage.join(folder, MANIFEST)):
            raise Conflict(f"version {version} of {config.index} was removed during the tuning; run again to tune the latest version")
    output.write(canonical_json(result))
    if latest_version(config.index) != version:
        raise Conflict(f"{config.index} has a newer version than {version}, which was tuned; run again to tune the latest version")
    return {name: value for name, value in result.items() if name != "curve"} | {"settings": len(curve), "index": config.index}


def _read_target(text: str) -> tuple[int, float]:
    found = re.fullmatch(r"R@(\d+)=(0?\.\d+|1(?:\.0*)?)", text)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"cannot parse the target {text!r}; write it like R@10=0.99")
    return int(found[1]), float(found[2])


def _queries(config: TuneConfig, searcher: Searcher) -> TokenEmbeddings:
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load

    contract = searcher.manifest.contract
    encoder = Encoder.for_contract(contract, EncoderConfig(checkpoint=contract.checkpoint))
    rng = np.random.default_rng(config.seed)
    if config.dataset:
        texts = list(load_dataset(config.dataset, config.split).queries.values())
        texts = [texts[i] for i in rng.permutation(len(texts))[: config.num_queries]]
    else:
        live = np.concatenate([shard.first_document + shard.found_documents for shard in searcher.shards])
        numbers = np.sort(rng.permutation(live)[: config.num_queries])
        texts = [" ".join(row["text"].split()[:QUESTION_WORDS]) for row in searcher.documents(numbers)]
        texts = [text for text in texts if text]
        if not texts:
            raise ConfigError(f"{config.index} holds no texts to use as queries; set --dataset to a dataset with queries")
    return encoder.encode_queries(texts)


def _measure(params: EngineConfig, searcher: Searcher, queries: TokenEmbeddings, k: int, exact: list[TopK]) -> dict[str, Any]:
    """Recall of the exact engine's best k, and the median milliseconds of one query."""
    answers: list[TopK] = []
    seconds = time_each(lambda i: answers.append(searcher.search(queries.slice(i, i + 1), k, params)[0]), range(len(queries)))
    answers = answers[-len(queries) :]  # the warm-up may have repeated the first query
    recalls = [np.isin(best.documents, top.documents).mean() for best, top in zip(exact, answers, strict=True) if len(best.documents)]
    return {"params": params.model_dump(), "recall": float(np.mean(recalls)), "p50_ms": 1e3 * statistics.median(seconds)}


def _fastest(curve: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    reached = [point for point in curve if point["recall"] >= target]
    return min(reached, key=lambda point: point["p50_ms"])["params"] if reached else None


if __name__ == "__main__":
    main(TuneConfig, tune)
