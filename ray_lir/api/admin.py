"""What a search service and its operators say to each other: the index that is served, changes of it, health, and errors."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract


class IndexFacts(Config):
    """What is being searched."""

    index: str
    version: int
    previous: int | None = None
    """The version that a roll-back goes to, unless there is a canary: then it ends that."""
    canary: int | None = None
    """The version that answers `share` of the requests."""
    share: float = 0.0
    num_docs: int
    """Without those that are deleted."""
    num_deleted: int
    """Deleted documents that the shards still hold."""
    num_tokens: int
    num_shards: int
    num_groups: int
    """Deployments that the shards are spread over."""
    num_centroids: int
    nbits: int
    engines: list[str]
    contract: EncoderContract
    fingerprint: str
    """Of the contract: embeddings with the same one can be mixed."""


class IndexChange(Config):
    """Which version of the index to serve from now on."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"action": "load", "version": 2}, {"action": "load", "version": 2, "share": 0.1}, {"action": "roll_back"}]
        }
    )

    action: Literal["load", "promote", "roll_back"]
    """load: serve a version, or, with `share`, let it answer that share of the requests (a canary). promote: let the canary
    answer all. roll_back: end the canary; without one, serve the version before."""
    version: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Of load. None: the latest."""
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    """Of load: the share of the requests. None, or 1: all."""

    @model_validator(mode="after")
    def _only_of_load(self) -> "IndexChange":
        if self.action != "load" and (self.version is not None or self.share is not None):
            raise ValueError(f"version and share are for load; leave them out of {self.action}")
        return self


class IndexState(Config):
    """The version that is served after a change."""

    version: int
    previous: int | None = None
    canary: int | None = None
    share: float = 0.0
    replicas: dict[str, int]
    """How many replicas of each deployment have the version open and verified."""


class Live(Config):
    """The service answers."""

    live: Literal[True] = True


class Health(Config):
    """Whether the service is up (it answers at all), and ready (everything that a search needs answers)."""

    live: bool = True
    ready: bool
    deployments: dict[str, str]
    """ok, or what is wrong."""


class Problem(Config):
    """What was wrong, in one line for people, and its kind for programs."""

    kind: str = Field(examples=["ConfigError"])
    message: str = Field(examples=["unknown engine 'fast'; choose auto, exact, scan, plaid, warp"])


class ErrorBody(Config):
    """The body of every reply that is not a success."""

    error: Problem
