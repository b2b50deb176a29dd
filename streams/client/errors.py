"""Errors of a client, one class for each thing that a caller can do about them."""

import orjson

from streams.client.transport import NO_ANSWER, Answer
from streams.errors import FunnelError

UNREACHABLE = "unreachable"
"""Code of the error that no answer came."""
INVALID = "invalid"
HTTP_ERROR = "http_error"
"""Code of an answer that does not come from a service, such as one of a proxy."""
SHOWN = 200
"""Characters of such an answer that a message shows."""


class ServiceError(FunnelError):
    """A service did not do what a request asked for.

    Args:
        message: as the service wrote it.
        code: of the error, as in the API's table of errors.
        status: HTTP status; None if no answer came, or no request was sent.
        field: the field or column at fault, or None.
        index: the first example at fault, counted in all examples of the call, or None.
        accepted: examples of the same call that are in the log already: those before it.
    """

    def __init__(
        self,
        message: str,
        code: str,
        status: int | None = None,
        field: str | None = None,
        index: int | None = None,
        accepted: int = 0,
    ) -> None:
        super().__init__(message)
        self.code, self.status, self.field, self.index = code, status, field, index
        self.accepted = accepted


class InvalidExamples(ServiceError, ValueError):
    """The examples, their labels, weights or ids, or a query are wrong: see `field` and `index`."""

    def __init__(
        self,
        message: str,
        code: str = INVALID,
        status: int | None = None,
        field: str | None = None,
        index: int | None = None,
        accepted: int = 0,
    ) -> None:
        super().__init__(message, code, status, field, index, accepted)


class UnsupportedType(ServiceError):
    """The service does not take the format: it learns dense features, and not rows, or rows."""


class TooLarge(ServiceError):
    """One example alone is larger than the service takes."""


class Unauthorized(ServiceError):
    """The key is missing or unknown."""


class Forbidden(ServiceError):
    """The scope of the key does not allow the request; the message names the scope that does."""


class NotFound(ServiceError):
    """The service has no such thing, such as a schema where it learns dense features."""


class TooManyRequests(ServiceError):
    """The service takes no more now, and has not done so for the client's `timeout`."""


class BacklogFull(TooManyRequests):
    """As many examples wait to be learned as may."""


class Unavailable(ServiceError):
    """The service cannot do it now, and could not for the client's `timeout`."""


class Unreachable(Unavailable):
    """No answer came. A request to learn or to label may have arrived all the same."""


class LearningHalted(Unavailable):
    """Learning will not continue by itself; the message says why."""


BY_CODE: dict[str, type[ServiceError]] = {
    "backlog_full": BacklogFull,
    "learning_halted": LearningHalted,
    UNREACHABLE: Unreachable,
}
BY_STATUS: dict[int, type[ServiceError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    408: Unavailable,
    409: Unavailable,
    413: TooLarge,
    415: UnsupportedType,
    422: InvalidExamples,
    429: TooManyRequests,
    502: Unavailable,
    503: Unavailable,
    504: Unavailable,
}


def code_of(answer: Answer) -> str:
    """Return the code of an answer that is an error."""
    if answer.status == NO_ANSWER:
        return UNREACHABLE
    code = _details(answer).get("code")
    return code if isinstance(code, str) else HTTP_ERROR


def error_of(answer: Answer, address: str, first: int = 0) -> ServiceError:
    """Return the error that an answer stands for.

    Args:
        answer: an error, or no answer.
        address: of the service, for messages that it did not write itself.
        first: index of the request's first example in all examples of the call.
    """
    code = code_of(answer)
    kind = BY_CODE.get(code) or BY_STATUS.get(answer.status, ServiceError)
    if answer.status == NO_ANSWER:
        return kind(f"{address}: {answer.fault}", code, accepted=first)
    details = _details(answer)
    message = details.get("message")
    if not isinstance(message, str):
        message = f"{address} answered {answer.status}: {answer.text[:SHOWN]}"
    field, index = details.get("field"), details.get("index")
    return kind(
        message,
        code,
        answer.status,
        field if isinstance(field, str) else None,
        first + index if isinstance(index, int) else None,
        first,
    )


def _details(answer: Answer) -> dict[str, object]:
    """Return what the body of an error says; nothing if it is not a service's."""
    try:
        body: object = orjson.loads(answer.content)
    except orjson.JSONDecodeError:
        return {}
    found = body.get("error") if isinstance(body, dict) else None
    return found if isinstance(found, dict) else {}
