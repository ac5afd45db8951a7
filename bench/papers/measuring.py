"""Searches of the experiment: one collection, encoded by one model, searched in many ways."""

import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.papers.development import SOURCE, without_development
from bench.papers.profiles import IN_DOMAIN, MS_MARCO_TOKENS_PER_CENTROID, PARTS, Profile, Way
from bench.papers.projected import project_embeddings
from jobs.analyzed_index import AnalyzedIndex
from jobs.query_search import QueryEncoderConfig, QuerySearch
from ray_lir.base.config import CodecConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import Dataset, find_corpus, has_queries_as_documents, load_dataset
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.xtr import K_PRIME, XtrParams
from ray_lir.evaluation import metrics, oracle
from ray_lir.evaluation.runs import Run
from ray_lir.index.manifest import IndexManifest
from ray_lir.storage.manifest import MANIFEST, read_manifest

MEASURES = ("nDCG@10", "R@100")
DEPTH = 100
CANDIDATES = 256
RECALL = f"R@{CANDIDATES} of candidates"
CODECS = {"default": CodecConfig(), "papers": CodecConfig(nbits=2, buckets="quantile")}


def measure(
    encoder: EncoderConfig,
    collection: Path,
    ways: Mapping[str, Way],
    profile: Profile,
    folder: Path,
    commit: dict[str, Any],
    source: Path | None = None,
) -> None:
    """Write a file for each way of searching that has none. `remove_encoded` deletes the embeddings and indexes.

    Args:
        encoder: Checkpoint and lengths.
        collection: Folder of the collection.
        ways: Ways of searching, by name.
        profile: Size of the experiment.
        folder: Folder of the files, of the embeddings and of the indexes.
        commit: Version of the code, which every file records.
        source: Embeddings of the base checkpoint, to project; None: encode the collection.
    """
    embeddings, root = folder / "embeddings", str(collection)
    opened: dict[tuple[str, bool], AnalyzedIndex] = {}
    for name, way in ways.items():
        path = answer(folder, name)
        if path.exists():
            continue
        if not (embeddings / MANIFEST).exists():
            if source:
                project_embeddings(source, embeddings, encoder)
            else:
                encode_corpus(find_corpus(root), str(embeddings), encoder, map=map)
        dataset = load_dataset(root, IN_DOMAIN.get(collection.name, "test"))
        if SOURCE in (collection.name, PARTS.get(collection.name)):
            dataset = without_development(dataset)
        dataset = sampled(dataset, profile.token_queries if way.tokens else profile.queries)
        if way.engine is None:
            found = _search_embeddings(embeddings, encoder, dataset)
        else:
            index = folder / way.codec
            if not (index / "LATEST").exists():
                build_index(str(embeddings), str(index), IndexConfig(num_shards=1, codec=CODECS[way.codec]))
            model = opened.get((way.codec, way.tokens)) or _open(index, dataset)
            opened = {(way.codec, way.tokens): model}  # one index at a time in memory
            if isinstance(way.engine, XtrParams):
                left = {each: other.engine for each, other in ways.items() if not answer(folder, each).exists()}
                for each, found in _search_tokens(model, left).items():
                    keep(answer(folder, each), found | commit)
                continue
            found = _search_index(model, way, way.engine)
        keep(path, found | commit)


def remove_encoded(folder: Path) -> None:
    """Delete the embeddings and indexes of a collection."""
    for name in ("embeddings", *CODECS):
        shutil.rmtree(folder / name, ignore_errors=True)


def sampled(dataset: Dataset, number: int | None) -> Dataset:
    """Return a data set with a random sample of its queries. A smaller sample is a part of a larger one.

    Args:
        dataset: The data set.
        number: Largest number of queries; None for all.
    """
    chosen = sorted(np.random.default_rng(0).permutation(sorted(dataset.queries))[:number].tolist())
    queries = {each: dataset.queries[each] for each in chosen}
    return replace(dataset, queries=queries, qrels={each: dataset.qrels[each] for each in chosen})


def answer(folder: Path, way: str) -> Path:
    """Return the file of one way of searching."""
    return folder / f"{way.replace(': ', '-').replace(', ', '-').replace(' ', '-').replace(chr(39), '')}.json"


def _search_embeddings(embeddings: Path, encoder: EncoderConfig, dataset: Dataset) -> dict[str, Any]:
    """Search the vectors before compression."""
    queries = Encoder.load(encoder).encode_queries(list(dataset.queries.values()), list(dataset.queries))
    manifest = read_manifest(str(embeddings / MANIFEST), EmbeddingsManifest, made_by="jobs.encode")
    cpu = time.process_time()
    run = oracle.exact_run(oracle.read_embeddings(str(embeddings), manifest), queries, DEPTH + 1)
    return _quality(run, dataset) | {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "documents": manifest.num_docs,
        "tokens": manifest.num_tokens,
    }


def _open(index: Path, dataset: Dataset) -> AnalyzedIndex:
    return AnalyzedIndex(QuerySearch.open(str(index), QueryEncoderConfig(), None), dataset, has_queries_as_documents(dataset.name))


def _search_index(model: AnalyzedIndex, way: Way, engine: EngineConfig) -> dict[str, Any]:
    """Search an index, and measure what the way asks for."""
    manifest = model.search.manifest
    if way.t_prime:
        engine = engine.model_copy(update={"t_prime": scaled_t_prime(way.t_prime, manifest)})
    settings = engine.model_dump(exclude_none=True)
    measured = (
        partial(_stages, model) if way.candidates else partial(_recall, model, way) if way.weighted is not None else partial(_ranked, model)
    )
    cpu = time.process_time()
    found = measured(settings)
    return found | {
        "cpu_seconds": round(time.process_time() - cpu, 2),
        "engine": settings,
        **_about(manifest),
    }


def _search_tokens(model: AnalyzedIndex, engines: Mapping[str, EngineConfig | None]) -> dict[str, dict[str, Any]]:
    """Search with all xtr engines at once: tokens are retrieved once for the largest k'."""
    chosen = {name: engine for name, engine in engines.items() if isinstance(engine, XtrParams)}
    settings = [(engine.k_prime or K_PRIME, engine.imputation) for engine in chosen.values()]
    cpu = time.process_time()
    runs = list(model.token_runs(settings, DEPTH))
    about = _about(model.search.manifest) | {"cpu_seconds_together": round(time.process_time() - cpu, 2)}
    return {
        name: _quality(run, model.dataset) | about | {"engine": engine.model_dump(exclude_none=True)}
        for (name, engine), run in zip(chosen.items(), runs, strict=True)
    }


def _about(manifest: IndexManifest) -> dict[str, int]:
    return {
        "documents": manifest.num_docs,
        "tokens": manifest.num_tokens,
        "centroids": manifest.num_centroids,
        "bits": manifest.nbits,
    }


def scaled_t_prime(t_prime: int, manifest: IndexManifest) -> int:
    """Return t' in proportion to the mean size of a cluster, which is smaller in a small index."""
    return max(1, round(t_prime * manifest.num_tokens / manifest.num_centroids / MS_MARCO_TOKENS_PER_CENTROID))


def _ranked(model: AnalyzedIndex, settings: dict[str, Any]) -> dict[str, Any]:
    return _quality(model.run(settings, DEPTH), model.dataset)


def _quality(run: Run, dataset: Dataset) -> dict[str, Any]:
    run = metrics.without_identical_ids(run) if has_queries_as_documents(dataset.name) else run
    return {"values": metrics.evaluate({query: ranking[:DEPTH] for query, ranking in run.items()}, dataset.qrels, MEASURES)}


def _stages(model: AnalyzedIndex, settings: dict[str, Any]) -> dict[str, Any]:
    """Fractions of the collection: documents of the probed clusters, and documents that each stage keeps."""
    found = model.funnels(settings, DEPTH)
    fractions = {"candidates": [each.candidates for each in found]}
    fractions |= {stage: [each.kept[place] for each in found] for place, stage in enumerate(found[0].stages)}
    values = {
        name: {query: count / model.num_docs for query, count in zip(model.dataset.queries, counts, strict=True)}
        for name, counts in fractions.items()
    }
    return {"values": values}


def _recall(model: AnalyzedIndex, way: Way, settings: dict[str, Any]) -> dict[str, Any]:
    """Capped recall of the candidates, as TRIAL's code computes it: relevant candidates by the smaller of both numbers."""
    found = model.candidates(settings, 10, CANDIDATES, bool(way.weighted))
    values = {
        query.query_id: len(np.intersect1d(documents, query.relevant)) / min(len(query.relevant), CANDIDATES)
        for query, documents in zip(model.queries, found, strict=True)
        if len(query.relevant)
    }
    return {"values": {RECALL: values}}


def keep(path: Path, content: dict[str, Any]) -> None:
    """Write a file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    attempt = path.with_suffix(".attempt")
    attempt.write_text(json.dumps(content) + "\n")
    os.replace(attempt, path)
