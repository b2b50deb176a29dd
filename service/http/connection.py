"""A client's connection, with limits that uvicorn does not have.

Heads, trailers, and requests that are sent ahead are limited in bytes. A head, and the rest of a
request that is answered before its end, are limited in time. A client that reads nothing of its
answer is cut off. There are never more connections than the process has files for.
`service.http.body` limits bodies.
"""

import asyncio
import fcntl
import heapq
import resource
import sys
import termios
from http import HTTPStatus
from typing import cast

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.errors import HTTPError, unavailable

HEAD_SECONDS = 10.0
"""Longest time for the head of a request, from its first byte or from the connection on."""
HEAD_BYTES = 64 << 10
MAX_HEADERS = 256
"""Most headers of a request: short ones take thirty times their length in memory."""
LINGER_SECONDS = 5.0
"""Longest time for the rest of a request that is answered already."""
OVERHEAD_BYTES = 64 << 10
"""Most bytes that are not body, such as trailers, after the head or between two parts of a body."""
AHEAD_BYTES = 512 << 10
"""Most bytes of further requests that are kept while one is answered."""
HEAD_PART, CHUNKED_PART = 512, 4 << 10
"""Bytes that are parsed at once where requests may end: each ends in a queue, however short."""
RESERVED_FILES = 128
"""Files that connections leave to the log, the checkpoints, and clients that are turned away."""
MAX_CONNECTIONS = 4_096
NEW_SECONDS = 1.0
"""A connection is new for so long, and others are closed before it to make room."""
CLOSED_AT_ONCE = 1 / 16
"""Share of the connections that is closed to make room, so that not every new one looks at all."""


def _unsent(transport: asyncio.Transport) -> int:
    """Return the bytes in the kernel's send buffer, on Linux; 0 elsewhere."""
    if sys.platform != "linux":
        return 0
    unsent = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(unsent, sys.byteorder)


def most_connections() -> int:
    """Return how many connections the process may hold, given its limit of open files."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return min(MAX_CONNECTIONS, max(files - RESERVED_FILES, files // 4))


class Connection(HttpToolsProtocol):
    """Closes a connection whose request is too slow (408), too long (431) or without an end."""

    _timer: asyncio.TimerHandle
    _head = True
    """True while the connection waits for the head of a request, or the rest of it."""
    _head_bytes = 0
    _is_whole = True
    """False from the head of a request on, until its end has arrived."""
    _left: int | None = 0
    """Bytes of the body that have not arrived; None if the client does not say."""
    _overhead = 0
    """Bytes since the last part of the body."""
    _had_body = False
    """True if the part that was parsed last held a part of the body."""
    _ahead = b""
    """Bytes that have arrived but are not parsed yet."""
    _idle_since = 0.0
    """When the client's turn began, by the loop's clock."""
    _answered: RequestResponseCycle | None = None
    """The request before the newest, whose answer may not be complete: uvicorn forgets it."""
    _unread: int | None = None
    """Bytes of answers that waited for the client at the last check."""

    # uvicorn narrows the argument of asyncio's interface, so this subclass must too.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; make room, if need be, by closing those that are idle longest.

        Without room the answer is 503.
        """
        most = most_connections()
        has_room = len(self.connections) < most or self._make_room(int(most * CLOSED_AT_ONCE))
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        self._begin_head()
        if not has_room:
            self._refuse(unavailable("too_many_connections", "other clients hold all connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._timer.cancel()
        self._unset_keepalive_if_required()
        self._ahead = b""
        self.pipeline.clear()  # the next request would be answered on a closed connection
        if self._answered is not None:
            self._answered.disconnected = True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, unless an earlier request must be answered first."""
        self._ahead = self._ahead + data if self._ahead else data
        if len(self._ahead) > AHEAD_BYTES:
            self.transport.abort()
        else:
            self._parse()

    def on_message_begin(self) -> None:
        """Start the clock for another request on the connection."""
        super().on_message_begin()
        self._unset_keepalive_if_required()
        if not self._head:
            self._begin_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Note a header; those after the body, trailers, are ignored."""
        if self._head and len(self.headers) <= MAX_HEADERS:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop the clock."""
        if self.parser.should_upgrade():
            return  # the parser stops here, see `_ignore_offer`
        if len(self.headers) > MAX_HEADERS:
            self._refuse_head()
            return
        self._timer.cancel()
        self._head, self._is_whole, self._overhead = False, False, 0
        headers = dict(self.headers)
        is_chunked = b"transfer-encoding" in headers
        self._left = None if is_chunked else int(headers.get(b"content-length", 0))
        self._idle_since = self.loop.time()
        self._answered = self.cycle
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count a part of the body."""
        if self._head:
            return  # the head was refused
        self._had_body = True
        if self._left is not None:
            self._left -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Begin to wait for the next request if this one is answered already."""
        if self._head:
            return  # the head offers another protocol; it comes again without that
        self._is_whole = True
        super().on_message_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_client()

    def on_response_complete(self) -> None:
        """Go on with the next request, or wait for the rest of this one; not for long."""
        super().on_response_complete()
        self._idle_since = self.loop.time()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._wait_for_client()
        if self._ahead:
            self.loop.call_soon(self._parse)

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
        self._refuse(HTTPError(400, "not_http", msg))

    def _parse(self) -> None:
        """Parse what has arrived, in parts, up to a request that must wait for an answer."""
        data, self._ahead = self._ahead, b""
        start = 0
        while start < len(data) and not self.pipeline and not self.transport.is_closing():
            end = start + self._part()
            start = self._feed(data[start:end], start)
        if start < len(data) and not self.transport.is_closing():
            self._ahead = data[start:]
            self.flow.pause_reading()

    def _part(self) -> int:
        """Return how many bytes may be parsed at once."""
        if self._head or self._is_whole:
            return HEAD_PART
        return CHUNKED_PART if self._left is None else max(self._left, HEAD_PART)

    def _feed(self, part: bytes, start: int) -> int:
        """Parse a part that begins at a place, and return the place of the next."""
        self._had_body = False
        try:
            self.parser.feed_data(part)
        except httptools.HttpParserUpgrade as stop:
            (offset,) = stop.args
            self._ignore_offer()
            return start + int(offset)
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("Invalid HTTP request received.")
        self._count(len(part))
        return start + len(part)

    def _count(self, size: int) -> None:
        """Count a part that was parsed, where it adds to what may not grow without limit."""
        if self._head:
            self._head_bytes += size
            if self._head_bytes > HEAD_BYTES or len(self.headers or ()) > MAX_HEADERS:
                self._refuse_head()
        elif not self._is_whole and not self._left:
            self._overhead = size + (0 if self._had_body else self._overhead)
            if self._overhead > OVERHEAD_BYTES:
                what = f"more than {OVERHEAD_BYTES} bytes of the request are not its body"
                self._refuse(HTTPError(431, "head_too_large", what))

    def _ignore_offer(self) -> None:
        """Parse the head again without its offer of another protocol, which may be ignored.

        The parser takes what follows such a head for that protocol; it is the body (RFC 9110,
        section 7.8).
        """
        if (method := self.parser.get_method()) == b"CONNECT":
            self.send_400_response("this is no proxy")
            return
        version = self.parser.get_http_version().encode()
        lines = [b"%s %s HTTP/%s" % (method, self.url, version)]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(o for o in options if o.lower() != b"upgrade")
            if value and name != b"upgrade":
                lines.append(name + b": " + value)
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
        self.parser.feed_data(b"\r\n".join([*lines, b"", b""]))

    def _wait_for_client(self) -> None:
        """Close the connection unless the client sends another request, or ends this one."""
        self._unset_keepalive_if_required()
        seconds = self.timeout_keep_alive if self._is_whole else LINGER_SECONDS
        if not self._head:
            self.timeout_keep_alive_task = self.loop.call_later(
                seconds, self.timeout_keep_alive_handler
            )

    def _make_room(self, most: int) -> bool:
        """Cut off connections whose clients are idle longest; return whether there are any.

        Connections without a request come first, then uploads that have not ended, and last the
        connections that are so new that their request may be on its way.
        """
        old = self.loop.time() - NEW_SECONDS
        idle = [c for c in map(_own, self.connections) if not c.transport.is_closing()]
        idle = (
            [c for c in idle if c._is_idle and c._idle_since < old]
            or [c for c in idle if not c._is_whole]
            or [c for c in idle if c._is_idle]
        )
        for one in heapq.nsmallest(max(1, most), idle, key=lambda c: c._idle_since):
            one.transport.abort()
        return bool(idle)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _begin_head(self) -> None:
        self._head, self._head_bytes = True, 0
        self._timer = self.loop.call_later(HEAD_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        if not self._is_idle:
            self._begin_head()  # the answer to the request before it comes first
            return
        late = f"the head did not arrive within {HEAD_SECONDS:g} s"
        self._refuse(HTTPError(408, "head_too_slow", late))

    def _refuse_head(self) -> None:
        what = f"the head has more than {HEAD_BYTES} bytes or {MAX_HEADERS} headers"
        self._refuse(HTTPError(431, "head_too_large", what))

    def _refuse(self, error: HTTPError) -> None:
        """Send a refusal, unless another answer has begun, and close."""
        if self.transport.is_closing():
            return
        if self._head or not self._is_idle:
            answer = error.answer()
            head = [f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}".encode()]
            head += [name + b": " + value for name, value in answer.raw_headers]
            head += [b"connection: close", b"", b""]
            if self._is_idle or not self.cycle.response_started:
                self.transport.write(b"\r\n".join(head) + bytes(answer.body))
        self.transport.close()


def _own(connection: object) -> Connection:
    return cast(Connection, connection)
