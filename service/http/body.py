"""Request bodies: bounded in bytes and in time, large ones decoded off the event loop."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from service.http.budget import MEDIUM, SMALL, Budget, Reservation
from service.http.codecs.codec import Codec, Examples, Unlabelled
from service.http.codecs.gzip import ENCODINGS, Gunzip
from service.http.codecs.labels import LABELS
from service.http.codecs.rows import LEARN_ROWS, PREDICT_ROWS, Named, Packed, holds_rows
from service.http.codecs.table import LEARN, PREDICT
from service.http.errors import HTTPError, unavailable
from service.http.json_process import JSONProcessError, JSONProcesses
from service.log.entries import Shape
from service.log.labels import Labels
from streams.batch import Features, InvalidBatchError, TooManyError
from streams.rows.rows import Rows

logger = logging.getLogger("funnel")

BODY_SECONDS = 30.0
"""Longest time for a body of up to MEDIUM bytes."""
MIN_RATE = 64 << 10
"""Bytes a second, on average, at which longer bodies must arrive."""
PATIENCE_SECONDS = 5.0
"""The longest pause in such a body; shorter ones add up, less what a faster rate makes good."""
LANES = {SMALL: 1, MEDIUM: 1, math.inf: 2}
"""Threads that decode bodies of up to so many bytes: a body never waits for larger ones."""

CLOSE = {"Connection": "close"}
"""Sent with a refusal after which the rest of a body is not read."""
LABEL_BYTES = 200
"""Memory of a label of a question."""
ROWS = (0, 0, False)
"""This stands for a model of rows, which its schema checks."""

T = TypeVar("T", bound=Sized)


class Bodies:
    """Reads and decodes request bodies, within a budget of memory.

    Args:
        max_bytes: of one body.
        budget: counts each body while it is read or handled.
    """

    def __init__(self, max_bytes: int, budget: Budget) -> None:
        self._max_bytes, self._budget = max_bytes, budget
        self._lanes = {
            most: ThreadPoolExecutor(threads, "decoder") for most, threads in LANES.items()
        }
        self._gunzip = ThreadPoolExecutor(1, "gunzip")
        self._processes = JSONProcesses()

    def examples(
        self, request: Request, shape: Shape, expects_bytes: bool
    ) -> AbstractAsyncContextManager[Examples]:
        """Return the labelled examples of a request; they count towards the budget meanwhile.

        Args:
            request: with the body.
            shape: of the model's examples.
            expects_bytes: whether it has learned uint8 features alone.

        Raises:
            HTTPError: 400 the client went away; 408 the body took longer than BODY_SECONDS, or
                came at less than MIN_RATE; 413 it is too long or has too many examples; 415 it is
                compressed otherwise than by gzip, or in no format of `LEARN`; 422 it is invalid;
                503 the budget is used up, or the process that decoded the body ended.
        """
        model = *shape, expects_bytes
        return self._decoded(request, model, LEARN, lambda examples: len(examples.payload))

    def features(
        self, request: Request, shape: Shape, expects_bytes: bool
    ) -> AbstractAsyncContextManager[Unlabelled[Features]]:
        """Return the examples without labels of a request, as `examples` does."""
        model = *shape, expects_bytes
        return self._decoded(request, model, PREDICT, lambda found: found.inputs.nbytes)

    def rows(self, request: Request) -> AbstractAsyncContextManager[Unlabelled[Rows]]:
        """Return the rows without labels of a request, as `examples` does."""
        return self._decoded(request, ROWS, PREDICT_ROWS, lambda rows: 8 * rows.inputs.cells)

    def labelled_rows(
        self, request: Request, named: Named
    ) -> AbstractAsyncContextManager[Rows | Packed]:
        """Return the labelled rows of a request, as `examples` does.

        Another process has set the labels and weights of `Packed` rows apart. Others are as they
        were read: in CSV and Arrow the labels are still a column.

        Args:
            request: with the body.
            named: its columns of labels and weights.
        """
        return self._decoded(request, ROWS, LEARN_ROWS, _size, named.to_bytes())

    def labels(self, request: Request, shape: Shape | None) -> AbstractAsyncContextManager[Labels]:
        """Return the labels of questions of a request, as `examples` does.

        Args:
            request: with the body.
            shape: of the model's examples; None for rows.
        """
        model = ROWS if shape is None else (*shape, False)
        return self._decoded(request, model, LABELS, lambda found: LABEL_BYTES * len(found))

    @asynccontextmanager
    async def labelled_either(
        self, request: Request, shape: Shape, named: Named
    ) -> AsyncIterator[Examples | Rows | Packed]:
        """Return what a request to an open model holds: as `examples`, or as `labelled_rows`.

        Args:
            request: with the body.
            shape: of the model's examples, as long as it takes dense features.
            named: the columns of labels and weights, if it holds rows.
        """
        with self._budget.reserve() as held:
            kind, body, has_rows = await self._read_either(request, held, LEARN, LEARN_ROWS)
            if has_rows:
                rows = await self._decode(LEARN_ROWS[kind], body, ROWS, named.to_bytes())
                held.change(_size(rows))
                yield rows
            else:
                examples = await self._decode(LEARN[kind], body, (*shape, False), b"")
                held.change(len(examples.payload))
                yield examples

    @asynccontextmanager
    async def whole(self, request: Request) -> AsyncIterator[bytes]:
        """Return a body as it was sent, within the limits of bytes, time and memory of all bodies.

        Raises:
            HTTPError: 400 the client went away; 408 or 413 as for `examples`.
        """
        with self._budget.reserve() as held:
            yield await self._read(request, held, decodes=False)

    @asynccontextmanager
    async def either(
        self, request: Request, shape: Shape
    ) -> AsyncIterator[Unlabelled[Features] | Unlabelled[Rows]]:
        """Return what a request to an open model holds: as `features`, or as `rows`.

        Args:
            request: with the body.
            shape: of the model's examples, as long as it takes dense features.
        """
        with self._budget.reserve() as held:
            kind, body, has_rows = await self._read_either(request, held, PREDICT, PREDICT_ROWS)
            if has_rows:
                rows = await self._decode(PREDICT_ROWS[kind], body, ROWS, b"")
                held.change(8 * rows.inputs.cells)
                yield rows
            else:
                features = await self._decode(PREDICT[kind], body, (*shape, False), b"")
                held.change(features.inputs.nbytes)
                yield features

    async def _read_either(
        self, request: Request, held: Reservation, dense: Collection[str], rows: Collection[str]
    ) -> tuple[str, bytes, bool]:
        """Return the media type of a body, the body, and whether it holds rows."""
        kind = _media_type(request, [*dense, *(name for name in rows if name not in dense)])
        body = await self._read(request, held)
        return kind, body, kind not in dense or (kind in rows and holds_rows(body))

    @asynccontextmanager
    async def _decoded(
        self,
        request: Request,
        model: tuple[int, int, bool],
        codecs: Mapping[str, Codec[T]],
        size_of: Callable[[T], int],
        options: bytes = b"",
    ) -> AsyncIterator[T]:
        codec = _codec(request, codecs)
        with self._budget.reserve() as held:
            decoded = await self._decode(codec, await self._read(request, held), model, options)
            held.change(size_of(decoded))
            yield decoded

    async def _read(self, request: Request, held: Reservation, decodes: bool = True) -> bytes:
        """Return the body, which counts towards the budget from its first byte on."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        gunzip = Gunzip() if decodes and _encoding(request) in ENCODINGS else None
        parts: list[bytes] = []
        received = 0
        try:
            async with asyncio.timeout(BODY_SECONDS) as limit:
                async for chunk in request.stream():
                    received += len(chunk)
                    if received > self._max_bytes:
                        raise self._too_large()
                    if gunzip is None:
                        self._add(parts, chunk, held)
                    else:
                        await self._add_decoded(parts, gunzip.decode(chunk), held)
                    if held.size > MEDIUM:
                        _extend(limit, len(chunk))
            if gunzip is not None:
                gunzip.end()
        except TimeoutError:
            raise HTTPError(
                408,
                "body_too_slow",
                f"the body did not arrive within {BODY_SECONDS:g} s, or, if it is longer than "
                f"{MEDIUM >> 20} MB, came at less than {MIN_RATE >> 10} kB a second",
            ) from None
        except ClientDisconnect:
            raise HTTPError(400, "disconnected", "the client went away") from None
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), headers=CLOSE) from error
        return b"".join(parts)

    def _add(self, parts: list[bytes], part: bytes, held: Reservation) -> None:
        """Count another part of a body, and keep it."""
        if held.size + len(part) > self._max_bytes:
            raise self._too_large()
        held.grow(len(part))
        parts.append(part)

    async def _add_decoded(
        self, parts: list[bytes], pieces: Iterator[bytes], held: Reservation
    ) -> None:
        """Count and keep pieces, which are decoded off the event loop once the body is long."""
        loop = asyncio.get_running_loop()
        while True:
            if held.size < SMALL:
                piece = next(pieces, b"")
            else:
                piece = await loop.run_in_executor(self._gunzip, next, pieces, b"")
            if not piece:
                return
            self._add(parts, piece, held)

    def _too_large(self) -> HTTPError:
        return HTTPError(
            413,
            "body_too_large",
            f"the body has more than {self._max_bytes} bytes (FUNNEL_MAX_BODY_BYTES); send several",
        )

    async def _decode(
        self, codec: Codec[T], body: bytes, model: tuple[int, int, bool], options: bytes
    ) -> T:
        size, decode = len(body), codec.decode
        if codec.max_in_process < size:
            decode = partial(self._processes.decode, codec, options=options)
        lane = next(thread for most, thread in self._lanes.items() if size <= most)
        try:
            if size <= codec.max_at_once:
                return decode(body, *model)
            called = partial(_called, decode, body, *model)
            return await asyncio.get_running_loop().run_in_executor(lane, called)
        except JSONProcessError as error:
            raise unavailable("reader_lost", str(error)) from error
        except TooManyError as error:
            raise HTTPError(413, "too_many_examples", str(error)) from error
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
        except (MemoryError, OSError) as error:
            message = f"the machine lacks the memory or the files to decode the body: {error!r}"
            raise unavailable("too_busy", message) from error
        except Exception as error:
            logger.exception("a decoder raised what it should not")
            raise HTTPError(
                422, "invalid", f"the body cannot be decoded: {error!r}"[:500]
            ) from error

    def close(self) -> None:
        """End the threads and processes; bodies that are being decoded come first."""
        for threads in (*self._lanes.values(), self._gunzip):
            threads.shutdown()
        self._processes.close()


def _called(decode: Callable[..., T], *arguments: object) -> T:
    """Call a decoder in a thread. No future takes a StopIteration, so its request would never
    end."""
    try:
        return decode(*arguments)
    except StopIteration as error:
        raise RuntimeError("a decoder raised StopIteration") from error


def bounded(receive: Receive) -> Receive:
    """Return ``receive`` for a request that needs no long body, which FastAPI would read whole.

    It raises HTTPException: 408 the body took longer than BODY_SECONDS, 413 it has more than SMALL
    bytes.
    """
    until = asyncio.get_running_loop().time() + BODY_SECONDS
    size, is_complete = 0, False

    async def next_message() -> Message:
        nonlocal size, is_complete
        if is_complete:
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            late = f"the body did not arrive within {BODY_SECONDS:g} s"
            raise HTTPException(408, late, CLOSE) from None
        size += len(message.get("body", b""))
        is_complete = not message.get("more_body", False)
        if size > SMALL:
            long = f"the body of this request has more than {SMALL} bytes"
            raise HTTPException(413, long, CLOSE)
        return message

    return next_message


def _size(rows: Rows | Packed) -> int:
    return 8 * rows.cells if isinstance(rows, Rows) else len(rows.payload)


def _extend(limit: asyncio.Timeout, size: int) -> None:
    """Give a long body the time that its newest part is worth."""
    by, now = limit.when(), asyncio.get_running_loop().time()
    assert by is not None
    limit.reschedule(min(by + size / MIN_RATE, now + PATIENCE_SECONDS))


def _codec(request: Request, codecs: Mapping[str, Codec[T]]) -> Codec[T]:
    """Return the codec of the body's media type."""
    return codecs[_media_type(request, codecs)]


def _encoding(request: Request) -> str:
    """Return the body's encoding, in lower case; nothing if it is sent as it is."""
    return request.headers.get("content-encoding", "").strip().lower()


def _media_type(request: Request, known: Collection[str]) -> str:
    """Return the body's media type, which must be a known one."""
    names = ", ".join(known)
    if (encoding := _encoding(request)) not in ("", "identity", *ENCODINGS):
        message = f"Content-Encoding {encoding[:80]!r}: send gzip, or the body as it is"
        accepted = {"Accept-Encoding": "gzip"}
        raise HTTPError(415, "unsupported_encoding", message, headers=accepted)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not kind:
        raise HTTPError(
            415, "unsupported_type", f"the header Content-Type is missing: send one of {names}"
        )
    if kind not in known:
        raise HTTPError(415, "unsupported_type", f"Content-Type {kind[:80]!r}: send one of {names}")
    return kind
