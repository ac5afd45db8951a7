"""What a search service and its clients say to each other about searches and documents; `operation` has the rest."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from ray_lir.base.config import Config
from ray_lir.base.engine_params import PARAMS, SERVED, EngineParams
from ray_lir.base.errors import ConfigError
from ray_lir.base.ids import look_up_id
from ray_lir.index.filters import FILTER_NAMES, FiltersInput

MAX_QUERIES = 64
MAX_K = 1000
MAX_QUERY_CHARACTERS = 4096
MAX_TEXTS = 64
MAX_TEXT_CHARACTERS = 32_768
MAX_IDS = 1000
MAX_EXPLAINED = 200

Quality = Literal["fast", "balanced", "exact"]
DocumentField = Literal["title", "text", "metadata"]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=MAX_QUERY_CHARACTERS)]
Text = Annotated[str, StringConstraints(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
DocId = Annotated[str, BeforeValidator(look_up_id), StringConstraints(min_length=1, max_length=8192)]
"""Longer than the ids that enter an index may be: older indexes hold others."""
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


class SearchRequest(Config):
    """One query, or several that share everything else."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"query": "How do I read a zip file?", "k": 3},
                {"queries": ["open a file", "parse a date"], "engine": "plaid", "params": {"nprobe": 4}, "include": ["title"]},
                {"query": "copy a folder", "deadline_ms": 200, "min_coverage": 0.5, "explain": True},
                {"query": "copy a folder", "filters": "kind = function and not (name ^= _ or name in [main, run])"},
            ]
        }
    )

    query: QueryText | None = None
    queries: list[QueryText] | None = Field(None, min_length=1, max_length=MAX_QUERIES)
    k: int = Field(10, ge=1, le=MAX_K)
    """How many documents a query, at most."""
    engine: str = "auto"
    """auto, exact, scan, plaid or warp."""
    quality: Quality = "balanced"
    """Of the engine auto: how much of the exact answer it must find."""
    params: dict[str, Any] = {}
    """The engine's own parameters; what is left out follows from the index and k."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """What documents must be like to be found, as text (`year >= 2020, tags ~ news`), a short dict ({"year": {">=": 2020}}) or an
    object with `where` and `ids`. Others are left out before any cut is made. `where` and `filter` are other names of this field."""
    include: tuple[DocumentField, ...] = ("title", "text", "metadata")
    """Fields of the documents to send beside doc_id, score and number."""
    deadline_ms: Milliseconds | None = None
    """What the answer may take. None: what the service allows. Shard groups that are late are left out."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """The share of the documents that must have been searched; an answer from fewer is an error."""
    explain: bool = False
    """Say which token of each document every query token matched."""
    highlight: bool = False
    """Say which words of each document the query matched, and which passage is the best."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "SearchRequest":
        if (self.query is None) == (self.queries is None):
            raise ValueError("give either query or queries")
        if (self.explain or self.highlight) and self.k * len(self.texts) > MAX_EXPLAINED:
            name = "explain" if self.explain else "highlight"
            raise ValueError(f"{name} is for {MAX_EXPLAINED} documents at most; lower k or send fewer queries")
        return self

    @property
    def texts(self) -> list[str]:
        return self.queries or [self.query or ""]

    def chosen_engine(self) -> str | Config:
        return chosen_engine(self.engine, self.params)


class QueryToken(Config):
    """A token of the query, as it is matched."""

    piece: str
    """As the tokenizer has it: a word, or a part such as ##ing, or a special token."""
    start: int | None = None
    """First character of the query; None for tokens that are not in its text."""
    end: int | None = None
    weight: float


class TextTruncation(Config):
    """A text that is longer than the encoder reads."""

    position: int = 0
    """Of the text in the request's list."""
    kept_tokens: int
    total_tokens: int
    exact: bool = True
    """False: total_tokens is a lower bound."""


class Match(Config):
    """The token of a document that a query token is most similar to."""

    similarity: float
    contribution: float
    """weight * similarity; their sum over the query tokens is the document's exact score, up to the rounding of the kernels."""
    field: Literal["title", "text"] | None = None
    """Where the token lies; None for special tokens."""
    start: int | None = None
    """First character in the field, counted in code points."""
    end: int | None = None


MARKED_FRACTION = 0.3
"""Highlights stronger than this fraction of the strongest, over all hits, are marked for people."""


class Highlight(Config):
    """A word of a document that query tokens matched."""

    field: Literal["title", "text"]
    start: int
    """First character in the field, counted in code points."""
    end: int
    strength: float
    """What its matches contribute to the score; function words count a fifth, tokens that are not in the query's text nothing."""
    query_tokens: list[int]
    """Numbers of the query's tokens that matched it."""


class Snippet(Config):
    """The best passage of a document's text."""

    text: str
    start: int
    """Its first character in the text, counted in code points."""
    more: bool
    """Whether the text goes on after it."""


class Hit(Config):
    """A document that was found."""

    doc_id: str
    score: float
    number: int
    """Its place in the index."""
    title: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    matches: list[Match] | None = None
    """With explain: one for each query token, in their order."""
    highlights: list[Highlight] | None = None
    """With highlight: in the order of title and text."""
    snippet: Snippet | None = None
    """With highlight."""


class Timings(Config):
    """Milliseconds, as the gateway saw them: the calls between processes are part of them."""

    encode: float
    """Inside the query encoder, with the wait for its turn."""
    plan: float
    stages: list[float]
    """Each stage of the engine, over all shard groups."""
    documents: float
    """Fetching the documents' fields."""
    explain: float | None = None
    total: float


class SearchResponse(Config):
    """The best documents of each query, best first."""

    results: list[list[Hit]]
    query_tokens: list[list[QueryToken]] | None = None
    """With explain: the tokens of each query."""
    truncated_queries: list[TextTruncation] = []
    """Queries that are longer than the encoder's query_length: only their first tokens were searched for."""
    engine: str
    params: list[EngineParams]
    """The parameters that gave each query's answer, with all defaults filled in."""
    timings: Timings
    index_version: int
    coverage: float
    """The share of the index's documents that were searched. The answer is what an index of those alone would give under
    the same query plans."""
    missing: dict[str, str] = {}
    """Shard groups that were left out, and why."""
    warnings: list[str] = []
    """What in the request is probably a mistake: a filter's field that no document has."""


class EncodeRequest(Config):
    """Texts to turn into token embeddings."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["open a zip file"], "kind": "query", "format": "base64"}]})

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    kind: Literal["query", "document"] = "query"
    format: Literal["numbers", "base64"] = "numbers"
    """numbers: lists of numbers; base64: float16, little-endian, one row a token."""


class EncodeResponse(Config):
    """Token embeddings of each text, under the index's encoder contract."""

    embeddings: list[list[list[float]] | str]
    """For each text [tokens, dim] numbers, or their bytes."""
    num_tokens: list[int]
    dim: int
    fingerprint: str
    """Of the encoder's contract."""
    truncated_texts: list[TextTruncation] = []
    """Texts that are longer than the encoder reads: the rest was not encoded."""


class RerankRequest(Config):
    """A query, and the texts, or documents of the index, to order by their exact score."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "open a zip file", "texts": ["Reads ZIP archives.", "Parses dates."], "k": 1}]}
    )

    query: QueryText
    texts: list[Text] | None = Field(None, min_length=1, max_length=MAX_TEXTS)
    doc_ids: list[DocId] | None = Field(None, min_length=1, max_length=MAX_IDS)
    k: int | None = Field(None, ge=1, le=MAX_IDS)
    """How many come back. None: all."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "RerankRequest":
        if (self.texts is None) == (self.doc_ids is None):
            raise ValueError("give either texts or doc_ids")
        return self


class Reranked(Config):
    """A text or document with its score."""

    position: int
    """In the request's list."""
    doc_id: str | None = None
    score: float


class RerankResponse(Config):
    """Best first; equal scores in the request's order. Texts or documents without a token to match are left out."""

    results: list[Reranked]
    truncated_queries: list[TextTruncation] = []
    """The query, if it is longer than the encoder's query_length."""
    truncated_texts: list[TextTruncation] = []
    """Texts of the request that are longer than the encoder's document_length."""
    index_version: int


class Document(Config):
    """A document of the index."""

    doc_id: str
    number: int
    title: str
    text: str
    metadata: dict[str, Any]
    index_version: int


class ExplainRequest(Config):
    """A query and a document: why is it found, or why not?"""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "open a zip file", "doc_id": "zipfile.ZipFile", "engine": "plaid"}]}
    )

    query: QueryText
    doc_id: DocId
    k: int = Field(10, ge=1, le=MAX_K)
    engine: str = "auto"
    quality: Quality = "balanced"
    params: dict[str, Any] = {}
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)

    def chosen_engine(self) -> str | Config:
        return chosen_engine(self.engine, self.params)


class StageReport(Config):
    """What became of the document in one stage of the engine."""

    name: str
    what: str
    """What the stage scores, and how."""
    score: float | None = None
    """The document's score in this stage, whatever the stages before did with it; None if the stage does not score it."""
    cut: float | None = None
    """The lowest score that was kept; None if fewer documents were scored than could be kept."""
    num_kept: int
    survived: bool


class Explanation(Config):
    """Why a document was found for a query, or at which stage it was dropped."""

    document: Document
    rank: int | None = None
    """From 1; None if it is not among the k best."""
    score: float | None = None
    """Its score in the last stage."""
    dropped_at: str | None = None
    """A stage, or filters; None if it was found."""
    reason: str
    truncation: TextTruncation | None = None
    """Set if the document is longer than the encoder's document_length: only its first tokens are indexed."""
    truncated_queries: list[TextTruncation] = []
    """The query, if it is longer than the encoder's query_length."""
    stages: list[StageReport]
    query_tokens: list[QueryToken]
    matches: list[Match]
    params: EngineParams
    index_version: int
    warnings: list[str] = []
    """What in the request is probably a mistake: a filter's field that no document has."""


def chosen_engine(engine: str, params: dict[str, Any], engines: Sequence[str] = SERVED) -> str | Config:
    """`auto`, or the parameters of the engine.

    Args:
        engines: those that can be chosen. A service has SERVED, a Searcher all of PARAMS.

    Raises:
        ConfigError: if there is no such engine, or it has no such parameters.
    """
    if engine == "auto":
        if params:
            raise ConfigError(f"params need an engine that they belong to; choose {', '.join(engines)}")
        return "auto"
    if engine not in PARAMS:
        raise ConfigError(f"unknown engine {engine!r}; choose auto, {', '.join(engines)}")
    if engine not in engines:
        raise ConfigError(
            f"engine {engine} needs all shards in one process, so a service does not have it; choose {', '.join(engines)}, "
            "or use Searcher (ray-lir search)"
        )
    for name, value in params.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"params of {engine}: {name}: {value} is no number to search with; leave it out for the default")
    kind = PARAMS[engine]
    try:
        return kind.model_validate({"engine": engine, **params})
    except ValidationError as error:
        raise ConfigError(f"params of {engine}: {first_problem(error.errors(), kind)}") from None


def first_problem(errors: Sequence[Any], kind: type[Config] | None) -> str:
    """The first of pydantic's errors about a `kind`, as one line."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where}" + (f"; the fields are {', '.join(kind.model_fields)}" if kind else "")
    if first["type"] == "missing":
        return f"{where} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" if where else message
