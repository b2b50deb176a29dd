"""Errors as HTTP answers: ``{"error": {"code", "message", "index"?, "field"?}}``."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

RETRY_SECONDS = 1


class ErrorDetail(BaseModel):
    """What is wrong, where, and what to do."""

    code: str
    message: str
    index: int | None = None
    """The first example at fault."""
    field: str | None = None


class ErrorBody(BaseModel):
    """The body of every error."""

    error: ErrorDetail


class HTTPError(Exception):
    """An error with its answer.

    Args:
        status: HTTP status.
        code: a short name, the same for every error of its kind.
        message: one sentence.
        field, index: what is at fault, if one thing is.
        retry: seconds after which to try again, if that helps.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        index: int | None = None,
        retry: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.retry = status, code, retry
        self.detail = ErrorDetail(code=code, message=message, index=index, field=field)

    def answer(self) -> Response:
        """Return the response."""
        return error_response(self.status, self.detail, self.retry)


def error_response(
    status: int,
    detail: ErrorDetail,
    retry: int | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return an error as JSON."""
    extra = dict(headers or {})
    if retry is not None:
        extra["Retry-After"] = str(retry)
    if status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if status in (408, 413) or detail.code == "too_busy":
        extra["Connection"] = "close"  # the rest of the body is not read
    body: dict[str, Any] = {"error": detail.model_dump(exclude_none=True)}
    return JSONResponse(body, status, extra)


def unavailable(code: str, message: str) -> HTTPError:
    """Return a 503 that says when to come again."""
    return HTTPError(503, code, message, retry=RETRY_SECONDS)
