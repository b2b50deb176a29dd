"""Errors as HTTP answers: ``{"error": {"code", "message", "index"?, "field"?}}``."""

from collections.abc import Mapping

from pydantic import BaseModel
from starlette.responses import JSONResponse, Response

RETRY_SECONDS = 1


class ErrorDetail(BaseModel):
    """The error: its code, a message that tells what to do, and the part at fault."""

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
        message: what is wrong and what to do, in one sentence.
        field, index: the part of the request at fault, if one is.
        retry: seconds after which to try again, if that helps.
        headers: more headers of the answer.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        field: str | None = None,
        index: int | None = None,
        retry: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code = status, code
        self._detail = ErrorDetail(code=code, message=message, index=index, field=field)
        self._headers = dict(headers or {})
        if retry is not None:
            self._headers["Retry-After"] = str(retry)
        if status == 401:
            self._headers["WWW-Authenticate"] = "Bearer"
        if status in (408, 413) or code == "too_busy":
            self._headers["Connection"] = "close"  # the rest of the body is not read

    def answer(self) -> Response:
        """Return the response."""
        body = ErrorBody(error=self._detail).model_dump(exclude_none=True)
        return JSONResponse(body, self.status, self._headers)


def unavailable(code: str, message: str) -> HTTPError:
    """Return a 503 with the time after which to try again."""
    return HTTPError(503, code, message, retry=RETRY_SECONDS)
