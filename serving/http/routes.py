"""The HTTP side of the service: the routes, who may call them, and the page."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Protocol

from fastapi import FastAPI, Response
from fastapi.responses import FileResponse
from starlette.middleware.cors import CORSMiddleware

import ray_lir
from ray_lir.api import admin as operation
from ray_lir.api import search as messages

from ..metrics import Metrics
from .access import Access, asks_for
from .errors import HANDLERS, declared
from .middleware import BodyLimit, Observed

UI = Path(__file__).parents[1] / "ui"
PAGES = {"/": "index.html", "/ui/style.css": "style.css", "/ui/app.js": "app.js"}
"""Files by address: nothing of a request ever becomes a path."""


class Backend(Protocol):
    """What the routes need behind them."""

    metrics: Metrics

    async def search(self, request: messages.SearchRequest) -> messages.SearchResponse: ...

    async def encode(self, request: messages.EncodeRequest) -> messages.EncodeResponse: ...

    async def rerank(self, request: messages.RerankRequest) -> messages.RerankResponse: ...

    async def explain(self, request: messages.ExplainRequest) -> messages.Explanation: ...

    async def document(self, doc_id: str) -> messages.Document: ...

    async def health(self) -> operation.Health: ...

    async def index(self) -> operation.IndexFacts: ...

    async def change_index(self, change: operation.IndexChange) -> operation.IndexState: ...


def routes(service: Backend, access: Access | None = None) -> FastAPI:
    """The HTTP application over a service; without `access` everybody may read."""
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
        "dependencies": [asks_for("read", access)],
        "responses": declared(400, 401, 404, 413, 422, 429, 500, 503),
        "response_model_exclude_none": True,
    }

    @app.post("/search", response_model=messages.SearchResponse, **options)
    async def search(request: messages.SearchRequest) -> Response:
        """Searches for one query or several."""
        response = await service.search(request)
        # written at once: FastAPI would make dictionaries of it first, which takes several times as long
        return Response(response.model_dump_json(exclude_none=True), media_type="application/json")

    @app.post("/encode", **options)
    async def encode(request: messages.EncodeRequest) -> messages.EncodeResponse:
        """Turns texts into token embeddings, as the index's encoder does."""
        return await service.encode(request)

    @app.post("/rerank", **options)
    async def rerank(request: messages.RerankRequest) -> messages.RerankResponse:
        """Orders texts, or documents of the index, by their exact score for a query."""
        return await service.rerank(request)

    @app.post("/explain", **options)
    async def explain(request: messages.ExplainRequest) -> messages.Explanation:
        """Says why a document is found for a query, or at which stage of the engine it is dropped."""
        return await service.explain(request)

    @app.get("/documents", **options)
    async def document_of_any_id(id: messages.DocId) -> messages.Document:
        """A document by its id as a query parameter: no id is out of reach, be it `..` or `a/b?`."""
        return await service.document(id)

    @app.get("/documents/{doc_id:path}", **options)
    async def document(doc_id: messages.DocId) -> messages.Document:
        """A document by its id; for ids that are no plain path, such as `..`, use the query parameter of /documents."""
        return await service.document(doc_id)


def _add_facts(app: FastAPI, service: Backend, access: Access) -> None:
    @app.get("/index", dependencies=[asks_for("read", access)], responses=declared(401, 500, 503))
    async def index() -> operation.IndexFacts:
        """What is being searched."""
        return await service.index()

    @app.post("/admin/index", dependencies=[asks_for("admin", access)], responses=declared(400, 401, 403, 409, 413, 422, 500, 503))
    async def change_index(change: operation.IndexChange) -> operation.IndexState:
        """Serves another version of the index: opened and verified on every replica first, so that no request fails."""
        return await service.change_index(change)


def _add_health(app: FastAPI, service: Backend) -> None:
    @app.get("/health/live")
    async def live() -> operation.Live:
        """Whether the gateway answers."""
        return operation.Live()

    async def ready(response: Response) -> operation.Health:
        """503 while anything that a search needs does not answer."""
        report = await service.health()
        response.status_code = HTTPStatus.OK if report.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return report

    for address in ("/health", "/health/ready"):
        app.get(address, responses={503: {"model": operation.Health}})(ready)


def _page(file: Path) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(file, headers={"Cache-Control": "no-cache"})

    return page
