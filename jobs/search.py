"""Searches an index for one query and shows the hits, or for the queries of a file and writes them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ray_lir.api.search import MAX_K, Quality, QueryText
from ray_lir.base.config import Config, EncoderConfig
from ray_lir.base.engine_names import CHOICES
from ray_lir.base.errors import ConfigError
from ray_lir.base.residency_names import Residency
from ray_lir.distributed.workers import SearchWorkers
from ray_lir.embeddings.truncation import Truncation
from ray_lir.index.filters import FILTER_NAMES, FiltersInput

from .cli import main
from .hits import names, show_hits

if TYPE_CHECKING:
    from ray_lir.embeddings.contract import EncoderContract
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder
    from ray_lir.search.bulk import BulkSettings

    from .query_search import QuerySearch

SAMPLED_QUERIES = 64
BYTES_PER_HIT = 12
"""Bytes of a hit in Parquet without fields (zstd; measured: 9 to 14)."""


class SearchJob(Config):
    """Searches an index for one query and shows the hits, or for the queries of a file and writes the hits.

    Queries of a file are searched in blocks. A killed job continues when the same command runs again. The job runs in this process. With a
    --workers flag, or if the index is on an object store, it runs on a Ray cluster.
    """

    index: str
    """Folder of the index; with --queries also a URL (s3://bucket/folder)."""
    query: QueryText | None = None
    """Text of one query."""
    queries: str | None = None
    """File of queries (JSONL, JSONL.gz or Parquet; each row has an id, `_id` or `id`, and a text), a folder of such files, or a BEIR folder
    or name."""
    output: str | None = None
    """With --queries: a folder or URL for parts in Parquet, or one file that ends in .parquet, .trec or .run."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Number of hits for each query, at most."""
    engine: str = Field("auto", description=f"Engine that searches: {CHOICES}.")
    quality: Quality = "balanced"
    """For the engine auto: how closely it must follow the exact ranking."""
    params: dict[str, Any] = {}
    """Parameters of the engine, such as {nprobe: 4}."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """Conditions on the documents: "year >= 2020, tags ~ news", or JSON, {"where": {"op": "ge", "field": "year", "value": 2020},
    "ids": {"exclude": ["a"]}}; --where and --filter are other names."""
    metadata: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """With --query on a terminal: metadata of each document to show, such as year,author."""
    fields: Annotated[tuple[Literal["title", "text", "metadata"], ...], BeforeValidator(names)] = ()
    """With --queries: columns of the documents to write beside the ids, such as title,text."""
    format: Literal["parquet", "trec"] = "parquet"
    """With --queries and a folder as output: format of the parts."""
    residency: Residency = "auto"
    """memory: the index is expected to fit in memory. disk: residuals stay on the disk, and those of the documents to rescore are
    prefetched; answers are the same. auto: disk if the index is larger than three quarters of the memory limit."""
    encoder: str | None = None
    """Folder or name of the encoder's checkpoint. None: the one that the index records."""
    workers: SearchWorkers = SearchWorkers()
    dry_run: bool = False
    """With --queries: search a sample, predict the time of the whole job, and write nothing."""

    @model_validator(mode="after")
    def _query_or_queries(self) -> Self:
        if (self.query is None) == (self.queries is None):
            raise ValueError(
                "give a query, or --queries with a file of queries" if self.query is None else "give query or queries, not both"
            )
        if self.queries is not None and self.output is None and not self.dry_run:
            raise ValueError("--queries needs --output, the folder or file for the hits")
        if self.query is not None and (self.output is not None or "workers" in self.model_fields_set):
            raise ValueError("--output and --workers are for --queries; the hits of one query are shown")
        return self


def run(job: SearchJob) -> dict[str, Any]:
    """Search the index.

    Raises:
        ConfigError: A setting or path is wrong.
        FormatError: The index or a query file is damaged.
    """
    return _search_file(job) if job.queries is not None else _search_one(job)


def show(result: dict[str, Any], job: SearchJob) -> None:
    """Print the result as text."""
    from .cli import show_fields

    if job.queries is None:
        show_hits(result["hits"], job.metadata)
    else:
        show_fields(result)


def _search_one(job: SearchJob) -> dict[str, Any]:
    from ray_lir import storage
    from ray_lir.engines.choice import engine_params
    from ray_lir.engines.registry import ENGINES
    from ray_lir.index.versions import latest_version, read_version
    from ray_lir.search.highlights import match_hits
    from ray_lir.search.searcher import Searcher

    assert job.query is not None
    engine = engine_params(job.engine, job.params, tuple(ENGINES))
    root = storage.absolute(job.index)
    if not storage.is_local(root):
        Searcher.open(root)  # raises ConfigError
    version = latest_version(root)
    contract = read_version(root, version).contract
    with ThreadPoolExecutor(1) as pool:  # weights and index are read from the disk at the same time
        loading = pool.submit(_encoder, contract, job.encoder or contract.checkpoint)
        searcher = Searcher.open(root, version, residency=job.residency)
        encoder = loading.result()
    [truncation] = encoder.tokenizer.query_truncations([job.query])
    query = encoder.encode_queries([job.query])
    [answer] = searcher.search(query, job.k, engine, job.quality, filters=job.filters)
    documents = searcher.documents(answer.documents)
    hits: list[dict[str, Any]] = [
        {"number": number, "doc_id": document["doc_id"], "score": score, **{name: document[name] for name in ("title", "text", "metadata")}}
        for number, document, score in zip(answer.documents.tolist(), documents, answer.scores.tolist(), strict=True)
    ]
    if answer.sides:
        for row, hit in enumerate(hits):
            hit["sides"] = answer.sides.of_hit(row).model_dump(mode="json")
    for hit, found in zip(hits, match_hits(searcher, encoder.tokenizer, job.query, query, hits), strict=True):
        hit |= {"highlights": [mark.model_dump() for mark in found.highlights], "snippet": found.snippet.model_dump()}
        if found.passage:
            hit["passage"] = found.passage.model_dump()
    params = answer.params.model_dump() if answer.params else {}
    return {"query": job.query, "hits": hits, "params": params, "residency": searcher.residency, **cut_of(truncation)}


def _search_file(job: SearchJob) -> dict[str, Any]:
    from functools import partial

    from ray_lir import storage
    from ray_lir.engines import ENGINES
    from ray_lir.engines.choice import engine_params
    from ray_lir.search.bulk import BulkSettings, bulk_search, in_process, query_files
    from ray_lir.storage.manifest import manifest_digest

    from .query_search import QueryEncoderConfig, QuerySearch

    assert job.queries is not None
    query_files(job.queries)  # a wrong path is reported before anything is loaded
    workers = job.workers if "workers" in job.model_fields_set else None
    search = QuerySearch.open(job.index, QueryEncoderConfig(checkpoint=job.encoder), workers, residency=job.residency)
    engine = search.engine(engine_params(job.engine, job.params, tuple(ENGINES)), job.k, job.quality)
    settings = BulkSettings(k=job.k, engine=engine, filters=job.filters, fields=job.fields, format=job.format)
    if job.dry_run:
        return _predict(job, settings, search)
    assert job.output is not None
    identity = {"index": manifest_digest(search.manifest), "fingerprint": search.manifest.contract.fingerprint}
    provenance = {"index_path": search.root, "version": search.version, "queries_path": job.queries, "kernels": search.kernels}
    run_search = partial(bulk_search, job.queries, job.output, settings, identity, provenance=provenance)
    with search.session():
        if search.workers is None:
            assert search.searcher is not None
            result = run_search(in_process(search.encoder, search.searcher))
        else:
            from ray_lir.distributed.ray_map import ray_map
            from ray_lir.distributed.search import on_ray

            contract = search.manifest.contract
            spread = partial(on_ray, source=search.source, contract=contract, encoder=search.encoder_config, workers=search.workers)
            result = run_search(spread, map=ray_map)
    found = result.manifest
    return {
        "output": storage.absolute(job.output),
        "num_queries": found.num_queries,
        "num_hits": found.num_hits,
        "num_dead": found.num_dead,
        "num_repeated": found.num_repeated,
        "num_truncated_queries": found.num_truncated_queries,
        "k": job.k,
        "engine": engine.engine,
        "params": engine.model_dump(),
        "residency": search.searcher.residency if search.searcher else job.residency,
        "index_version": search.version,
        "num_blocks": result.num_blocks,
        "num_skipped": result.num_skipped,
        "seconds": result.seconds,
        "queries_per_second": result.queries_per_second,
        "manifest_digest": manifest_digest(found),
    }


def _predict(job: SearchJob, settings: "BulkSettings", search: "QuerySearch") -> dict[str, Any]:
    """Encode and search a sample of the queries on one thread, and divide the time of all queries by the workers' threads."""
    import time

    import torch

    from ray_lir.base.parallel import num_cores, use_cores
    from ray_lir.search.bulk import sample_queries

    if search.searcher is None:
        raise ConfigError(
            "--dry_run measures on the index itself, so the index must be on a disk of this machine; copy it, or run ray-lir plan"
        )
    assert job.queries is not None
    texts, num_queries = sample_queries(job.queries, SAMPLED_QUERIES)
    searcher, encoder = search.searcher, search.encoder
    workers = job.workers
    num_threads = (workers.num_workers or max(1, num_cores() // (workers.cpus_per_worker or 1))) * (workers.cpus_per_worker or 1)
    torch.set_num_threads(1)
    use_cores(1)
    encoder.encode_queries(texts[:1])  # the first call computes cached tables
    start = time.perf_counter()
    embeddings = encoder.encode_queries(texts)
    encoded = time.perf_counter()
    searcher.search(embeddings, settings.k, settings.engine, filters=settings.filters)
    searched = time.perf_counter()
    seconds = (searched - start) / len(texts) * num_queries / num_threads
    return {
        "num_queries": num_queries,
        "sampled_queries": len(texts),
        "engine": settings.engine.engine,
        "encode_ms": round(1e3 * (encoded - start) / len(texts), 2),
        "search_ms": round(1e3 * (searched - encoded) / len(texts), 2),
        "threads": num_threads,
        "predicted_seconds": round(seconds, 1),
        "predicted_bytes": round(num_queries * job.k * BYTES_PER_HIT),
    }


def _encoder(contract: "EncoderContract", checkpoint: str) -> "Encoder | NumpyQueryEncoder":
    """Return the encoder that is ready first: the NumPy encoder if torch is not loaded yet, because torch takes seconds to load.

    The NumPy encoder computes in float32. Where the torch encoder computes in bfloat16, scores differ by its rounding.
    """
    if "torch" not in sys.modules:
        from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder

        if light := NumpyQueryEncoder.load(contract, checkpoint):
            return light
    from ray_lir.encoder.encoder import Encoder

    return Encoder.for_contract(contract, EncoderConfig(checkpoint=checkpoint))


def cut_of(truncation: "Truncation") -> dict[str, Any]:
    """Return the result's field for a truncated query; no field for other queries."""
    fields = {"kept_tokens": truncation.kept, "total_tokens": truncation.total, "exact": truncation.exact}
    return {"truncated_query": fields} if truncation.is_cut else {}


if __name__ == "__main__":
    main(SearchJob, run, show=show, positional="query")
