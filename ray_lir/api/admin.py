"""Models of the API for operators: the served index, changes of its version, health, and errors."""

from typing import Annotated, Literal

from pydantic import AliasChoices, ConfigDict, Field, model_validator

from ray_lir.api.writes import WriteFacts
from ray_lir.base.config import Config
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.index.metadata_fields import MetadataField

TRAFFIC_FRACTION = AliasChoices("traffic_fraction", "share")
"""Accepted names of the field; `share` is the name of version 0.1."""


class IndexFacts(Config):
    """A version of the served index: answer of `GET /index`."""

    index: str
    """Folder or URL."""
    version: int
    """Version that answers all requests except the canary's; or the version that the request asks for, which the sizes, the contract and
    the digest below describe."""
    previous: int | None = None
    """Version that `roll_back` returns to if there is no canary. None: no version was served before."""
    canary: int | None = None
    """Version that answers `traffic_fraction` of the requests. None: there is no canary."""
    traffic_fraction: float = Field(0.0, validation_alias=TRAFFIC_FRACTION)
    """Fraction of the requests that the canary answers, 0 to 1."""
    num_docs: int
    """Documents that are not deleted."""
    num_deleted: int
    """Deleted documents that are still stored in the shards."""
    num_tokens: int
    num_shards: int
    num_groups: int
    """Shard groups, the deployments that hold the shards."""
    num_centroids: int
    nbits: int
    """Bits a dimension of the residuals."""
    engines: list[str]
    """Engines that a request may name."""
    fields: list[MetadataField] = []
    """Metadata fields that filters can use, from a sample of 1,000 documents of each shard."""
    contract: EncoderContract
    fingerprint: str
    """Digest of the contract; vectors with equal fingerprints can be compared."""
    writes: WriteFacts | None = None
    """State of the writes. None: the service accepts no writes."""
    manifest: str = ""
    """sha256 of the version's manifest. Empty: the service is of an earlier version of ray_lir."""


class IndexSummary(Config):
    """One of several indexes of a service."""

    name: str
    """Name in the routes `/indexes/{name}/...`."""
    state: Literal["open", "closed", "broken"]
    """closed: the next request opens it. broken: it could not be opened the last time; requests try again after a few seconds."""
    version: int | None = None
    """Version that answers all requests except the canary's, if the index is open."""
    canary: int | None = None
    """Version that answers a fraction of the requests, if there is one."""
    num_docs: int | None = None
    """Documents that are not deleted, if the index is open."""
    num_bytes: int | None = None
    """Estimated memory in bytes, without the encoder, if the index is open."""
    error: str | None = None
    """Why the index could not be opened, if it is broken."""


class IndexList(Config):
    """The indexes of a service of several: answer of `GET /indexes`."""

    indexes: list[IndexSummary]


class IndexChange(Config):
    """Which version of the index to serve: body of `POST /admin/index`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"action": "load", "version": 2},
                {"action": "load", "version": 2, "traffic_fraction": 0.1},
                {"action": "roll_back"},
            ]
        }
    )

    action: Literal["load", "promote", "roll_back"]
    """load: serve a version; with `traffic_fraction`, as a canary for that fraction of the requests. promote: the canary answers all
    requests. roll_back: end the canary; without a canary, serve the previous version."""
    version: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """For load: the version to serve. None: the latest."""
    traffic_fraction: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = Field(None, validation_alias=TRAFFIC_FRACTION)
    """For load: fraction of the requests that the version answers. None or 1: all requests. 0: only requests that name the version.
    `share` is another name of this field."""

    @model_validator(mode="after")
    def _only_for_load(self) -> "IndexChange":
        if self.action != "load" and (self.version is not None or self.traffic_fraction is not None):
            raise ValueError(f"version and traffic_fraction are for load; leave them out of {self.action}")
        return self


class IndexState(Config):
    """The served versions after a change: answer of `POST /admin/index`."""

    version: int
    """Version that answers all requests except the canary's."""
    previous: int | None = None
    """Version that `roll_back` returns to if there is no canary."""
    canary: int | None = None
    """Version that answers `traffic_fraction` of the requests."""
    traffic_fraction: float = Field(0.0, validation_alias=TRAFFIC_FRACTION)
    """Fraction of the requests that the canary answers, 0 to 1."""
    replicas: dict[str, int]
    """Number of replicas of each deployment that have the version open and verified."""


class Live(Config):
    """The service answers: reply of `GET /health/live`."""

    live: Literal[True] = True


class Health(Config):
    """Whether the service is live (it answers) and ready (every deployment that a search needs answers)."""

    live: bool = True
    ready: bool
    deployments: dict[str, str]
    """State of each deployment: ok, or the error."""


class Problem(Config):
    """An error: its kind for programs, and one line for people."""

    kind: str = Field(examples=["ConfigError"])
    message: str = Field(examples=["unknown engine 'fast'; choose auto, exact, scan, plaid, warp"])


class ErrorBody(Config):
    """Body of every reply to a request that failed."""

    error: Problem
