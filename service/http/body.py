"""Reading request bodies: bounded in bytes and in time, large ones decoded off the loop."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.types import Scope

from service.http.errors import HTTPError, unavailable
from service.http.json_process import JSONProcessError
from streams.batch import InvalidBatchError, TooManyError

BODY_SECONDS = 30.0
SMALL = 4_096
"""Bytes that are decoded at once; more go to a thread."""
QUICK = 1 << 20
"""Bytes of safetensors that are decoded at once: they are only copied and looked at."""

JSON = "application/json"
NDJSON = "application/x-ndjson"
SAFETENSORS = "application/octet-stream"

MAX_EXAMPLES = 65_536
"""Most examples in a request: a body of narrow rows unfolds into logits many times its size."""

MAX_UNDER_WAY = 512 << 20
"""Bytes of all bodies together that are being read or handled, or twice the largest allowed."""

T = TypeVar("T")

_under_way = 0
HELD = "funnel.body"
"""Where a request's scope keeps how many of them are its own."""

# More would only hold memory while they wait for the interpreter's lock, or for a core.
_decoders = ThreadPoolExecutor(2, "decoder")


async def read_body(request: Request, most: int) -> bytes:
    """Return the body.

    Raises:
        HTTPError: 413 it is longer than ``most`` bytes; 408 it did not come in BODY_SECONDS; 415
            it is compressed; 503 too many others are under way.
    """
    too_large = HTTPError(
        413, "body_too_large", f"the body has more than {most} bytes (FUNNEL_MAX_BODY_BYTES)"
    )
    if request.headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise HTTPError(415, "unsupported_encoding", "send the body without Content-Encoding")
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise too_large
                _hold(request.scope, len(chunk), most)
                chunks.append(chunk)
    except TimeoutError:
        raise HTTPError(
            408, "body_too_slow", f"the body did not come within {BODY_SECONDS:g} s"
        ) from None
    except ClientDisconnect:
        raise HTTPError(400, "disconnected", "the client went away") from None
    return b"".join(chunks)


def _hold(scope: Scope, size: int, most: int) -> None:
    """Count bytes until the request has ended (see `let_go`).

    Raises:
        HTTPError: 503 there are too many.
    """
    global _under_way
    if _under_way + size > max(MAX_UNDER_WAY, 2 * most):
        raise unavailable("too_busy", "the bodies of other requests fill the memory for them")
    _under_way += size
    scope[HELD] = scope.get(HELD, 0) + size


def let_go(scope: Scope) -> None:
    """Count the body of a request no more."""
    global _under_way
    _under_way -= scope.pop(HELD, 0)


def content_type(request: Request, *allowed: str) -> str:
    """Return the media type; without a header it is JSON.

    Raises:
        HTTPError: 415 it is none of the allowed.
    """
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind not in allowed:
        raise HTTPError(
            415, "unsupported_type", f"Content-Type {kind[:80]!r}: send {', '.join(allowed)}"
        )
    return kind


def check_number(examples: int) -> None:
    """Make sure that a request has no more than MAX_EXAMPLES.

    Raises:
        HTTPError: 413.
    """
    if examples > MAX_EXAMPLES:
        raise HTTPError(
            413,
            "too_many_examples",
            f"{examples} examples in one request, at most {MAX_EXAMPLES}; send several",
        )


async def decoded(decode: Callable[[bytes], T], body: bytes, kind: str) -> T:
    """Return what ``decode`` makes of the body, which is of this media type.

    Raises:
        HTTPError: 422 it is invalid; 413 it has too many examples; 503 the process that read it
            ended. Nothing of it has been applied.
    """
    try:
        if len(body) <= (QUICK if kind == SAFETENSORS else SMALL):
            return decode(body)
        return await asyncio.get_running_loop().run_in_executor(_decoders, decode, body)
    except JSONProcessError as error:
        raise unavailable("reader_lost", str(error)) from error
    except TooManyError as error:
        raise HTTPError(413, "too_many_examples", str(error)) from error
    except InvalidBatchError as error:
        raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
