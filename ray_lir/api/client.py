"""Client: a typed client of the search service, for ordinary code (Client) and for asyncio (AsyncClient)."""

import base64
import ipaddress
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from ray_lir.api.admin import ErrorBody, Health, IndexChange, IndexFacts, IndexState
from ray_lir.api.search import (
    Document,
    EncodeRequest,
    EncodeResponse,
    ExplainRequest,
    Explanation,
    RerankRequest,
    RerankResponse,
    SearchRequest,
    SearchResponse,
    first_problem,
)
from ray_lir.base import errors
from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError, FormatError, Overloaded, RayLirError, ServiceUnavailable
from ray_lir.base.extras import require
from ray_lir.base.ids import BadId, look_up_id

if TYPE_CHECKING:
    import httpx

    from ray_lir.embeddings.token_embeddings import TokenEmbeddings

DEFAULT_URL = "http://127.0.0.1:8000"

Reply = TypeVar("Reply", bound=Config)
Request = TypeVar("Request", bound=Config)


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """One exchange: what is sent where, and what comes back."""

    method: Literal["GET", "POST"]
    path: str
    reply: type[Reply]
    body: Config | None = None
    statuses: tuple[int, ...] = (200,)

    def arguments(self) -> dict[str, Any]:
        content = None if self.body is None else self.body.model_dump_json(exclude_none=True)
        return {"method": self.method, "url": self.path, "content": content, "headers": {"Content-Type": "application/json"}}

    def read(self, response: "httpx.Response") -> Reply:
        """Raises the error that the service names, or FormatError if it is no ray_lir service."""
        try:
            if response.status_code in self.statuses:
                return self.reply.model_validate_json(response.content)
            problem = ErrorBody.model_validate_json(response.content).error
        except ValidationError:
            found = f"status {response.status_code} with something else"
            raise FormatError(str(response.url), "an answer of a ray_lir service", found, "check the address") from None
        kind = _error(problem.kind)
        if kind is Overloaded:
            raise Overloaded(problem.message, int(response.headers.get("Retry-After", 1)))
        raise kind(problem.message)


class Client:
    """Talks to a service at `url`; closes its connections at the end of a `with` block, or by `close`.

    Every method raises the error that the service names (ConfigError, NotFound, Overloaded, ShardUnavailable, ...), and
    ServiceUnavailable if nothing answers.

    Args:
        token: bearer token, if the service asks for one.
        timeout_s: how long an answer may take.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, timeout_s: float = 60.0):
        self._settings = (url, token, timeout_s)
        self._connect()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """A copy, in another process perhaps, opens connections of its own."""
        return type(self), self._settings

    def search(self, query: str | Sequence[str], **options: Any) -> SearchResponse:
        """Searches for one query or several; options are the other fields of SearchRequest."""
        return self._send(_search(query, options))

    def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> "TokenEmbeddings":
        """Token embeddings of texts; they are numbered."""
        return _embeddings(self._send(_encode(texts, kind)))

    def rerank(self, query: str, **options: Any) -> RerankResponse:
        """Orders `texts`, or the documents `doc_ids` of the index; options are the other fields of RerankRequest."""
        return self._send(_rerank(query, options))

    def explain(self, query: str, doc_id: str, **options: Any) -> Explanation:
        """Why a document is found, or not; options are the other fields of ExplainRequest."""
        return self._send(_explain(query, doc_id, options))

    def document(self, doc_id: str | int) -> Document:
        return self._send(_document(doc_id))

    def index(self) -> IndexFacts:
        return self._send(INDEX)

    def health(self) -> Health:
        return self._send(HEALTH)

    def load_version(self, version: int | None = None, share: float | None = None) -> IndexState:
        """Serves a version of the index, the latest by default, from now on; with `share`, for that share of the requests.
        Needs a token that may administrate."""
        return self._send(_change("load", version=version, share=share))

    def promote(self) -> IndexState:
        """Lets the version that answers a share of the requests answer all."""
        return self._send(_change("promote"))

    def roll_back(self) -> IndexState:
        """Ends that share; without one, serves the version before again."""
        return self._send(_change("roll_back"))

    def close(self) -> None:
        if self._process == os.getpid():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Open connections of this process. In a forked one, those of the parent would bring one's answers to the other."""
        import httpx  # a program that only knows of the client does not load it

        url, token, timeout_s = self._settings
        with _telling_settings(url):
            self._http = httpx.Client(base_url=url, headers=_headers(token), timeout=timeout_s, trust_env=not _is_loopback(url))
        self._process = os.getpid()

    def _send(self, call: Call[Reply]) -> Reply:
        import httpx

        if self._process != os.getpid():
            self._connect()
        try:
            response = self._http.request(**call.arguments())
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        return call.read(response)


class AsyncClient:
    """The same for asyncio; close it with `async with`, or by `await client.close()`.

    Args:
        max_connections: requests on their way at a time; others wait in the client.
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, timeout_s: float = 60.0, max_connections: int = 100):
        self._settings = (url, token, timeout_s, max_connections)
        self._connect()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """A copy, in another process perhaps, opens connections of its own."""
        return type(self), self._settings

    async def search(self, query: str | Sequence[str], **options: Any) -> SearchResponse:
        return await self._send(_search(query, options))

    async def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> "TokenEmbeddings":
        return _embeddings(await self._send(_encode(texts, kind)))

    async def rerank(self, query: str, **options: Any) -> RerankResponse:
        return await self._send(_rerank(query, options))

    async def explain(self, query: str, doc_id: str, **options: Any) -> Explanation:
        return await self._send(_explain(query, doc_id, options))

    async def document(self, doc_id: str | int) -> Document:
        return await self._send(_document(doc_id))

    async def index(self) -> IndexFacts:
        return await self._send(INDEX)

    async def health(self) -> Health:
        return await self._send(HEALTH)

    async def load_version(self, version: int | None = None, share: float | None = None) -> IndexState:
        return await self._send(_change("load", version=version, share=share))

    async def promote(self) -> IndexState:
        return await self._send(_change("promote"))

    async def roll_back(self) -> IndexState:
        return await self._send(_change("roll_back"))

    async def close(self) -> None:
        if self._process == os.getpid():
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connect(self) -> None:
        """Open connections of this process, as `Client` does."""
        import httpx

        url, token, timeout_s, max_connections = self._settings
        limits = httpx.Limits(max_connections=max_connections)
        with _telling_settings(url):
            self._http = httpx.AsyncClient(
                base_url=url, headers=_headers(token), timeout=timeout_s, limits=limits, trust_env=not _is_loopback(url)
            )
        self._process = os.getpid()

    async def _send(self, call: Call[Reply]) -> Reply:
        import httpx

        if self._process != os.getpid():
            self._connect()
        try:
            response = await self._http.request(**call.arguments())
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        return call.read(response)


INDEX = Call("GET", "/index", IndexFacts)
HEALTH = Call("GET", "/health", Health, statuses=(200, 503))


def _search(query: str | Sequence[str], options: dict[str, Any]) -> Call[SearchResponse]:
    if isinstance(query, str):
        queries: dict[str, Any] = {"query": query}
    else:
        from ray_lir.base.arguments import text_list  # needs NumPy, which one query does not

        queries = {"queries": text_list("queries", query)}
    return Call("POST", "/search", SearchResponse, _checked(SearchRequest, {**queries, **options}))


def _encode(texts: Sequence[str], kind: str) -> Call[EncodeResponse]:
    require("numpy", "encode")
    from ray_lir.base.arguments import text_list

    return Call(
        "POST", "/encode", EncodeResponse, _checked(EncodeRequest, {"texts": text_list("texts", texts), "kind": kind, "format": "base64"})
    )


def _rerank(query: str, options: dict[str, Any]) -> Call[RerankResponse]:
    from ray_lir.base.arguments import id_list, text_list

    if options.get("texts") is not None:
        options["texts"] = text_list("texts", options["texts"])
    if options.get("doc_ids") is not None:
        options["doc_ids"] = id_list("doc_ids", options["doc_ids"])
    return Call("POST", "/rerank", RerankResponse, _checked(RerankRequest, {"query": query, **options}))


def _explain(query: str, doc_id: str, options: dict[str, Any]) -> Call[Explanation]:
    return Call("POST", "/explain", Explanation, _checked(ExplainRequest, {"query": query, "doc_id": doc_id, **options}))


def _document(doc_id: str | int) -> Call[Document]:
    try:
        doc_id = look_up_id(doc_id)
    except BadId as error:
        raise ConfigError(f"doc_id {error}; give the id of a document") from None
    return Call("GET", f"/documents?id={quote(doc_id, safe='')}", Document)


def _change(action: str, **options: Any) -> Call[IndexState]:
    return Call("POST", "/admin/index", IndexState, _checked(IndexChange, {"action": action, **options}))


def _checked(kind: type[Request], fields: dict[str, Any]) -> Request:
    """Raises ConfigError, before anything is sent, if the request cannot be answered."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(first_problem(error.errors(), kind)) from None


def _embeddings(response: EncodeResponse) -> "TokenEmbeddings":
    import numpy as np

    from ray_lir.embeddings.token_embeddings import TokenEmbeddings

    matrices = [np.frombuffer(base64.b64decode(each), "<f2").reshape(-1, response.dim) for each in response.embeddings]
    return TokenEmbeddings.of(matrices)


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _error(kind: str) -> type[RayLirError]:
    """The class of that name if it takes a message; ConfigError for a request that was refused as malformed."""
    found = getattr(errors, kind, None)
    if kind in ("InvalidRequest", "RequestEntityTooLarge"):
        return ConfigError
    return found if isinstance(found, type) and issubclass(found, RayLirError) and not issubclass(found, FormatError) else RayLirError


@contextmanager
def _telling_settings(url: str) -> Iterator[None]:
    """Raises ConfigError if a URL is not one of a service, or httpx does not take the token or a proxy of the environment."""
    import httpx

    try:
        parsed = httpx.URL(url)
        is_service = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 2**16
    except (httpx.InvalidURL, TypeError, ValueError):
        is_service = False
    if not is_service:
        raise ConfigError(f"{url!r} is not the address of a service; write one such as {DEFAULT_URL}")
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"cannot connect to {url}: {why}; check the token, and the proxies of the environment (HTTP_PROXY)") from None


def _is_loopback(url: str) -> bool:
    """Whether a URL names this machine itself, which no proxy of the environment (HTTP_PROXY and the like) can reach."""
    import httpx

    host = httpx.URL(url).host
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _unreachable(url: "httpx.URL", error: "httpx.HTTPError") -> ServiceUnavailable:
    import httpx

    why = "it took too long" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return ServiceUnavailable(f"no answer from {url}: {why}; check the address, and that the service runs")
