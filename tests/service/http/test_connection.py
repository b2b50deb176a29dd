"""The time limit of a head covers neither the body nor the answer before it."""

import asyncio
import socket
import threading

import pytest
from starlette.types import Receive, Scope, Send

from service.http import connection, server
from service.http.connection import HEAD_BYTES
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
