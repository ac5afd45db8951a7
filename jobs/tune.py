"""Finds the engine parameters that reach a recall soonest on an index, and makes them its defaults."""

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
from ray_lir.engines.plan import TopK
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.warp import WarpParams
from ray_lir.evaluation.latency import time_each
from ray_lir.index.versions import latest_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.concurrent_writes import OutputFile
from ray_lir.storage.manifest import MANIFEST

from .cli import main

SCAN = tuple(ScanParams(share=share) for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16))
WARP = tuple(WarpParams(nprobe=nprobe, share=share) for nprobe in (8, 16, 32, 64) for share in (1 / 4, 1, 4))
"""Shares of the default number of candidates, so that what is chosen is right for queries of other lengths and for another k too."""
QUESTION_WORDS = 12


class TuneConfig(Config):
    """Sweeps scan and warp, keeps the curve of recall against latency, and sets what `auto` does on this index."""

    index: str
    """Folder of the index, on a local disk."""
    target: str = "R@10=0.99"
    """What quality balanced has to reach: the share of the exact engine's best k that is found."""
    fast_target: float = Field(default=0.95, gt=0, le=1)
    """What quality fast has to reach."""
    dataset: str | None = None
    """BEIR folder whose queries are asked. None: the first words of documents of the index are."""
    split: str = "test"
    """Which judgements say the queries."""
    num_queries: int = Field(default=100, ge=1)
    """Queries asked, at most."""
    seed: int = 0


def tune(config: TuneConfig) -> dict[str, Any]:
    """The curve and the choices, as they are written beside the manifest of the index's latest version.

    Raises:
        ConfigError: if the target cannot be read, or the index is not on a local disk or cannot be written.
        Conflict: if another job changed, removed or tuned the version meanwhile.
    """
    k, target = _read_target(config.target)
    version = latest_version(config.index)
    searcher = Searcher.open(config.index, version)
    folder = storage.join(storage.absolute(config.index), "versions", str(version))
    output = OutputFile.check(storage.join(folder, TUNING), "--index", overwrite=True)
    queries = _queries(config, searcher)
    with logs.stage("exact") as record:
        exact = searcher.search(queries, k, "exact")
        record.update(queries=len(queries))
    with logs.stage("sweep") as record:
        sweep = track(SCAN + WARP, "sweep", len(SCAN + WARP), lambda _: 1, unit="settings")
        curve = [_measure(params, searcher, queries, k, exact) for params in sweep]
        record.update(settings=len(curve))
    targets = {"balanced": target, "fast": min(target, config.fast_target)}
    choices = {quality: best for quality, floor in targets.items() if (best := _soonest(curve, floor))}
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
            raise Conflict(f"version {version} of {config.index} was removed while it was tuned; run again to tune the latest version")
    output.write(canonical_json(result))
    if latest_version(config.index) != version:
        raise Conflict(
            f"{config.index} changed while version {version} was tuned, and the choices are of that version; run again to tune the latest"
        )
    return {name: value for name, value in result.items() if name != "curve"} | {"settings": len(curve), "index": config.index}


def _read_target(text: str) -> tuple[int, float]:
    found = re.fullmatch(r"R@(\d+)=(0?\.\d+|1(?:\.0*)?)", text)
    if not found or int(found[1]) < 1:
        raise ConfigError(f"cannot read the target {text!r}; write it like R@10=0.99")
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
        found = np.concatenate([shard.first_document + shard.found_documents for shard in searcher.shards])
        numbers = np.sort(rng.permutation(found)[: config.num_queries])
        texts = [" ".join(row["text"].split()[:QUESTION_WORDS]) for row in searcher.documents(numbers)]
        texts = [text for text in texts if text]
        if not texts:
            raise ConfigError(f"{config.index} holds no texts to ask; name a --dataset with queries")
    return encoder.encode_queries(texts)


def _measure(params: Config, searcher: Searcher, queries: TokenEmbeddings, k: int, exact: list[TopK]) -> dict[str, Any]:
    """Recall of the exact best k, and the median latency of one query at a time."""
    answers: list[TopK] = []
    seconds = time_each(lambda i: answers.append(searcher.search(queries.slice(i, i + 1), k, params)[0]), range(len(queries)))
    answers = answers[-len(queries) :]  # the first may have been asked once more, to warm up
    shares = [np.isin(best.documents, top.documents).mean() for best, top in zip(exact, answers, strict=True) if len(best.documents)]
    return {"params": params.model_dump(), "recall": float(np.mean(shares)), "p50_ms": 1e3 * statistics.median(seconds)}


def _soonest(curve: list[dict[str, Any]], target: float) -> dict[str, Any] | None:
    reached = [point for point in curve if point["recall"] >= target]
    return min(reached, key=lambda point: point["p50_ms"])["params"] if reached else None


if __name__ == "__main__":
    main(TuneConfig, tune)
