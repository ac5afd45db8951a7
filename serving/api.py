"""What the service says over HTTP: requests, replies, the status of each error, and the routes to a Service."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ConfigDict, Field, ValidationError, model_validator
from starlette.exceptions import HTTPException

import ray_lir
from ray_lir.config import Config
from ray_lir.engines import ENGINES, EngineParams
from ray_lir.errors import ConfigError, RayLirError, ShardUnavailable
from ray_lir.formats.contract import EncoderContract

MAX_QUERIES = 64
MAX_K = 1000
MAX_QUERY_CHARACTERS = 4096

STATUS: dict[type[RayLirError], HTTPStatus] = {
    ConfigError: HTTPStatus.BAD_REQUEST,
    ShardUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    RayLirError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each kind of error; a kind that is not listed has that of its nearest base."""

DocumentField = Literal["title", "text", "metadata"]
QueryText = Annotated[str, Field(min_length=1, max_length=MAX_QUERY_CHARACTERS)]


class SearchRequest(Config):
    """One query, or several that share everything else."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "How do I read a zip file?", "k": 3},
                {"queries": ["open a file", "parse a date"], "engine": "plaid", "params": {"nprobe": 4}, "include": ["title"]},
            ]
        }
    )

    query: QueryText | None = None
    queries: list[QueryText] | None = Field(None, min_length=1, max_length=MAX_QUERIES)
    k: int = Field(10, ge=1, le=MAX_K)
    """How many documents a query, at most."""
    engine: str = "auto"
    """auto, exact, scan, plaid or warp."""
    params: dict[str, Any] = {}
    """The engine's own parameters; what is left out follows from the index and k."""
    include: tuple[DocumentField, ...] = ("title", "text", "metadata")
    """Fields of the documents to send beside doc_id, score and number."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either query or queries")
        return self

    @property
    def texts(self) -> list[str]:
        return self.queries or [self.query or ""]

    def chosen_engine(self) -> str | Config:
        """`auto`, or the parameters of the engine.

        Raises:
            ConfigError: if there is no such engine, or it has no such parameters.
        """
        if self.engine == "auto":
            if self.params:
                raise ConfigError(f"params need an engine that they belong to; choose {', '.join(ENGINES)}")
            return "auto"
        if self.engine not in ENGINES:
            raise ConfigError(f"unknown engine {self.engine!r}; choose auto, {', '.join(ENGINES)}")
        kind = ENGINES[self.engine].params
        try:
            return kind.model_validate({"engine": self.engine, **self.params})
        except ValidationError as error:
            raise ConfigError(f"params of {self.engine}: {first_problem(error.errors(), kind)}") from None


class Hit(Config):
    """A document that was found."""

    doc_id: str
    score: float
    number: int
    """Its place in the index."""
    title: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None


class Timings(Config):
    """Milliseconds, as the gateway saw them: the calls between processes are part of them."""

    encode: float
    """Inside the query encoder, with the wait for its turn."""
    plan: float
    stages: list[float]
    """Each stage of the engine, over all shard groups."""
    documents: float
    """Fetching the documents' fields."""
    total: float


class SearchResponse(Config):
    """The best documents of each query, best first."""

    results: list[list[Hit]]
    engine: str
    params: list[EngineParams]
    """The parameters that gave each query's answer, with all defaults filled in."""
    timings: Timings
    index_version: int


class IndexFacts(Config):
    """What is being searched."""

    index: str
    version: int
    num_docs: int
    num_tokens: int
    num_shards: int
    num_groups: int
    """Deployments that the shards are spread over."""
    num_centroids: int
    nbits: int
    contract: EncoderContract
    fingerprint: str
    """Of the contract: embeddings with the same one can be mixed."""


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


class Service(Protocol):
    """What the routes need behind them."""

    async def search(self, request: SearchRequest) -> SearchResponse: ...

    async def health(self) -> Health: ...

    async def index(self) -> IndexFacts: ...


def routes(service: Service) -> FastAPI:
    """The HTTP application over a service."""
    app = FastAPI(
        title="ray_lir",
        version=ray_lir.__version__,
        summary="Late-interaction search over an index.",
        exception_handlers={
            RayLirError: _ray_lir_error,
            RequestValidationError: _invalid_request,
            HTTPException: _http_error,
            Exception: _unexpected,
        },
    )
    errors: dict[int | str, dict[str, Any]] = {code: {"model": ErrorBody} for code in (400, 422, 500, 503)}

    @app.post("/search", responses=errors, response_model_exclude_none=True)
    async def search(request: SearchRequest) -> SearchResponse:
        """Searches for one query or several."""
        return await service.search(request)

    @app.get("/health", responses={503: {"model": Health}})
    async def health(response: Response) -> Health:
        """503 while anything that a search needs does not answer."""
        report = await service.health()
        response.status_code = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return report

    @app.get("/index")
    async def index() -> IndexFacts:
        """What is being searched."""
        return await service.index()

    return app


def first_problem(errors: Sequence[Any], kind: type[Config]) -> str:
    """The first of pydantic's errors about a `kind`, as one line."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where}; the fields are {', '.join(kind.model_fields)}"
    if first["type"] == "missing":
        return f"{where} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" if where else message


def status_of(error: RayLirError) -> HTTPStatus:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def _reply(status: int, kind: str, message: str) -> JSONResponse:
    return JSONResponse(ErrorBody(error=Problem(kind=kind, message=message)).model_dump(), status)


async def _ray_lir_error(request: Request, error: RayLirError) -> JSONResponse:
    return _reply(status_of(error), type(error).__name__, str(error))


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    else:
        message = first_problem([{**first, "loc": first["loc"][1:]}], SearchRequest)
    return _reply(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", message)


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    kind = HTTPStatus(error.status_code).phrase.replace(" ", "")
    return _reply(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is")


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return _reply(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"unexpected {type(error).__name__}; the service's log has more")
