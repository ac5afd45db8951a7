"""The HTTP routes: their request and response models, the role that each requires, and the search page."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware

import ray_lir
from ray_lir.api import admin as admin_api
from ray_lir.api import search as search_api

from ..metrics import Metrics
from .access import Access, require
from .errors import HANDLERS, declared
from .middleware import BodyLimit, Observed

UI = Path(__file__).parents[1] / "ui"
PAGES = {"/": "index.html", "/ui/style.css": "style.css", "/ui/app.js": "app.js", "/ui/icon.svg": "icon.svg"}
"""Files by URL path. No part of a request ever becomes a file path."""


class Backend(Protocol):
    """What the routes call: `Service`, or an object with the same methods."""

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

    async def health(self) -> admin_api.Health:
        """Answer `GET /health`."""
        ...

    async def index(self) -> admin_api.IndexFacts:
        """Answer `GET /index`."""
        ...

    async def change_index(self, change: admin_api.IndexChange) -> admin_api.IndexState:
        """Answer `POST /admin/index`."""
        ...


def routes(service: Backend, access: Access | None = None) -> FastAPI:
    """The HTTP application over a service. With `access` None, everyone may read and no one may administrate."""
    access = access or Access()
    app = FastAPI(
        title="ray_lir",
        version=ray_lir.__version__,
        summary="Late-interaction search over an index.",
        exception_handlers=HANDLERS,
    )
    app.add_middleware(BodyLimit)
    if access.origins:
        app.add_middleware(CORSMiddleware, allow_origins=access.origins, allow_methods=("GET", "POST"), allow_headers=("*",))
    app.add_middleware(Observed, metrics=service.metrics)
    _add_searches(app, service, access)
    _add_facts(app, service, access)
    _add_health(app, service)
    for address, name in PAGES.items():
        app.get(address, include_in_schema=False)(_page(UI / name))
    return app


def _add_searches(app: FastAPI, service: Backend, access: Access) -> None:
    options: dict[str, Any] = {
        "dependencies": [require("read", access)],
        "responses": declared(400, 401, 404, 413, 422, 429, 500, 503),
        "response_model_exclude_none": True,
    }

    @app.post("/search", response_model=search_api.SearchResponse, **options)
    async def search(request: search_api.SearchRequest) -> Response:
        """Return the best documents for one or several queries."""
        response = await service.search(request)
        # serialised here: FastAPI would convert it to dictionaries first, which takes several times as long
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    @app.post("/encode", **options)
    async def encode(request: search_api.EncodeRequest) -> search_api.EncodeResponse:
        """Return token embeddings of texts, made by the index's encoder."""
        return await service.encode(request)

    @app.post("/rerank", **options)
    async def rerank(request: search_api.RerankRequest) -> search_api.RerankResponse:
        """Order texts, or documents of the index, by their exact score for a query."""
        return await service.rerank(request)

    @app.post("/explain", **options)
    async def explain(request: search_api.ExplainRequest) -> search_api.Explanation:
        """Explain why a document is found for a query, or which stage or filter drops it."""
        return await service.explain(request)

    @app.get("/documents", **options)
    async def document_of_any_id(id: search_api.DocId) -> search_api.Document:
        """Return a document by its id, given as a query parameter. Every id works, also `..` and `a/b?c`."""
        return await service.document(id)

    @app.get("/documents/{doc_id:path}", **options)
    async def document(doc_id: search_api.DocId) -> search_api.Document:
        """Return a document by its id. For ids that are not plain paths, such as `..`, use `GET /documents?id=ID`."""
        return await service.document(doc_id)


def _add_facts(app: FastAPI, service: Backend, access: Access) -> None:
    @app.get("/index", dependencies=[require("read", access)], responses=declared(401, 500, 503))
    async def index() -> admin_api.IndexFacts:
        """Return the served version of the index, its size and its encoder contract."""
        return await service.index()

    @app.post("/admin/index", dependencies=[require("admin", access)], responses=declared(400, 401, 403, 409, 413, 422, 500, 503))
    async def change_index(change: admin_api.IndexChange) -> admin_api.IndexState:
        """Serve another version of the index. Every replica opens and verifies it first, so no request fails."""
        return await service.change_index(change)


def _add_health(app: FastAPI, service: Backend) -> None:
    @app.get("/health/live")
    async def live() -> admin_api.Live:
        """Return 200: the gateway answers."""
        return admin_api.Live()

    async def ready(response: Response) -> admin_api.Health:
        """Return 200 if every deployment that a search needs answers, else 503."""
        report = await service.health()
        response.status_code = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return report

    for address in ("/health", "/health/ready"):
        app.get(address, responses={503: {"model": admin_api.Health}})(ready)


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    return page
