"""A client that does not read its answer is cut off. These tests use real sockets."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from starlette.types import Receive, Scope, Send

from service.http import server as served
from tests.support.harness import wait_for
from tests.support.servers import running

STALL_SECONDS = 1.0
MEBI = 1 << 20


async def lavish(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 64 MiB, in one piece or in many."""
    pieces = {"/one": 1, "/many": 64}[scope["path"]]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(pieces):
        await send(
            {"type": "http.response.body", "body": bytes(64 * MEBI // pieces), "more_body": True}
        )
    await send({"type": "http.response.body", "body": b""})


@contextmanager
def asking(server: served.Server, path: str, more: str = "") -> Iterator[socket.socket]:
    """Yield a client that has sent a request and has read the first byte of the answer."""
    port = server.servers[0].sockets[0].getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n{more}\r\n".encode())
        assert raw.recv(1) == b"H"
        yield raw


@pytest.mark.parametrize("path", ["/one", "/many"])
@pytest.mark.parametrize("more", ["", "Connection: close\r\n"])
def test_a_client_that_reads_nothing_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, path: str, more: str
) -> None:
    monkeypatch.setattr(served, "STALL_SECONDS", STALL_SECONDS)
    with running(lavish) as (server, _), asking(server, path, more) as raw:
        assert server.server_state.connections
        wait_for(lambda: not server.server_state.connections and not server.server_state.tasks)
        assert sum(map(len, iter(lambda: raw.recv(MEBI), b""))) < 64 * MEBI


def test_a_client_that_reads_slowly_gets_the_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "STALL_SECONDS", STALL_SECONDS)
    with running(lavish) as (server, _), asking(server, "/many", "Connection: close\r\n") as raw:
        taken, pause = 0, threading.Event()
        while some := raw.recv(MEBI):
            taken += len(some)
            pause.wait(0.05)  # more than 3 s in all: several checks
        assert taken > 64 * MEBI


@pytest.mark.parametrize("path", ["/one", "/many"])
def test_a_client_that_reads_nothing_does_not_delay_shutdown(path: str) -> None:
    with running(lavish) as (server, stop), asking(server, path):
        assert stop() < served.GRACE_SECONDS
