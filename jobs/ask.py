"""Asks a running search service one query, and shows the answers."""

import logging
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ray_lir.api.search import MAX_EXPLAINED, MAX_K, Quality, QueryText, SearchResponse
from ray_lir.index.filters import FILTER_NAMES, FiltersInput

from .cli import main
from .connection import TOKEN as TOKEN
from .connection import ServiceJob, connect
from .hits import names, show_hits

logger = logging.getLogger("ray_lir.ask")


class AskJob(ServiceJob):
    """Asks a running search service one query and shows the documents it finds.

    If the service asks for a bearer token, set the environment variable RAY_LIR_TOKEN to it.
    """

    query: QueryText
    """What to look for."""
    k: int = Field(10, ge=1, le=MAX_K)
    """How many documents, at most."""
    engine: str = "auto"
    """auto, exact, scan, plaid or warp."""
    quality: Quality = "balanced"
    """Of the engine auto: fast, balanced or exact."""
    params: dict[str, Any] = {}
    """The engine's parameters, such as {nprobe: 4}."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """What documents must be like: "year >= 2020, tags ~ news", or JSON, {"where": {"op": "ge", "field": "year", "value": 2020},
    "ids": {"exclude": ["a"]}}; --where and --filter say the same."""
    metadata: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Metadata of each document to show on a terminal, such as year,author."""
    deadline_ms: float | None = Field(None, gt=0)
    """What the answer may take; late parts of the index are left out as far as min_coverage allows."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """The share of the documents that must have been searched."""
    explain: bool = False
    """Say in the JSON which token of each document every query token matched."""


def run(job: AskJob) -> dict[str, Any]:
    """Raises ServiceUnavailable if nothing answers, and whatever the service says is wrong."""
    options = job.model_dump(exclude={"query", "url", "metadata"}, exclude_none=True)
    options["highlight"] = job.k <= MAX_EXPLAINED
    with connect(job) as client:
        response: SearchResponse = client.search(job.query, **options)
    reply = response.model_dump(mode="json", exclude_none=True)
    for cut in response.truncated_queries:
        logger.warning("only the first %d of %d tokens of the query were searched for", cut.kept_tokens, cut.total_tokens)
    for warning in response.warnings:
        logger.warning("%s", warning)
    return {"query": job.query, **reply}


if __name__ == "__main__":
    main(AskJob, run, show=lambda result, job: show_hits(result["results"][0], job.metadata), positional="query")
