"""Models of the API for searches and documents. `ray_lir.api.admin` has the models for operators."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from ray_lir.base.config import Config
from ray_lir.base.ids import check_lookup_id
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
DocId = Annotated[str, BeforeValidator(check_lookup_id), StringConstraints(min_length=1, max_length=8192)]
"""Longer than new ids may be, because older indexes hold longer ids."""
Version = Annotated[int, Field(ge=1, le=2**31)]
Milliseconds = Annotated[float, Field(gt=0, le=3_600_000, allow_inf_nan=False)]


class EngineParams(Config):
    """The parameters of an engine that gave an answer, with all defaults filled in: the engine's name, and fields that depend on it."""

    model_config = ConfigDict(extra="allow")

    engine: str

    @model_validator(mode="before")
    @classmethod
    def _of_any_engine(cls, params: Any) -> Any:
        return params.model_dump() if isinstance(params, Config) else params


class SearchRequest(Config):
    """One query, or several with the same options: body of `POST /search`."""

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
    """Text of the query. Give either `query` or `queries`."""
    queries: list[QueryText] | None = Field(None, min_length=1, max_length=MAX_QUERIES)
    """Texts of several queries, at most 64."""
    k: int = Field(10, ge=1, le=MAX_K)
    """Documents to return for each query, at most."""
    engine: str = "auto"
    """Engine that searches: auto, or an engine that `GET /index` lists."""
    quality: Quality = "balanced"
    """For the engine auto: how closely it must follow the exact ranking."""
    params: dict[str, Any] = {}
    """Parameters of the engine, such as {"nprobe": 4}. Defaults follow from the index and k."""
    filters: FiltersInput = Field(None, validation_alias=FILTER_NAMES)
    """Conditions on the documents, as text (`year >= 2020, tags ~ news`), a short dict ({"year": {">=": 2020}}) or an object with
    `where` and `ids`. Filters are applied before top-k. `where` and `filter` are other names of this field."""
    version: Version | None = None
    """Version of the index to search: the served one, the previous one or the canary. None: the service chooses."""
    include: tuple[DocumentField, ...] = ("title", "text", "metadata")
    """Fields of each hit besides doc_id, score and number."""
    deadline_ms: Milliseconds | None = None
    """Longest time of the request, in milliseconds. None: the service's timeout_s. Late shard groups are left out if min_coverage
    allows it."""
    min_coverage: float = Field(1.0, ge=0, le=1)
    """Fraction of the documents that must be searched, 0 to 1. A lower coverage is an error."""
    explain: bool = False
    """Return the match of every query token in each hit."""
    highlight: bool = False
    """Return the words of each hit that the query matched, and its best passage."""

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
        """The queries as a list."""
        return self.queries or [self.query or ""]


class QueryToken(Config):
    """A token of the query."""

    piece: str
    """The tokenizer's token: a word, a part of a word such as ##ing, or a special token."""
    start: int | None = None
    """Its first character in the query, in code points; None for tokens that are not in the text."""
    end: int | None = None
    """The character after its last one."""
    weight: float
    """Factor of its similarity in the score."""


class TextTruncation(Config):
    """A text that was truncated."""

    position: int = 0
    """Position of the text in the request."""
    kept_tokens: int
    total_tokens: int
    exact: bool = True
    """Whether total_tokens is exact; if not, it is a lower bound."""


class Match(Config):
    """The document token that a query token scores with."""

    similarity: float
    """Dot product of the two token vectors."""
    contribution: float
    """weight * similarity. The sum over the query tokens is the document's exact score, up to rounding."""
    field: Literal["title", "text"] | None = None
    """Field that holds the token; None for special tokens."""
    start: int | None = None
    """Its first character in the field, in code points."""
    end: int | None = None
    """The character after its last one."""
    box: tuple[float, float, float, float] | None = None
    """For a page that is an image: the matched part, as left, top, right and bottom in fractions of its width and height."""


MARKED_FRACTION = 0.3
"""Highlights above this fraction of the strongest one, over all hits, are shown on terminals and in notebooks."""


class Highlight(Config):
    """A word of a document with a token that a query token matched."""

    field: Literal["title", "text"]
    start: int
    """Its first character in the field, in code points."""
    end: int
    """The character after its last one."""
    strength: float
    """Sum of the contributions of its matches. Function words count a fifth; query tokens that are not in the text count 0."""
    query_tokens: list[int]
    """Positions, in `query_tokens`, of the query tokens that matched it."""


class Snippet(Config):
    """The best passage of a document's text."""

    text: str
    start: int
    """Its first character in the text, in code points."""
    more: bool
    """Whether the text continues after it."""


class HitSides(Config):
    """The scores of both sides of a hybrid search, and which side found the document."""

    bm25: float
    """BM25 score; 0 for a document without a term of the query."""
    late_interaction: float | None = None
    """Exact late-interaction score; None for a document without tokens."""
    found_by: tuple[Literal["terms", "vectors"], ...]
    """Sides that have the document among their candidates."""


class Passage(Config):
    """A part of a document's text."""

    start: int
    """Its first character in the text, in code points."""
    end: int
    """The character after its last one."""


class Hit(Config):
    """A document that was found, with its score."""

    doc_id: str
    score: float
    number: int
    """Document number in the index."""
    sides: HitSides | None = None
    """With the engine hybrid: both scores, and which side found the document."""
    title: str | None = None
    text: str | None = None
    metadata: dict[str, Any] | None = None
    matches: list[Match] | None = None
    """With `explain`: one match for each query token, in order."""
    highlights: list[Highlight] | None = None
    """With `highlight`: the matched words, in the order of title and text."""
    snippet: Snippet | None = None
    """With `highlight`: the best passage of the text."""
    passage: Passage | None = None
    """With `highlight`, for documents that were encoded in windows: the window with the largest part of the score. The snippet lies in
    it."""


class Timings(Config):
    """Milliseconds of each step, measured in the gateway; they include the calls between processes."""

    encode: float
    """Encoding the queries, including the time a call waits in the encoder's queue."""
    plan: float
    """Planning the queries."""
    stages: list[float]
    """Each stage of the engine: its slowest shard group, and merging."""
    documents: float
    """Reading the documents' fields."""
    explain: float | None = None
    """Locating matches and highlights; None if they were not requested."""
    total: float


class SearchResponse(Config):
    """The best documents of each query: answer of `POST /search`."""

    results: list[list[Hit]]
    """For each query its hits, best first."""
    query_tokens: list[list[QueryToken]] | None = None
    """With `explain`: the tokens of each query."""
    truncated_queries: list[TextTruncation] = []
    """Queries longer than the encoder's query_length. Only their first tokens were used."""
    engine: str
    """Engine that searched; with `auto`, the one that it chose."""
    params: list[EngineParams]
    """Parameters of the engine for each query, with all defaults filled in."""
    timings: Timings
    index_version: int
    """Version of the index that answered."""
    coverage: float
    """Fraction of the live documents that were searched. The answer equals that of an index of those documents alone, with the same
    query plans."""
    missing: dict[str, str] = {}
    """Shard groups that were left out, with the reason."""
    warnings: list[str] = []
    """Probable mistakes in the request: filter fields that no document has."""


class EncodeRequest(Config):
    """Texts to encode: body of `POST /encode`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"texts": ["open a zip file"], "kind": "query", "format": "base64"}]})

    texts: list[Text] = Field(min_length=1, max_length=MAX_TEXTS)
    kind: Literal["query", "document"] = "query"
    """Encode the texts as queries or as documents."""
    format: Literal["numbers", "base64"] = "numbers"
    """Format of the embeddings. numbers: lists of numbers. base64: float16, little-endian, one row a token."""


class EncodeResponse(Config):
    """Token embeddings of each text: answer of `POST /encode`."""

    embeddings: list[list[list[float]] | str]
    """For each text a [tokens, dim] matrix, as numbers or base64."""
    num_tokens: list[int]
    """Rows of each matrix."""
    dim: int
    fingerprint: str
    """Fingerprint of the encoder's contract."""
    truncated_texts: list[TextTruncation] = []
    """Texts longer than the encoder's limit. Only their first tokens were encoded."""


class RerankRequest(Config):
    """A query, and texts or documents to order by their exact score: body of `POST /rerank`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "open a zip file", "texts": ["Reads ZIP archives.", "Parses dates."], "k": 1}]}
    )

    query: QueryText
    texts: list[Text] | None = Field(None, min_length=1, max_length=MAX_TEXTS)
    doc_ids: list[DocId] | None = Field(None, min_length=1, max_length=MAX_IDS)
    k: int | None = Field(None, ge=1, le=MAX_IDS)
    """Number of results, at most. None: all."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "RerankRequest":
        if (self.texts is None) == (self.doc_ids is None):
            raise ValueError("give either texts or doc_ids")
        return self


class Reranked(Config):
    """A text or document with its score."""

    position: int
    """Position in the request."""
    doc_id: str | None = None
    score: float


class RerankResponse(Config):
    """Texts or documents, best first: answer of `POST /rerank`.

    Equal scores keep the order of the request. Texts and documents without tokens are left out.
    """

    results: list[Reranked]
    truncated_queries: list[TextTruncation] = []
    """The query, if it is longer than the encoder's query_length."""
    truncated_texts: list[TextTruncation] = []
    """Texts longer than the encoder's document_length."""
    index_version: int


class Document(Config):
    """A document of the index: answer of `GET /documents`."""

    doc_id: str
    number: int
    title: str
    text: str
    metadata: dict[str, Any]
    index_version: int


class ExplainRequest(Config):
    """A query and a document: body of `POST /explain`. The other fields mean the same as in SearchRequest."""

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
    version: Version | None = None


class StageReport(Config):
    """The document in one stage of the engine."""

    name: str
    what: str
    """Description of what the stage scores."""
    score: float | None = None
    """The document's score in this stage, even if an earlier stage dropped it; None if the stage cannot score it."""
    cut: float | None = None
    """The lowest score that the stage kept; None if it kept every scored document."""
    num_kept: int
    """Documents that the stage kept."""
    survived: bool


class Explanation(Config):
    """Why a document is found, or which stage or filter drops it: answer of `POST /explain`."""

    document: Document
    rank: int | None = None
    """Rank, from 1; None if it is not among the k best."""
    score: float | None = None
    """Score in the last stage."""
    dropped_at: str | None = None
    """Name of the stage that dropped it, or `filters`; None if it is found."""
    reason: str
    """The explanation in one sentence."""
    truncation: TextTruncation | None = None
    """Set if the document is longer than the encoder's document_length. Only its first tokens are indexed."""
    truncated_queries: list[TextTruncation] = []
    """The query, if it is longer than the encoder's query_length."""
    stages: list[StageReport]
    query_tokens: list[QueryToken]
    matches: list[Match]
    params: EngineParams
    index_version: int
    warnings: list[str] = []
    """Probable mistakes in the request: filter fields that no document has."""


def first_problem(errors: Sequence[Any], kind: type[Config] | None) -> str:
    """Return the first of pydantic's validation errors of a model as one line."""
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown field {where}" + (f"; the fields are {', '.join(kind.model_fields)}" if kind else "")
    if first["type"] == "missing":
        return f"{where} is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{where}: {message[0].lower()}{message[1:]}" if where else message
