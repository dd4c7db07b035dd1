"""The one shape of every error: `{"error": {"status": 404, "code": "not_found", "message": "...", "field": null}}`."""

import json
import logging
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from autofit.errors import AutofitError, Conflict, LaunchError, NotFound, StoreError, UsageError

_log = logging.getLogger(__name__)
_CODES = {
    400: "bad_request",
    401: "no_token",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "too_large",
    415: "wrong_content_type",
    421: "unknown_host",
    422: "invalid",
    429: "too_many",
    500: "internal",
    503: "unavailable",
}
# The most special first.
_STATUS: tuple[tuple[type[AutofitError], int], ...] = (
    (NotFound, 404),
    (Conflict, 409),
    (StoreError, 503),
    (LaunchError, 422),
    (UsageError, 422),
    (AutofitError, 422),
)


class Fault(BaseModel):
    """What went wrong, where, and what to do."""

    status: int
    code: str
    message: str
    field: str | None = None


class Problem(BaseModel):
    """The body of every answer from 400 on."""

    error: Fault


RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": code.replace("_", " ")} for status, code in _CODES.items() if status != 500
}


class Refused(Exception):  # noqa: N818 - not a fault of the service
    """Ends a request with a status and a message."""

    def __init__(self, status: int, message: str, field: str | None = None) -> None:
        super().__init__(message)
        self.status, self.field = status, field


def problem(status: int, message: str, field: str | None = None, headers: dict[str, str] | None = None) -> Response:
    """The response of an error."""
    fault = Fault(status=status, code=_CODES.get(status, "error"), message=message, field=field)
    text = json.dumps({"error": fault.model_dump()}, ensure_ascii=True)
    return Response(text, status, headers, media_type="application/json")


def status_of(error: AutofitError) -> int:
    """The status that a library error means to a client."""
    return next(status for kind, status in _STATUS if isinstance(error, kind))


def install(app: FastAPI) -> None:
    """Gives every error of `app` the one shape."""

    def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, Refused)
        return problem(error.status, str(error), error.field)

    def library(request: Request, error: Exception) -> Response:
        assert isinstance(error, AutofitError)
        return problem(status_of(error), " ".join(str(error).split()))

    def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        message = str(first["msg"]).removeprefix("Value error, ")
        return problem(422, f"{where}: {message}" if where else message, where or None)

    def internal(request: Request, error: Exception) -> Response:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        return problem(500, "the service made a mistake; its log says which")

    app.add_exception_handler(Refused, refused)
    app.add_exception_handler(AutofitError, library)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, internal)
