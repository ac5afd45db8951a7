"""Middleware around every request: HEAD, a limit on the body, security headers, metrics, and a log line."""

import logging
import time
import uuid
from contextvars import ContextVar
from http import HTTPStatus

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..metrics import Metrics

logger = logging.getLogger("ray.serve")  # Ray Serve configures it and adds the request's id

MAX_BODY_BYTES = 4 << 20
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
DOCS = ("/docs", "/redoc")
"""FastAPI's pages load scripts from another origin, which the policy would block."""

INDEX_NAME = "ray_lir.index"
"""Key of a request's scope with the name of its index, in a service of several."""

REQUEST_ID: ContextVar[str] = ContextVar("request_id")
"""Id of the current request: the client's X-Request-ID, or a random one."""


class BodyLimit:
    """Refuses a body above MAX_BODY_BYTES with status 413, with or without a Content-Length header."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(received, _length(scope)) > MAX_BODY_BYTES:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {MAX_BODY_BYTES:,} bytes; send less text")
            return message

        await self.app(scope, limited, send)


class HeadAsGet:
    """Answers HEAD like GET without the body; load balancers and uptime checks send HEAD."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        await self.app(dict(scope, method="GET"), receive, without_body)


class Observed:
    """Counts and times each request, logs one line, and adds the security headers."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app = app
        self.metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        REQUEST_ID.set(dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1") or uuid.uuid4().hex)
        start = time.perf_counter()
        status = 499  # the client disconnected before the reply

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if scope["path"] not in DOCS:
                    MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            seconds = time.perf_counter() - start
            route = getattr(scope.get("route"), "path", "none")
            name = scope.get(INDEX_NAME)
            (self.metrics.for_index(name) if name else self.metrics).request(route, status, seconds)
            fields = {"method": scope["method"], "endpoint": route, "status": status, "ms": round(1000 * seconds, 2)}
            logger.info("%(method)s %(endpoint)s %(status)d %(ms).2f ms", fields, extra=fields)


def _length(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0
