"""Request bodies: bounded in bytes and in time, large ones decoded off the event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import TypeVar

from starlette.requests import ClientDisconnect, Request

from service.fold.spec import Spec
from service.http.codecs import json
from service.http.codecs.codec import Codec, Examples
from service.http.codecs.table import LEARN, PREDICT
from service.http.errors import HTTPError, unavailable
from service.http.json_process import JSONProcessError, JSONProcesses
from streams.batch import Features, InvalidBatchError, TooManyError

BODY_SECONDS = 30.0
MAX_HELD = 512 << 20
"""Bytes of all bodies together that are being read or handled, or twice the largest allowed."""
DECODERS = 2
"""Threads; more would only hold memory while they wait for the interpreter's lock, or a core."""

T = TypeVar("T")


class Bodies:
    """Reads and decodes request bodies, within a budget of memory.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes, self._budget = max_bytes, max(MAX_HELD, 2 * max_bytes)
        self.held = 0
        """Bytes of the bodies that are being read or handled."""
        self._threads = ThreadPoolExecutor(DECODERS, "decoder")
        self._processes = JSONProcesses()

    def examples(self, request: Request, spec: Spec) -> AbstractAsyncContextManager[Examples]:
        """Return the labelled examples of a request; its body counts towards the budget meanwhile.

        Raises:
            HTTPError: 400 the client went away; 408 the body took longer than BODY_SECONDS; 413 it
                is too long or has too many examples; 415 it is compressed, or in no format of
                `LEARN`; 422 it is invalid; 503 the budget is used up, or the process that decoded
                the body ended.
        """
        return self._decoded(request, spec, LEARN, self._processes.decode)

    def features(self, request: Request, spec: Spec) -> AbstractAsyncContextManager[Features]:
        """Return the examples without labels of a request, as `examples` does."""
        return self._decoded(request, spec, PREDICT)

    @asynccontextmanager
    async def _decoded(
        self,
        request: Request,
        spec: Spec,
        codecs: Mapping[str, Codec[T]],
        elsewhere: Callable[[str, bytes, int, int], T] | None = None,
    ) -> AsyncIterator[T]:
        codec = _codec(request, codecs)
        chunks: list[bytes] = []
        try:
            body = await self._read(request, chunks)
            decode = codec.decode
            if elsewhere is not None and codec.max_in_process < len(body):
                decode = partial(elsewhere, codec.media_type)
            yield await self._decode(decode, body, spec, len(body) <= codec.max_at_once)
        finally:
            self.held -= sum(map(len, chunks))

    async def _read(self, request: Request, chunks: list[bytes]) -> bytes:
        """Return the body; ``chunks`` gets the parts that count towards the budget."""
        length = request.headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise self._too_large()
        size = 0
        try:
            async with asyncio.timeout(BODY_SECONDS):
                async for chunk in request.stream():
                    size += len(chunk)
                    if size > self._max_bytes:
                        raise self._too_large()
                    if self.held + len(chunk) > self._budget:
                        raise unavailable(
                            "too_busy", "the bodies of other requests fill the memory for bodies"
                        )
                    self.held += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise HTTPError(
                408, "body_too_slow", f"the body did not arrive within {BODY_SECONDS:g} s"
            ) from None
        except ClientDisconnect:
            raise HTTPError(400, "disconnected", "the client went away") from None
        return b"".join(chunks)

    def _too_large(self) -> HTTPError:
        return HTTPError(
            413,
            "body_too_large",
            f"the body has more than {self._max_bytes} bytes (FUNNEL_MAX_BODY_BYTES); send several",
        )

    async def _decode(
        self, decode: Callable[[bytes, int, int], T], body: bytes, spec: Spec, at_once: bool
    ) -> T:
        try:
            if at_once:
                return decode(body, spec.features, spec.classes)
            return await asyncio.get_running_loop().run_in_executor(
                self._threads, decode, body, spec.features, spec.classes
            )
        except JSONProcessError as error:
            raise unavailable("reader_lost", str(error)) from error
        except TooManyError as error:
            raise HTTPError(413, "too_many_examples", str(error)) from error
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), error.field, error.index) from error

    def close(self) -> None:
        """End the threads and processes; bodies that are being decoded come first."""
        self._threads.shutdown()
        self._processes.close()


def _codec(request: Request, codecs: Mapping[str, Codec[T]]) -> Codec[T]:
    """Return the codec of the body's media type; without a header that is JSON."""
    headers = request.headers
    if headers.get("content-encoding", "").lower() not in ("", "identity"):
        raise HTTPError(415, "unsupported_encoding", "send the body without Content-Encoding")
    kind = headers.get("content-type", json.MEDIA_TYPE).partition(";")[0].strip().lower()
    if (codec := codecs.get(kind)) is None:
        raise HTTPError(
            415, "unsupported_type", f"Content-Type {kind[:80]!r}: send one of {', '.join(codecs)}"
        )
    return codec
