"""Sends one query to a running search service and shows the hits."""

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
    """Sends one query to a running search service and shows the hits.

    If the service requires a bearer token, set the environment variable RAY_LIR_TOKEN to it.
    """

    query: QueryText
    """Text of the query."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Number of hits, at most."""
    engine: str = "auto"
    """Engine that searches: auto, or the name of an engine of the service."""
    quality: Quality = "balanced"
    """For the engine auto: how closely it must follow the exact ranking."""
    params: dict[str, Any] = {}
    """Parameters of the engine, such as {nprobe: 4}."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """Conditions on the documents: "year >= 2020, tags ~ news", or JSON, {"where": {"op": "ge", "field": "year", "value": 2020},
    "ids": {"exclude": ["a"]}}. --where and --filter are other names."""
    metadata: Annotated[tuple[str, ...], BeforeValidator(names)] = ()
    """Metadata fields to show for each hit on a terminal, such as year,author."""
    deadline_ms: float | None = Field(None, gt=0)
    """Longest time of the request, in milliseconds. Late shard groups are left out if min_coverage allows it."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """Fraction of the documents that must be searched, 0 to 1."""
    explain: bool = False
    """Add the match of every query token in each hit to the JSON."""


def run(job: AskJob) -> dict[str, Any]:
    """Send the query and return the response.

    Raises:
        ServiceUnavailable: Nothing answers at the address.
        RayLirError: The service reports an error.
    """
    options = job.model_dump(exclude={"query", "url", "name", "metadata"}, exclude_none=True)
    options["highlight"] = job.k <= MAX_EXPLAINED
    with connect(job) as client:
        response: SearchResponse = client.search(job.query, **options)
    reply = response.model_dump(mode="json", exclude_none=True)
    for cut in response.truncated_queries:
        logger.warning("the query is truncated: only its first %d of %d tokens are used", cut.kept_tokens, cut.total_tokens)
    for warning in response.warnings:
        logger.warning("%s", warning)
    return {"query": job.query, **reply}


if __name__ == "__main__":
    main(AskJob, run, show=lambda result, job: show_hits(result["results"][0], job.metadata), positional="query")
