"""A client's connection, with limits that uvicorn does not have.

The head of a request is limited in bytes and in time, and a client that reads nothing of its answer
is cut off. `service.http.body` limits bodies.
"""

import asyncio
import fcntl
import sys
import termios
from http import HTTPStatus

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.errors import HTTPError

HEAD_SECONDS = 10.0
"""Longest time for the head of a request, from its first byte or from the connection on."""
HEAD_BYTES = 64 << 10


def _unsent(transport: asyncio.Transport) -> int:
    """Return the bytes in the kernel's send buffer, on Linux; 0 elsewhere."""
    if sys.platform != "linux":
        return 0
    unsent = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(unsent, sys.byteorder)


class Connection(HttpToolsProtocol):
    """Closes a connection whose request head is too slow (408) or too long (431)."""

    _timer: asyncio.TimerHandle
    _head = True
    """True while the connection waits for the head of a request, or the rest of it."""
    _head_bytes = 0
    _unread: int | None = None
    """Bytes of answers that waited for the client at the last check."""

    # uvicorn narrows the argument of asyncio's interface, so this subclass must too.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._timer.cancel()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Start the clock for another request on the connection."""
        super().on_message_begin()
        if not self._head:
            self._begin_head()

    def on_headers_complete(self) -> None:
        """Stop the clock."""
        self._timer.cancel()
        self._head, self._head_bytes = False, 0
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        """Parse, and count the bytes of a head that is not complete yet."""
        super().data_received(data)
        if self._head:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(431, "head_too_large", f"the head has more than {HEAD_BYTES} bytes")

    def resume_writing(self) -> None:
        """Forget the last check: the client has read what waited for it."""
        self._unread = None
        super().resume_writing()

    def cut_off_if_stalled(self) -> None:
        """Cut the client off if answers wait for it and it has read nothing since the last check.

        The check is only made while writing is paused or the connection closes, when the bytes that
        wait cannot grow.
        """
        waiting = self.transport.get_write_buffer_size()
        if not (waiting and (self.flow.write_paused or self.transport.is_closing())):
            self._unread = None
            return
        waiting += _unsent(self.transport)  # the kernel takes more only once a third is free
        if self._unread is not None and waiting >= self._unread:
            self.transport.abort()
        else:
            self._unread = waiting

    def cut_off_if_unfinished(self) -> None:
        """Cut the client off if it has not sent all of its request."""
        if self.cycle is not None and self.cycle.more_body and not self.cycle.response_complete:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is not HTTP."""
        self._refuse(400, "not_http", msg)

    def _begin_head(self) -> None:
        self._head, self._head_bytes = True, 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._begin_head()  # the answer to the request before it comes first
            return
        self._refuse(408, "head_too_slow", f"the head did not arrive within {HEAD_SECONDS:g} s")

    def _refuse(self, status: int, code: str, message: str) -> None:
        if self.transport.is_closing():
            return
        answer = HTTPError(status, code, message).answer()
        head = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode()]
        head += [name + b": " + value for name, value in answer.raw_headers]
        head += [b"connection: close", b"", b""]
        self.transport.write(b"\r\n".join(head) + bytes(answer.body))
        self.transport.close()
