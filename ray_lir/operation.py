"""What a search service and its operators say to each other: the index that is served, changes of it, health, and errors."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from ray_lir.config import Config
from ray_lir.formats.contract import EncoderContract


class IndexFacts(Config):
    """What is being searched."""

    index: str
    version: int
    previous: int | None = None
    """The version that a roll-back goes to."""
    num_docs: int
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

    model_config = ConfigDict(json_schema_extra={"examples": [{"action": "load", "version": 2}, {"action": "roll_back"}]})

    action: Literal["load", "roll_back"]
    version: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """Of load. None: the latest."""

    @model_validator(mode="after")
    def _only_of_load(self) -> "IndexChange":
        if self.action == "roll_back" and self.version is not None:
            raise ValueError("roll_back goes to the version before; leave out version")
        return self


class IndexState(Config):
    """The version that is served after a change."""

    version: int
    previous: int | None = None
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
