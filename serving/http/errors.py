"""Errors over HTTP: the status of each kind, and one body for all of them."""

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ray_lir.api.admin import ErrorBody, Problem
from ray_lir.api.search import first_problem
from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError, Conflict, Forbidden, NotFound, Overloaded, RayLirError, ShardUnavailable, Unauthenticated

STATUS: dict[type[RayLirError], HTTPStatus] = {
    ConfigError: HTTPStatus.BAD_REQUEST,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    ShardUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    RayLirError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""The status of each kind of error; a kind that is not listed has that of its nearest base."""

HEADERS: dict[type[RayLirError], dict[str, str]] = {
    Unauthenticated: {"WWW-Authenticate": "Bearer"},
    ShardUnavailable: {"Retry-After": "2"},
}


def status_of(error: RayLirError) -> HTTPStatus:
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def reply(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    """The body of every reply that is not a success."""
    return JSONResponse(ErrorBody(error=Problem(kind=kind, message=message)).model_dump(), status, headers)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the description of a route: these statuses have that body."""
    return {int(status): {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


async def _ray_lir_error(request: Request, error: RayLirError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else HEADERS.get(type(error))
    return reply(status_of(error), type(error).__name__, str(error), headers)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    else:
        message = first_problem([{**first, "loc": first["loc"][1:]}], _kind_of(request))
    return reply(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", message)


def _kind_of(request: Request) -> type[Config] | None:
    """The model of the route's body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    kind = getattr(getattr(field, "field_info", None), "annotation", None)
    return kind if isinstance(kind, type) and issubclass(kind, Config) else None


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    kind = HTTPStatus(error.status_code).phrase.replace(" ", "")
    return reply(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}; /docs lists what there is", error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return reply(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"unexpected {type(error).__name__}; the service's log has more")


HANDLERS: dict[Any, Any] = {
    RayLirError: _ray_lir_error,
    RequestValidationError: _invalid_request,
    HTTPException: _http_error,
    Exception: _unexpected,
}
