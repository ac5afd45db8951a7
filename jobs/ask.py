"""Asks a running search service one query, and shows the answers."""

import logging
import os
from typing import Annotated, Any

import tyro
from pydantic import Field

from ray_lir.client import DEFAULT_URL, Client
from ray_lir.config import Config
from ray_lir.index.filters import FILTER_NAMES, FiltersInput
from ray_lir.messages import MAX_K, Quality, SearchResponse

from .cli import main
from .search import show

logger = logging.getLogger("ray_lir.ask")

TOKEN = "RAY_LIR_TOKEN"


class AskJob(Config):
    """Asks a search service: the answers for people, then the whole reply as JSON. The environment variable RAY_LIR_TOKEN
    holds the bearer token of a service that asks for one."""

    query: str
    """What to look for."""
    url: str = DEFAULT_URL
    """Address of the service."""
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
    deadline_ms: float | None = Field(None, gt=0)
    """What the answer may take; late parts of the index are left out as far as min_coverage allows."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """The share of the documents that must have been searched."""
    explain: bool = False
    """Say in the JSON which token of each document every query token matched."""
    json_only: Annotated[bool, tyro.conf.arg(name="json")] = Field(False, alias="json")
    """Print nothing but the JSON."""


def run(job: AskJob) -> dict[str, Any]:
    """Raises ServiceUnavailable if nothing answers, and whatever the service says is wrong."""
    options = job.model_dump(exclude={"query", "url", "json_only"}, exclude_none=True)
    with Client(job.url, os.environ.get(TOKEN)) as client:
        response: SearchResponse = client.search(job.query, **options)
    reply = response.model_dump(mode="json", exclude_none=True)
    for cut in response.truncated_queries:
        logger.warning("only the first %d of %d tokens of the query were searched for", cut.kept_tokens, cut.total_tokens)
    for warning in response.warnings:
        logger.warning("%s", warning)
    if not job.json_only:
        show(reply["results"][0])
    return {"query": job.query, **reply}


if __name__ == "__main__":
    main(AskJob, run)
