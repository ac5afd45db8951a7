"""The HTTP routes: their request and response models, the role that each requires, and the search page."""

from collections.abc import Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Protocol

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Request, Response
from fastapi import Path as PathParameter
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware

import ray_lir
from ray_lir.api import admin as admin_api
from ray_lir.api import search as search_api
from ray_lir.api import writes as writes_api
from ray_lir.base.errors import InvalidDocument

from ..metrics import Metrics
from .access import Access, Credentials, Grant, Guard, Role
from .errors import HANDLERS, declared
from .middleware import INDEX_NAME, BodyLimit, HeadAsGet, Observed

UI = Path(__file__).parents[1] / "ui"
PAGES = {"/": "index.html", **{f"/ui/{file.name}": file.name for file in sorted(UI.iterdir()) if file.suffix in (".css", ".js", ".svg")}}
"""Files by URL path, listed once. No part of a request ever becomes a file path."""


class Backend(Protocol):
    """Interface of the routes: `Service`, or an object with the same methods."""

    metrics: Metrics

    async def search(self, request: search_api.SearchRequest) -> search_api.SearchResponse:
        """Answer `POST /search`."""
        ...

    async def encode(self, request: search_api.EncodeRequest) -> search_api.EncodeResponse:
        """Answer `POST /encode`."""
        ...

    async def rerank(self, request: search_api.RerankRequest) -> search_api.RerankResponse:
        """Answer `POST /rerank`."""
        ...

    async def explain(self, request: search_api.ExplainRequest) -> search_api.Explanation:
        """Answer `POST /explain`."""
        ...

    async def document(self, doc_id: str) -> search_api.Document:
        """Answer `GET /documents`."""
        ...

    async def write(self, request: writes_api.WriteRequest, key: str | None = None) -> writes_api.WriteResponse:
        """Answer the routes that write. `key` is the idempotency key; None: the request is a new one."""
        ...

    async def health(self) -> admin_api.Health:
        """Answer `GET /health`."""
        ...

    async def index(self, version: int | None = None) -> admin_api.IndexFacts:
        """Answer `GET /index`."""
        ...

    async def change_index(self, change: admin_api.IndexChange) -> admin_api.IndexState:
        """Answer `POST /admin/index`."""
        ...


class Backends(Protocol):
    """The indexes of a service of several: `Indexes`, or an object with the same methods."""

    metrics: Metrics

    async def open(self, name: str, visible: Collection[str] | None) -> Backend:
        """Return an index, opened if necessary.

        Args:
            name: Name of the index.
            visible: Names that an error message may contain. None: all.

        Raises:
            NotFound: There is no such index.
        """
        ...

    async def list(self, visible: Collection[str] | None) -> admin_api.IndexList:
        """Answer `GET /indexes`. `visible` holds the names to list; None for all."""
        ...


Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
Requiring = Callable[[Role], Any]
"""Returns the FastAPI dependency of a route that requires a role. Its value is the `Backend` of the request."""

IdempotencyKey = Annotated[
    writes_api.IdempotencyKey | None,
    Header(
        alias="Idempotency-Key",
        description="Any text of up to 255 characters. A request with the key of an earlier one, and the same content, changes nothing "
        "and gets the same answer. Keys are remembered for an hour.",
    ),
]
NewDocument = Annotated[
    dict[str, Any],
    Body(
        description="A document as in a corpus: `text`, and optionally `title`, `metadata` and other fields, which become metadata.",
        examples=[{"title": "Zinc", "text": "Zinc fingers bind DNA.", "metadata": {"year": 2019}}],
    ),
]
IndexName = Annotated[str, PathParameter(description="Name of the index; `GET /indexes` lists them.")]


def routes(service: Backend, access: Access | None = None, lifespan: Lifespan | None = None) -> FastAPI:
    """The HTTP application over one index.

    Args:
        service: Answers the requests.
        access: Who may call which routes. None: everyone may read, and no one may write or administrate.
        lifespan: A context manager that is entered while the application runs. None: there is none.
    """
    access = access or Access()
    guard = Guard(access, service.metrics.refused)

    def requiring(role: Role) -> Any:
        async def checked(credentials: Credentials) -> Backend:
            guard.check(role, credentials)
            return service

        return Depends(checked)

    async def anyone() -> Backend:
        return service

    app = _application(service.metrics, access, "Late-interaction search over an index.", lifespan)
    router = APIRouter()
    _add_live(router)
    _add_index(router, requiring, Depends(anyone))
    app.include_router(router)
    return app


def routes_of_many(indexes: Backends, access: Access | None = None) -> FastAPI:
    """The HTTP application over several indexes: each has all routes of one index under `/indexes/{name}`.

    Args:
        indexes: The indexes.
        access: Who may call which routes. None: everyone may read, and no one may administrate.
    """
    access = access or Access()
    guard = Guard(access, indexes.metrics.refused)

    def requiring(role: Role) -> Any:
        async def opened(name: IndexName, request: Request, credentials: Credentials) -> Backend:
            grant = guard.check(role, credentials, name)
            service = await indexes.open(name, grant.indexes)
            request.scope[INDEX_NAME] = name
            return service

        return Depends(opened)

    async def reading(credentials: Credentials) -> Grant:
        return guard.check("read", credentials)

    app = _application(indexes.metrics, access, "Late-interaction search over several indexes.")
    app.state.indexes = indexes
    router = APIRouter()
    _add_live(router)
    reader: Any = Depends(reading)

    @router.get("/indexes", responses=declared(401, 403, 429, 500))
    async def list_indexes(grant: Grant = reader) -> admin_api.IndexList:
        """List the indexes that the token may use. An index is opened by the first request that needs it."""
        return await indexes.list(grant.indexes)

    for address in ("/health", "/health/ready"):
        router.get(address)(_ready)
    one = APIRouter()
    _add_index(one, requiring, requiring("read"))
    router.include_router(one, prefix="/indexes/{name}", responses=declared(401, 403, 404, 429, 500, 503))
    router.get("/", include_in_schema=False)(_page(UI / "indexes.html"))
    for address in ("/ui/style.css", "/ui/theme.js", "/ui/indexes.js", "/ui/icon.svg"):
        router.get(address, include_in_schema=False)(_page(UI / address.rpartition("/")[2]))
    app.include_router(router)
    return app


def _application(metrics: Metrics, access: Access, summary: str, lifespan: Lifespan | None = None) -> FastAPI:
    app = FastAPI(title="ray_lir", version=ray_lir.__version__, summary=summary, exception_handlers=HANDLERS, lifespan=lifespan)
    app.add_middleware(BodyLimit)
    if access.origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=access.origins, allow_methods=("GET", "POST", "PUT", "DELETE"), allow_headers=("*",)
        )
    app.add_middleware(Observed, metrics=metrics)
    app.add_middleware(HeadAsGet)
    return app


def _add_index(router: APIRouter, requiring: Requiring, healthy: Any) -> None:
    """Adds the routes and the page of an index. `healthy` is the dependency of its health checks."""
    _add_searches(router, requiring)
    _add_writes(router, requiring)
    _add_facts(router, requiring)
    _add_health(router, healthy)
    for address, name in PAGES.items():
        router.get(address, include_in_schema=False)(_page(UI / name))


def _add_searches(router: APIRouter, requiring: Requiring) -> None:
    reader = requiring("read")
    options: dict[str, Any] = {"responses": declared(400, 401, 404, 413, 422, 429, 500, 503), "response_model_exclude_none": True}

    @router.post("/search", response_model=search_api.SearchResponse, **options)
    async def search(request: search_api.SearchRequest, service: Backend = reader) -> Response:
        """Return the best documents for one or several queries."""
        response = await service.search(request)
        # serialised here: FastAPI would convert it to dictionaries first, which takes several times as long
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    @router.post("/encode", **options)
    async def encode(request: search_api.EncodeRequest, service: Backend = reader) -> search_api.EncodeResponse:
        """Return token embeddings of texts, made by the index's encoder."""
        return await service.encode(request)

    @router.post("/rerank", **options)
    async def rerank(request: search_api.RerankRequest, service: Backend = reader) -> search_api.RerankResponse:
        """Order texts, or documents of the index, by their exact score for a query."""
        return await service.rerank(request)

    @router.post("/explain", **options)
    async def explain(request: search_api.ExplainRequest, service: Backend = reader) -> search_api.Explanation:
        """Explain why a document is found for a query, or which stage or filter drops it."""
        return await service.explain(request)

    @router.get("/documents", **options)
    async def document_of_any_id(id: search_api.DocId, service: Backend = reader) -> search_api.Document:
        """Return a document by its id, given as a query parameter. Every id works, also `..` and `a/b?c`."""
        return await service.document(id)

    @router.get("/documents/{doc_id:path}", **options)
    async def document(doc_id: search_api.DocId, service: Backend = reader) -> search_api.Document:
        """Return a document by its id. For ids that are not plain paths, such as `..`, use `GET /documents?id=ID`."""
        return await service.document(doc_id)


def _add_writes(router: APIRouter, requiring: Requiring) -> None:
    writer = requiring("write")
    options: dict[str, Any] = {
        "status_code": HTTPStatus.ACCEPTED,
        "responses": declared(400, 401, 403, 404, 409, 413, 422, 429, 500, 503),
        "response_model_exclude_none": True,
    }

    @router.post("/documents", **options)
    async def write(request: writes_api.WriteRequest, key: IdempotencyKey = None, service: Backend = writer) -> writes_api.WriteResponse:
        """Add and delete documents. The answer comes when the writes are durable; searches see them some seconds later."""
        return await service.write(request, key)

    @router.put("/documents", **options)
    async def put_any_id(
        id: search_api.DocId, document: NewDocument, key: IdempotencyKey = None, service: Backend = writer
    ) -> writes_api.WriteResponse:
        """Add or replace a document, with its id as a query parameter. Every id works, also `..` and `a/b?c`."""
        return await service.write(_put(id, document), key)

    @router.put("/documents/{doc_id:path}", **options)
    async def put(
        doc_id: search_api.DocId, document: NewDocument, key: IdempotencyKey = None, service: Backend = writer
    ) -> writes_api.WriteResponse:
        """Add or replace a document. For ids that are not plain paths, such as `..`, use `PUT /documents?id=ID`."""
        return await service.write(_put(doc_id, document), key)

    @router.delete("/documents", **options)
    async def delete_any_id(id: search_api.DocId, key: IdempotencyKey = None, service: Backend = writer) -> writes_api.WriteResponse:
        """Delete a document, with its id as a query parameter. An unknown id is no error."""
        return await service.write(writes_api.WriteRequest(delete=[id]), key)

    @router.delete("/documents/{doc_id:path}", **options)
    async def delete(doc_id: search_api.DocId, key: IdempotencyKey = None, service: Backend = writer) -> writes_api.WriteResponse:
        """Delete a document. An unknown id is no error."""
        return await service.write(writes_api.WriteRequest(delete=[doc_id]), key)


def _put(doc_id: str, document: dict[str, Any]) -> writes_api.WriteRequest:
    """The request of `PUT /documents`. Raises InvalidDocument if the body has another id."""
    for name in writes_api.ID_NAMES:
        if name in document and str(document[name]) != doc_id:
            raise InvalidDocument(
                f"the body has the {name} {document[name]!r:.80}, and the address {doc_id!r:.80}; leave it out of the body"
            )
    fields = {name: value for name, value in document.items() if name not in writes_api.ID_NAMES}
    return writes_api.WriteRequest(documents=[{"_id": doc_id, **fields}], partial=False)


def _add_facts(router: APIRouter, requiring: Requiring) -> None:
    reader, admin = requiring("read"), requiring("admin")

    @router.get("/index", responses=declared(400, 401, 422, 429, 500, 503))
    async def index(version: search_api.Version | None = None, service: Backend = reader) -> admin_api.IndexFacts:
        """Return the served version of the index, its size and its encoder contract; or those of another open version."""
        return await service.index(version)

    @router.post("/admin/index", responses=declared(400, 401, 403, 409, 413, 422, 429, 500, 503))
    async def change_index(change: admin_api.IndexChange, service: Backend = admin) -> admin_api.IndexState:
        """Serve another version of the index. Every replica opens and verifies it first, so no request fails."""
        return await service.change_index(change)


def _add_live(router: APIRouter) -> None:
    @router.get("/health/live")
    async def live() -> admin_api.Live:
        """Return 200: the gateway answers."""
        return admin_api.Live()


async def _ready() -> admin_api.Health:
    """Return 200: the service answers. `GET /indexes/{name}/health` says whether an index does."""
    return admin_api.Health(ready=True, deployments={})


def _add_health(router: APIRouter, healthy: Any) -> None:
    async def ready(response: Response, service: Backend = healthy) -> admin_api.Health:
        """Return 200 if every deployment that a search needs answers, else 503."""
        report = await service.health()
        response.status_code = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return report

    for address in ("/health", "/health/ready"):
        router.get(address, responses={503: {"model": admin_api.Health}})(ready)


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    return page
