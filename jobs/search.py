"""Searches an index on this machine for one query, and shows the answers."""

import sys
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from ray_lir.api.search import MAX_K, Quality, QueryText, chosen_engine
from ray_lir.base.config import Config, EncoderConfig
from ray_lir.base.engine_params import PARAMS
from ray_lir.embeddings.truncation import Truncation
from ray_lir.index.filters import FILTER_NAMES, FiltersInput

from .cli import main
from .hits import names, show_hits

if TYPE_CHECKING:
    from ray_lir.embeddings.contract import EncoderContract
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder


class SearchJob(Config):
    """Searches an index on this machine for one query and shows the documents it finds."""

    index: str
    """Folder of the index."""
    query: QueryText
    """What to look for."""
    k: int = Field(10, ge=1, le=MAX_K)
    """How many documents, at most."""
    engine: str = "auto"
    """auto, exact, scan, plaid, warp or xtr."""
    quality: Quality = "balanced"
    """Of the engine auto: fast, balanced or exact."""
    params: dict[str, Any] = {}
    """The engine's parameters, such as {nprobe: 4}."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """What documents must be like: "year >= 2020, tags ~ news", or JSON, {"where": {"op": "ge", "field": "year", "value": 2020},
    "ids": {"exclude": ["a"]}}; --where and --filter say the same."""
    metadata: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Metadata of each document to show on a terminal, such as year,author."""
    encoder: str | None = None
    """Where the encoder's checkpoint lies now. None: where it was when the index was made."""


def run(job: SearchJob) -> dict[str, Any]:
    """Raises ConfigError or FormatError if there is no such index or engine."""
    from ray_lir.search.highlights import match_hits
    from ray_lir.search.searcher import Searcher

    engine = chosen_engine(job.engine, job.params, tuple(PARAMS))
    searcher = Searcher.open(job.index)
    contract = searcher.manifest.contract
    encoder = _encoder(contract, job.encoder or contract.checkpoint)
    [truncation] = encoder.tokenizer.query_truncations([job.query])
    query = encoder.encode_queries([job.query])
    [answer] = searcher.search(query, job.k, engine, job.quality, filters=job.filters)
    documents = searcher.documents(answer.documents)
    hits: list[dict[str, Any]] = [
        {"number": number, "doc_id": document["doc_id"], "score": score, **{name: document[name] for name in ("title", "text", "metadata")}}
        for number, document, score in zip(answer.documents.tolist(), documents, answer.scores.tolist(), strict=True)
    ]
    for hit, found in zip(hits, match_hits(searcher, encoder.tokenizer, job.query, query, hits), strict=True):
        hit |= {"highlights": [mark.model_dump() for mark in found.highlights], "snippet": found.snippet.model_dump()}
    return {"query": job.query, "hits": hits, "params": answer.params.model_dump() if answer.params else {}, **cut_of(truncation)}


def _encoder(contract: "EncoderContract", checkpoint: str) -> "Encoder | NumpyQueryEncoder":
    """What encodes one query soonest: unless torch is loaded already, NumPy if it can, since loading torch takes seconds.

    NumPy computes in float32. Where the encoder computes in bfloat16, scores differ by its rounding, as between machines.
    """
    if "torch" not in sys.modules:
        from ray_lir.encoder.numpy_query_encoder import NumpyQueryEncoder

        if light := NumpyQueryEncoder.load(contract, checkpoint):
            return light
    from ray_lir.encoder.encoder import Encoder

    return Encoder.for_contract(contract, EncoderConfig(checkpoint=checkpoint))


def cut_of(truncation: "Truncation") -> dict[str, Any]:
    """What the result says of a query that is longer than query_length; nothing of others."""
    fields = {"kept_tokens": truncation.kept, "total_tokens": truncation.total, "exact": truncation.exact}
    return {"truncated_query": fields} if truncation.is_cut else {}


if __name__ == "__main__":
    main(SearchJob, run, show=lambda result, job: show_hits(result["hits"], job.metadata), positional="query")
