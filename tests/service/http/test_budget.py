"""Bodies and answers share one budget, in which large ones leave room for small ones."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import Receive, Scope, Send

from service.http.answers import Answers
from service.http.budget import MEDIUM, SMALL, Budget
from service.http.errors import HTTPError
from service.monitoring.metrics import Metrics, Reading
from tests.support.harness import wait_for
from tests.support.servers import running

TOTAL = 64 * MEDIUM


def test_large_items_leave_room_for_smaller_ones() -> None:
    budget = Budget(TOTAL)
    with contextlib.ExitStack() as held:
        for size, full in ((8 * MEDIUM, 48), (MEDIUM, 56), (SMALL, 64)):
            with pytest.raises(HTTPError) as caught:  # noqa: PT012
                while True:
                    held.enter_context(budget.reserve(size))
            assert (caught.value.status, caught.value.code) == (503, "too_busy")
            assert budget.held == full * MEDIUM
    assert budget.held == 0


def test_an_item_that_grows_counts_as_what_it_has_become() -> None:
    budget = Budget(TOTAL)
    with budget.reserve(47 * MEDIUM), budget.reserve(MEDIUM) as grows:
        with pytest.raises(HTTPError):
            grows.grow(1)
        assert grows.size == MEDIUM
        assert budget.held == 48 * MEDIUM


ANSWER = 4 * MEDIUM


async def answering(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with 4 MB, whole or in pieces, or with a few bytes."""
    if scope["path"] == "/short":
        await PlainTextResponse("short")(scope, receive, send)
    elif scope["path"] == "/whole":
        await PlainTextResponse("z" * ANSWER)(scope, receive, send)
    else:
        await StreamingResponse(pieces())(scope, receive, send)


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(4):
        yield b"z" * MEDIUM
        await asyncio.sleep(0)


def test_clients_that_read_nothing_of_their_answers_take_no_more_than_the_budget() -> None:
    budget, metrics = Budget(16 * MEDIUM), Metrics(lambda: Reading("", True, None, 0))
    with (
        running(Answers(answering, budget, metrics)) as (server, _),
        contextlib.ExitStack() as clients,
    ):
        port = server.servers[0].sockets[0].getsockname()[1]

        def asking(path: str) -> socket.socket:
            raw = clients.enter_context(socket.socket())
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL)
            raw.connect(("127.0.0.1", port))
            raw.sendall(f"GET {path} HTTP/1.1\r\nConnection: close\r\n\r\n".encode())
            return raw

        def text(raw: socket.socket) -> bytes:
            return b"".join(iter(lambda: raw.recv(MEDIUM), b""))

        idle = []
        for count in range(1, 4):
            idle.append(asking("/whole"))
            wait_for(lambda count=count: budget.held == count * ANSWER)
        refused = text(asking("/whole"))
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in refused
        assert b"too_busy" in refused
        assert text(asking("/short")).endswith(b"short")
        assert text(asking("/pieces")).count(b"z") == ANSWER
        assert budget.held == 3 * ANSWER
        assert all(text(raw).count(b"z") == ANSWER for raw in idle), "those that read get all"
        wait_for(lambda: budget.held == 0)
