"""Typed clients of the search service: `Client`, and `AsyncClient` for asyncio."""

import asyncio
import base64
import ipaddress
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, cast
from urllib.parse import quote

from pydantic import ValidationError

from ray_lir.api.admin import ErrorBody, Health, IndexChange, IndexFacts, IndexList, IndexState
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
from ray_lir.api.writes import WriteRequest, WriteResponse
from ray_lir.api.writing import Documents, additions, deletions, steps
from ray_lir.base import errors
from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError, FormatError, Overloaded, RayLirError, ServiceUnavailable
from ray_lir.base.extras import require
from ray_lir.base.ids import BadId, check_lookup_id

if TYPE_CHECKING:
    import httpx

    from ray_lir.embeddings.token_embeddings import TokenEmbeddings

DEFAULT_URL = "http://127.0.0.1:8000"

Reply = TypeVar("Reply", bound=Config)
Request = TypeVar("Request", bound=Config)


@dataclass(frozen=True)
class Call(Generic[Reply]):
    """One HTTP exchange: method, path, request model and response model.

    Attributes:
        reply: Model of a successful response.
        body: Request model; None for a request without a body.
        statuses: Statuses of a successful response.
        key: Idempotency key; None: the request has none.
    """

    method: Literal["GET", "POST"]
    path: str
    reply: type[Reply]
    body: Config | None = None
    statuses: tuple[int, ...] = (200,)
    key: str | None = None

    def arguments(self) -> dict[str, Any]:
        """Arguments for httpx's `request`."""
        content = None if self.body is None else self.body.model_dump_json(exclude_none=True)
        headers = {"Content-Type": "application/json"} | ({} if self.key is None else {"Idempotency-Key": self.key})
        return {"method": self.method, "url": self.path, "content": content, "headers": headers}

    def read(self, response: "httpx.Response") -> Reply:
        """Return the response as its model.

        Raises:
            RayLirError: The error that the service reports, as its kind.
            FormatError: The response is not one of a ray_lir service.
        """
        try:
            if response.status_code in self.statuses:
                return self.reply.model_validate_json(response.content)
            problem = ErrorBody.model_validate_json(response.content).error
        except ValidationError:
            found = f"status {response.status_code} with another body"
            raise FormatError(str(response.url), "a response of a ray_lir service", found, "check the address") from None
        kind = _error(problem.kind)
        if kind is Overloaded:
            raise Overloaded(problem.message, int(response.headers.get("Retry-After", 1)))
        raise kind(problem.message)


class Client:
    """Client of the search service. Use it in a `with` block, or call `close` to close its connections.

    Every method raises the error that the service reports, as its kind (ConfigError, NotFound, Overloaded, ShardUnavailable, ...). It
    raises ServiceUnavailable if nothing answers, and ConfigError if the request is not valid.

    Args:
        url: Address of the service.
        token: Bearer token. None: send no token.
        timeout_s: Longest time to wait for a response, in seconds.
        index: Name of the index, in a service of several. None: the service has one index.

    Example:
        >>> with Client("http://127.0.0.1:8000") as client:
        ...     hits = client.search("open a zip file", k=3).results[0]
    """

    def __init__(self, url: str = DEFAULT_URL, token: str | None = None, timeout_s: float = 60.0, index: str | None = None):
        self._settings = (url, token, timeout_s, index)
        self._connect()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """Pickles the settings; a copy opens its own connections."""
        return type(self), self._settings

    @property
    def url(self) -> str:
        """Address of the service."""
        return self._settings[0]

    def search(self, query: str | Sequence[str], **options: Any) -> SearchResponse:
        """Return the best documents for one or several queries. `options` are the other fields of `SearchRequest`."""
        return self._send(_search(query, options))

    def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> "TokenEmbeddings":
        """Return token embeddings of texts, with positions as ids."""
        return _embeddings(self._send(_encode(texts, kind)))

    def rerank(self, query: str, **options: Any) -> RerankResponse:
        """Return `texts`, or the documents `doc_ids`, in order of their exact score. `options` are the other fields of `RerankRequest`."""
        return self._send(_rerank(query, options))

    def explain(self, query: str, doc_id: str, **options: Any) -> Explanation:
        """Return why a document is found or dropped.

        Args:
            query: Text of the query.
            doc_id: Id of the document.
            options: The other fields of `ExplainRequest`.
        """
        return self._send(_explain(query, doc_id, options))

    def document(self, doc_id: str | int) -> Document:
        """Return a document of the index."""
        return self._send(_document(doc_id))

    def add(self, documents: Documents, *, key: str | None = None, wait_s: float = 60.0) -> WriteResponse:
        """Add documents, and wait until searches see them. Needs a write or admin token. The same call as `Index.add`.

        The service adds them in requests of up to a thousand documents. A request that is not answered is repeated, and applied once.

        Args:
            documents: Texts, or dicts with `text` and optionally `_id`, `title` and metadata; or the path of a corpus. A document with the
                id of another replaces it. One in memory without an id gets a random one.
            key: Idempotency key: a second call with the same key and documents changes nothing. None: a random one.
            wait_s: Seconds to wait until searches see the documents. 0: return as soon as they are durable.
        Returns:
            The numbers of accepted documents, and the refused rows of a corpus with their reasons.
        Raises:
            ConfigError: A document in memory is not usable; the documents of its request were not accepted.
            Conflict: The key was used with other documents.
            Overloaded: Too many writes wait for publication, for longer than `timeout_s`.
            WritesUnavailable: The service cannot keep writes, or accepted ones are not visible after `wait_s`.
        """
        return self._write(additions(documents), key, wait_s)

    def delete(self, doc_ids: Iterable[str], *, key: str | None = None, wait_s: float = 60.0) -> WriteResponse:
        """Delete documents by id, and wait until searches no longer find them. Needs a write or admin token.

        The same call as `Index.delete`.

        Args:
            doc_ids: Ids to delete. Unknown ids are no error.
            key: Idempotency key: a second call with the same key and ids changes nothing. None: a random one.
            wait_s: Seconds to wait until searches see the change. 0: return as soon as it is durable.
        Returns:
            The number of accepted ids.
        Raises:
            ConfigError: `doc_ids` is not a list of ids.
            Conflict: The key was used with other ids.
            Overloaded: Too many writes wait for publication, for longer than `timeout_s`.
            WritesUnavailable: The service cannot keep writes, or accepted ones are not visible after `wait_s`.
        """
        return self._write(_deletions(doc_ids), key, wait_s)

    def index(self, version: int | None = None) -> IndexFacts:
        """Return the served version, its size and its encoder contract. `version` is another open version to describe."""
        return self._send(_index(version))

    def indexes(self) -> IndexList:
        """Return name and state of each index that the token may use. The service must have several indexes."""
        return self._send(_indexes(self._settings[0]))

    def health(self) -> Health:
        """Return whether the service is ready, and the state of each deployment."""
        return self._send(HEALTH)

    def load_version(self, version: int | None = None, traffic_fraction: float | None = None, *, share: float | None = None) -> IndexState:
        """Serve another version of the index. Needs an admin token.

        Args:
            version: Version to serve. None: the latest.
            traffic_fraction: Fraction of the requests that the version answers, as a canary. None: all requests.
            share: Name of `traffic_fraction` in version 0.1.
        """
        return self._send(_load(version, traffic_fraction, share))

    def promote(self) -> IndexState:
        """Let the canary answer all requests. Needs an admin token."""
        return self._send(_change("promote"))

    def roll_back(self) -> IndexState:
        """End the canary; without a canary, serve the previous version. Needs an admin token."""
        return self._send(_change("roll_back"))

    def close(self) -> None:
        """Close the connections of this process."""
        if self._process == os.getpid():
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        """Opens connections for this process. A forked process must not use its parent's: responses would reach the wrong one."""
        import httpx  # importing the client does not load httpx

        url, token, timeout_s, index = self._settings
        with _checking_settings(url):
            address, local = _address(url, index), _is_loopback(url)
            self._http = httpx.Client(base_url=address, headers=_headers(token), timeout=timeout_s, trust_env=not local)
        self._process = os.getpid()

    def _write(self, requests: Iterable[WriteRequest], key: str | None, wait_s: float) -> WriteResponse:
        writing = steps(requests, key, wait_s, self._settings[2])
        result: WriteResponse | IndexFacts | RayLirError | None = None
        while True:
            try:
                step = writing.send(result)
            except StopIteration as end:
                return cast(WriteResponse, end.value)
            result = None
            if isinstance(step, float):
                time.sleep(step)
                continue
            try:
                result = self._send(_index()) if step is None else self._send(_write(*step))
            except RayLirError as error:
                result = error

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
    """`Client` for asyncio: the same methods, as coroutines. Use it in an `async with` block, or await `close`.

    Args:
        url: Address of the service.
        token: Bearer token. None: send no token.
        timeout_s: Longest time to wait for a response, in seconds.
        max_connections: Concurrent requests; further requests wait in the client.
        index: Name of the index, in a service of several. None: the service has one index.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        token: str | None = None,
        timeout_s: float = 60.0,
        max_connections: int = 100,
        index: str | None = None,
    ):
        self._settings = (url, token, timeout_s, max_connections, index)
        self._connect()

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        """Pickles the settings; a copy opens its own connections."""
        return type(self), self._settings

    async def search(self, query: str | Sequence[str], **options: Any) -> SearchResponse:
        """See `Client.search`."""
        return await self._send(_search(query, options))

    async def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "query") -> "TokenEmbeddings":
        """See `Client.encode`."""
        return _embeddings(await self._send(_encode(texts, kind)))

    async def rerank(self, query: str, **options: Any) -> RerankResponse:
        """See `Client.rerank`."""
        return await self._send(_rerank(query, options))

    async def explain(self, query: str, doc_id: str, **options: Any) -> Explanation:
        """See `Client.explain`.

        Args:
            query: Text of the query.
            doc_id: Id of the document.
            options: The other fields of `ExplainRequest`.
        """
        return await self._send(_explain(query, doc_id, options))

    async def document(self, doc_id: str | int) -> Document:
        """See `Client.document`."""
        return await self._send(_document(doc_id))

    async def add(self, documents: Documents, *, key: str | None = None, wait_s: float = 60.0) -> WriteResponse:
        """See `Client.add`.

        Args:
            documents: Documents to add.
            key: Idempotency key; None: a random one.
            wait_s: Seconds to wait until searches see the documents; 0: do not wait.
        """
        return await self._write(additions(documents), key, wait_s)

    async def delete(self, doc_ids: Iterable[str], *, key: str | None = None, wait_s: float = 60.0) -> WriteResponse:
        """See `Client.delete`.

        Args:
            doc_ids: Ids to delete.
            key: Idempotency key; None: a random one.
            wait_s: Seconds to wait until searches see the change; 0: do not wait.
        """
        return await self._write(_deletions(doc_ids), key, wait_s)

    async def index(self, version: int | None = None) -> IndexFacts:
        """See `Client.index`."""
        return await self._send(_index(version))

    async def indexes(self) -> IndexList:
        """See `Client.indexes`."""
        return await self._send(_indexes(self._settings[0]))

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._send(HEALTH)

    async def load_version(
        self, version: int | None = None, traffic_fraction: float | None = None, *, share: float | None = None
    ) -> IndexState:
        """See `Client.load_version`.

        Args:
            version: Version to serve. None: the latest.
            traffic_fraction: Fraction of the requests that the version answers, as a canary. None: all requests.
            share: Name of `traffic_fraction` in version 0.1.
        """
        return await self._send(_load(version, traffic_fraction, share))

    async def promote(self) -> IndexState:
        """See `Client.promote`."""
        return await self._send(_change("promote"))

    async def roll_back(self) -> IndexState:
        """See `Client.roll_back`."""
        return await self._send(_change("roll_back"))

    async def close(self) -> None:
        """Close the connections of this process."""
        if self._process == os.getpid():
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _connect(self) -> None:
        """Opens connections for this process, as `Client` does."""
        import httpx

        url, token, timeout_s, max_connections, index = self._settings
        limits = httpx.Limits(max_connections=max_connections)
        with _checking_settings(url):
            self._http = httpx.AsyncClient(
                base_url=_address(url, index),
                headers=_headers(token),
                timeout=timeout_s,
                limits=limits,
                trust_env=not _is_loopback(url),
            )
        self._process = os.getpid()

    async def _write(self, requests: Iterable[WriteRequest], key: str | None, wait_s: float) -> WriteResponse:
        writing = steps(requests, key, wait_s, self._settings[2])
        result: WriteResponse | IndexFacts | RayLirError | None = None
        while True:
            try:
                step = writing.send(result)
            except StopIteration as end:
                return cast(WriteResponse, end.value)
            result = None
            if isinstance(step, float):
                await asyncio.sleep(step)
                continue
            try:
                result = await (self._send(_index()) if step is None else self._send(_write(*step)))
            except RayLirError as error:
                result = error

    async def _send(self, call: Call[Reply]) -> Reply:
        import httpx

        if self._process != os.getpid():
            self._connect()
        try:
            response = await self._http.request(**call.arguments())
        except httpx.HTTPError as error:
            raise _unreachable(self._http.base_url, error) from error
        return call.read(response)


HEALTH = Call("GET", "/health", Health, statuses=(200, 503))


def _address(url: str, index: str | None) -> str:
    """The address of an index's routes."""
    return url if index is None else f"{url.rstrip('/')}/indexes/{quote(index, safe='')}"


def _indexes(url: str) -> Call[IndexList]:
    """`GET /indexes`. The address is absolute, because the client's base address may be that of an index."""
    return Call("GET", f"{url.rstrip('/')}/indexes", IndexList)


def _index(version: int | None = None) -> Call[IndexFacts]:
    return Call("GET", "/index" if version is None else f"/index?version={version}", IndexFacts)


def _search(query: str | Sequence[str], options: dict[str, Any]) -> Call[SearchResponse]:
    if isinstance(query, str):
        queries: dict[str, Any] = {"query": query}
    else:
        from ray_lir.base.arguments import text_list  # loads NumPy, which a single query does not need

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
        doc_id = check_lookup_id(doc_id)
    except BadId as error:
        raise ConfigError(f"doc_id {error}; give the id of a document") from None
    return Call("GET", f"/documents?id={quote(doc_id, safe='')}", Document)


def _write(request: WriteRequest, key: str) -> Call[WriteResponse]:
    return Call("POST", "/documents", WriteResponse, request, (202,), key)


def _deletions(doc_ids: Iterable[str]) -> Iterator[WriteRequest]:
    from ray_lir.base.arguments import id_set

    return deletions(id_set("doc_ids", doc_ids))


def _load(version: int | None, traffic_fraction: float | None, share: float | None) -> Call[IndexState]:
    if traffic_fraction is not None and share is not None:
        raise ConfigError("traffic_fraction and share are the same setting; give only traffic_fraction")
    return _change("load", version=version, traffic_fraction=share if traffic_fraction is None else traffic_fraction)


def _change(action: str, **options: Any) -> Call[IndexState]:
    return Call("POST", "/admin/index", IndexState, _checked(IndexChange, {"action": action, **options}))


def _checked(kind: type[Request], fields: dict[str, Any]) -> Request:
    """The request as its model. Raises ConfigError if a field is wrong, before anything is sent."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise ConfigError(first_problem(error.errors(), kind)) from None


def _embeddings(response: EncodeResponse) -> "TokenEmbeddings":
    import numpy as np

    from ray_lir.embeddings.token_embeddings import TokenEmbeddings

    encoded = (each for each in response.embeddings if isinstance(each, str))  # the request asks for base64
    matrices = [np.frombuffer(base64.b64decode(each), "<f2").reshape(-1, response.dim) for each in encoded]
    return TokenEmbeddings.of(matrices)


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _error(kind: str) -> type[RayLirError]:
    """The error class of a kind; ConfigError for a malformed request, RayLirError for an unknown kind."""
    found = getattr(errors, kind, None)
    if kind in ("InvalidRequest", "RequestEntityTooLarge"):
        return ConfigError
    return found if isinstance(found, type) and issubclass(found, RayLirError) and not issubclass(found, FormatError) else RayLirError


@contextmanager
def _checking_settings(url: str) -> Iterator[None]:
    """Raises ConfigError if the URL is not an address of a service, or httpx refuses the token or a proxy of the environment."""
    import httpx

    try:
        parsed = httpx.URL(url)
        is_service = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 2**16
    except (httpx.InvalidURL, TypeError, ValueError):
        is_service = False
    if not is_service:
        raise ConfigError(f"{url!r} is not an address of a service; write one such as {DEFAULT_URL}")
    try:
        yield
    except (httpx.InvalidURL, ValueError) as error:
        why = " ".join(str(error).split())
        raise ConfigError(f"cannot connect to {url}: {why}; check the token, and the proxies in the environment (HTTP_PROXY)") from None


def _is_loopback(url: str) -> bool:
    """Whether a URL names this machine, which a proxy from the environment (HTTP_PROXY) cannot reach."""
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

    why = "timed out" if isinstance(error, httpx.TimeoutException) else str(error) or type(error).__name__
    return ServiceUnavailable(f"no answer from {url}: {why}; check the address and that the service is running")
