"""Errors over HTTP: the status of each kind of error, and the common body."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ray_lir.api.admin import ErrorBody, Problem
from ray_lir.api.search import first_problem
from ray_lir.base.config import Config
from ray_lir.base.errors import (
    ConfigError,
    Conflict,
    Forbidden,
    InvalidDocument,
    NotFound,
    Overloaded,
    RayLirError,
    ShardUnavailable,
    Unauthenticated,
    WritesUnavailable,
)

STATUS: dict[type[RayLirError], HTTPStatus] = {
    ConfigError: HTTPStatus.BAD_REQUEST,
    InvalidDocument: HTTPStatus.UNPROCESSABLE_ENTITY,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Forbidden: HTTPStatus.FORBIDDEN,
    NotFound: HTTPStatus.NOT_FOUND,
    Conflict: HTTPStatus.CONFLICT,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    ShardUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    WritesUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    RayLirError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""Status of each kind of error. A kind that is not listed has the status of its nearest base class."""

HEADERS: dict[type[RayLirError], dict[str, str]] = {
    Unauthenticated: {"WWW-Authenticate": "Bearer"},
    ShardUnavailable: {"Retry-After": "2"},
    WritesUnavailable: {"Retry-After": "2"},
}

NO_OBJECT = ("missing", "model_attributes_type", "dict_type")
"""Pydantic's types of errors about a body that is absent, or that is not an object."""


def status_of(error: RayLirError) -> HTTPStatus:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def reply(status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The reply to a request that failed.

    Args:
        status: HTTP status.
        kind: Kind of the error, for programs.
        message: One line for people: what was wrong and what to do.
        headers: Further HTTP headers. None: no further headers.
    """
    return JSONResponse(ErrorBody(error=Problem(kind=kind, message=message)).model_dump(), status, headers)


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error replies of a route, for its OpenAPI description."""
    return {int(status): {"model": ErrorBody, "description": HTTPStatus(status).phrase} for status in statuses}


async def _ray_lir_error(request: Request, error: RayLirError) -> JSONResponse:
    headers = {"Retry-After": str(error.retry_after_s)} if isinstance(error, Overloaded) else HEADERS.get(type(error))
    return reply(status_of(error), type(error).__name__, str(error), headers)


async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        message = f"the body is not JSON: {first['ctx']['error']} at character {first['loc'][-1]}"
    elif tuple(first["loc"]) == ("body",) and first["type"] in NO_OBJECT:
        message = "the body is not a JSON object; send one, with the header Content-Type: application/json"
    else:
        message = first_problem([{**first, "loc": first["loc"][1:]}], _body_model(request))
    return reply(HTTPStatus.UNPROCESSABLE_ENTITY, "InvalidRequest", message)


def _body_model(request: Request) -> type[Config] | None:
    """The model of the route's request body."""
    field = getattr(request.scope.get("route"), "body_field", None)
    model = getattr(getattr(field, "field_info", None), "annotation", None)
    return model if isinstance(model, type) and issubclass(model, Config) else None


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    kind = HTTPStatus(error.status_code).phrase.replace(" ", "")
    return reply(error.status_code, kind, f"{request.method} {request.url.path}: {error.detail}; /docs lists the routes", error.headers)


async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    return reply(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", f"unexpected {type(error).__name__}; see the service's log")


HANDLERS: dict[Any, Any] = {
    RayLirError: _ray_lir_error,
    RequestValidationError: _invalid_request,
    HTTPException: _http_error,
    Exception: _unexpected,
}
