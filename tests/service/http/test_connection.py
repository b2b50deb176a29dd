"""A connection takes no more memory, time or files than it may, whatever its client sends."""

import asyncio
import contextlib
import resource
import socket
import struct
import threading
import time
from pathlib import Path

import pytest
from starlette.types import Receive, Scope, Send

from service.http import connection, server
from service.http.connection import (
    HEAD_BYTES,
    LINGER_SECONDS,
    MAX_HEADERS,
    OVERHEAD_BYTES,
    Connection,
    most_connections,
)
from tests.support.harness import serving, wait_for
from tests.support.servers import running

HEAD_SECONDS = 1.0


@pytest.fixture(autouse=True)
def _hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "HEAD_SECONDS", HEAD_SECONDS)


class Patient:
    """Answers with the length of the body, once `go` is set."""

    def __init__(self) -> None:
        self.told = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size, more = size + len(message["body"]), message["more_body"]
        await asyncio.to_thread(self.told.wait, 10)
        answer = b"%d" % size
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})


def talk(server: server.Server) -> socket.socket:
    port = server.servers[0].sockets[0].getsockname()[1]
    raw = socket.create_connection(("127.0.0.1", port))
    raw.settimeout(10)
    return raw


def answers(raw: socket.socket) -> bytes:
    """Return everything that the other side sends until it closes."""
    found = b""
    while some := raw.recv(65_536):
        found += some
    return found


def wait_for_a_head_to_be_late(server: server.Server) -> None:
    """Wait until a client that connects now and sends nothing is refused as too slow."""
    with talk(server) as silent:
        assert answers(silent).startswith(b"HTTP/1.1 408")


def test_a_body_may_be_longer_and_take_longer_than_a_head() -> None:
    patient = Patient()
    patient.told.set()
    with running(patient) as (server, _), talk(server) as raw:
        size = 6 * HEAD_BYTES
        raw.sendall(b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(3):
            wait_for_a_head_to_be_late(server)
            raw.sendall(bytes(2 * HEAD_BYTES))
        assert answers(raw).endswith(b"\r\n\r\n%d" % size)


def test_a_head_may_wait_for_the_answer_before_it() -> None:
    patient = Patient()
    with running(patient) as (server, _), talk(server) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n")
        for _ in range(2):
            wait_for_a_head_to_be_late(server)
        raw.sendall(b"Connection: close\r\n\r\n")
        patient.told.set()
        assert answers(raw).count(b"HTTP/1.1 200") == 2


async def at_once(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer without reading the body."""
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]}
    )
    await send({"type": "http.response.body", "body": b""})


def patient() -> Patient:
    """Return an application that answers at once, with the length of the body."""
    made = Patient()
    made.told.set()
    return made


OFFERS = {
    "h2c": "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQ\r\n",
    "websocket": "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
    "TLS": "Connection: upgrade\r\nUpgrade: TLS/1.0\r\n",
    "two": "Upgrade: h2c, foo/2\r\nConnection: Upgrade\r\n",
}
BODIES = {
    "with a length": "Content-Length: 5\r\n\r\nhello",
    "chunked": "Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("pieces", ["at once", "byte by byte"])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(
    offer: str, body: str, pieces: str
) -> None:
    sent = f"POST / HTTP/1.1\r\nHost: x\r\n{OFFERS[offer]}{BODIES[body]}".encode()
    sent += b"POST / HTTP/1.1\r\nConnection: close\r\nContent-Length: 3\r\n\r\nabc"
    with running(patient()) as (server, _), talk(server) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in [sent] if pieces == "at once" else [bytes([one]) for one in sent]:
            raw.sendall(part)
        first, second = answers(raw).split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"\r\n\r\n5")
    assert second.endswith(b"\r\n\r\n3")


@pytest.mark.parametrize(
    "sent", [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n"]
)
def test_another_protocol_is_answered_with_400(sent: bytes) -> None:
    with running(patient()) as (server, _), talk(server) as raw:
        raw.sendall(sent)
        assert answers(raw).startswith(b"HTTP/1.1 400")


def test_a_client_that_asks_first_is_told_to_send_its_body() -> None:
    with running(patient()) as (server, _), talk(server) as raw:
        raw.sendall(
            b"POST / HTTP/1.1\r\nExpect: 100-continue\r\nConnection: close\r\n"
            b"Content-Length: 5\r\n\r\n"
        )
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(b"hello")
        assert answers(raw).endswith(b"\r\n\r\n5")


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "trailers": (CHUNKED + b"0\r\n", b"X:y\r\n"),
    "a trailer's name": (CHUNKED + b"0\r\n", b"X"),
    "a trailer's value": (CHUNKED + b"0\r\nX: ", b"y"),
    "an extension of a chunk": (CHUNKED + b"1;", b"y"),
    "the length of a chunk": (CHUNKED, b"0"),
    "headers": (b"GET / HTTP/1.1\r\n", b"X:y\r\n"),
    "a header": (b"GET / HTTP/1.1\r\nX: ", b"y"),
    "lines before a head": (b"", b"\r\n"),
}


@pytest.mark.parametrize("what", ENDLESS)
@pytest.mark.parametrize("app", [patient(), at_once], ids=["waits", "has answered"])
def test_what_is_no_body_ends_the_connection_before_it_takes_memory(what: str, app: object) -> None:
    begin, endless = ENDLESS[what]
    with running(app) as (server, _), talk(server) as raw:  # type: ignore[arg-type]
        sent = 0
        with pytest.raises(ConnectionError):  # noqa: PT012
            raw.sendall(begin)
            while sent < 100 << 20:
                sent += raw.send(endless * 10_000)
        # The kernel holds some megabytes of it.
        assert sent < 20 << 20
        wait_for(lambda: not server.server_state.connections)


def test_trailers_and_extensions_within_the_limit_are_ignored() -> None:
    some = b"X: " + b"y" * (OVERHEAD_BYTES - 8_192)
    sent = CHUNKED + b"1;" + some[3:] + b"\r\na\r\n0\r\n" + some + b"\r\n\r\n"
    with running(patient()) as (server, _), talk(server) as raw:
        raw.sendall(sent + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert answers(raw).count(b"HTTP/1.1 200") == 2


def test_many_short_headers_are_too_many() -> None:
    with running(patient()) as (server, _):
        for count, status in ((MAX_HEADERS, b"200"), (MAX_HEADERS + 1, b"431")):
            with talk(server) as raw:
                more = b"A:\r\n" * (count - 1)
                raw.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n" + more + b"\r\n")
                assert answers(raw).startswith(b"HTTP/1.1 " + status)


def test_requests_that_are_sent_ahead_are_answered_but_not_kept() -> None:
    waiting = 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal waiting
        for one in server.server_state.connections:
            assert isinstance(one, Connection)
            waiting = max(waiting, len(one.pipeline))
        await asyncio.sleep(0)
        await at_once(scope, receive, send)

    count = 20_000
    with running(app) as (server, _), talk(server) as raw:
        sent = b"GET / HTTP/1.1\r\n\r\n" * count + b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n"
        sender = threading.Thread(target=raw.sendall, args=(sent,))
        sender.start()
        assert answers(raw).count(b"HTTP/1.1 200") == count + 1
        sender.join()
    assert 0 < waiting < 100


@pytest.mark.parametrize("drip", [b"x", b""])
def test_a_request_without_an_end_is_not_waited_for_once_it_is_answered(
    monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.5)
    assert LINGER_SECONDS < 10
    with running(at_once) as (server, _), talk(server) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        assert is_closed_in_time(raw, drip)


def test_a_request_that_ends_after_its_answer_keeps_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "LINGER_SECONDS", 0.5)
    with running(at_once) as (server, _), talk(server) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab")
        assert raw.recv(100).startswith(b"HTTP/1.1 200")
        raw.sendall(b"cd")
        with talk(server) as other:  # it is closed after the same time
            other.sendall(b"GET / HTTP/1.1\r\nContent-Length: 4\r\n\r\nab")
            answers(other)
        raw.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        assert answers(raw).startswith(b"HTTP/1.1 200")


def test_empty_lines_do_not_keep_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with running(at_once) as (server, _):
        server.config.timeout_keep_alive = 1
        with talk(server) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert raw.recv(100).startswith(b"HTTP/1.1 200")
            assert is_closed_in_time(raw, b"\r\n")


def is_closed_in_time(raw: socket.socket, drip: bytes, seconds: float = 8) -> bool:
    """Send something every tenth of a second; return whether the other side closes."""
    raw.settimeout(0.1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            raw.sendall(drip)
            if not raw.recv(100):
                return True
        except TimeoutError:
            continue
        except ConnectionError:
            return True
    return False


def test_connections_leave_files_for_the_rest_of_the_process() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for files, most in ((1024, 896), (256, 128), (100, 25), (8192, 4096)):
            resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
            assert most_connections() == most
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_the_connection_that_is_idle_longest_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 2)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60)
    with running(at_once) as (server, _), talk(server) as oldest:
        wait_for(lambda: len(server.server_state.connections) == 1)
        threading.Event().wait(0.05)  # the clock of the loop counts milliseconds
        with talk(server) as newer, talk(server) as newest:
            assert is_closed_in_time(oldest, b"")
            for one in (newer, newest):
                one.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
                assert answers(one).startswith(b"HTTP/1.1 200")


def test_uploads_that_do_not_end_make_room_before_a_client_is_turned_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connection, "most_connections", lambda: 8)
    monkeypatch.setattr(connection, "HEAD_SECONDS", 60)
    busy = Patient()
    with running(busy) as (server, _), contextlib.ExitStack() as clients:
        dripping = [clients.enter_context(talk(server)) for _ in range(8)]
        for one in dripping:
            one.sendall(b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nh")
        wait_for(lambda: len(server.server_state.tasks) == 8)
        others = [clients.enter_context(talk(server)) for _ in range(8)]
        for one in others:
            one.sendall(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n")
        wait_for(
            lambda: len(server.server_state.connections) == len(server.server_state.tasks) == 8
        )
        with talk(server) as late:
            refused = answers(late)
            assert refused.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in refused
            assert b"too_many_connections" in refused
        busy.told.set()
        assert all(answers(one).startswith(b"HTTP/1.1 200") for one in others)


def test_a_connection_reset_behind_two_requests_leaves_no_traceback(tmp_path: Path) -> None:
    body = b'{"features": [[0, 0, 0, 0, 0, 0]], "labels": [0]}'
    head = "POST /learn?wait=applied HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
    one = f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    with serving(tmp_path, features=6, classes=3) as service:
        host, port = service.url.removeprefix("http://").split(":")
        for _ in range(20):
            with socket.create_connection((host, int(port))) as client:
                client.sendall(one + one)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert service.terminate() == 0
        assert "Traceback" not in service.log
