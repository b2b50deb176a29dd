"""Forwards what a worker cannot answer to the learner's process, over a socket of their own."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.errors import unavailable
from service.model import Model

OWN_PATHS = ("/learn", "/labels", "/predict")
"""Paths of the requests that a worker handles itself."""
WAITS = b"wait="
"""The start of the query with which a request waits for the trainer."""
PEER = b"x-funnel-peer"
"""Header with the address of the client of a request that was forwarded."""
OF_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})
"""Headers of one connection, and the one that every server adds itself."""


class Forward:
    """Answers what a worker can, and forwards the rest.

    Args:
        app: the worker's application.
        model: returns the worker's model; None before it has one.
        path: of the socket of the learner's process.
    """

    def __init__(self, app: ASGIApp, model: Callable[[], Model | None], path: Path) -> None:
        self._app, self._model = app, model
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(path),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
            ),
            base_url="http://learner",
            timeout=httpx.Timeout(None, connect=5),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._answers(scope):
            await self._app(scope, receive, send)
            return
        forwarding = asyncio.create_task(self._forward(scope, receive, send))
        try:
            await forwarding
        finally:
            forwarding.cancel()

    def _answers(self, scope: Scope) -> bool:
        """Return whether the worker handles a request itself."""
        if scope["method"] != "POST" or scope["path"] not in OWN_PATHS:
            return False
        model = self._model()
        is_settled = model is not None and not model.is_open and model.trainer.knows_schema
        return is_settled and WAITS not in scope["query_string"]

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = _Body(receive)
        kept = [(name, value) for name, value in scope["headers"] if _may_pass(name)]
        client = scope.get("client")
        kept.append((PEER, client[0].encode() if client else b""))
        path = scope.get("raw_path") or scope["path"].encode()
        query = scope["query_string"]
        target = path + (b"?" + query if query else b"")
        request = self._client.build_request(
            scope["method"], httpx.URL("http://learner").copy_with(raw_path=target), headers=kept,
            content=body.parts() if _has_body(scope) else None,
        )  # fmt: skip
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            refusal = unavailable("starting", f"the learner's process does not answer: {error}")
            await refusal.answer()(scope, receive, send)
            return
        gone = asyncio.create_task(body.gone())
        sending = asyncio.create_task(_pass_on(answer, send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                await sending
            await answer.aclose()


class _Body:
    """The body of a request, and the news that its client is gone."""

    def __init__(self, receive: Receive) -> None:
        self._receive, self._is_read = receive, asyncio.Event()

    async def parts(self) -> AsyncIterator[bytes]:
        """Yield the parts of the body."""
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise httpx.WriteError("the client is gone")
            yield message.get("body", b"")
            if not message.get("more_body", False):
                return

    async def gone(self) -> None:
        """Return when the client has disconnected."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def _pass_on(answer: httpx.Response, send: Send) -> None:
    headers = [pair for pair in answer.headers.raw if _may_pass(pair[0])]
    start: Message = {"type": "http.response.start", "status": answer.status_code}
    await send({**start, "headers": [(name.lower(), value) for name, value in headers]})
    async for part in answer.aiter_raw():
        await send({"type": "http.response.body", "body": part, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _may_pass(name: bytes) -> bool:
    return name.lower() not in OF_CONNECTION and name.lower() != PEER


def _has_body(scope: Scope) -> bool:
    names = {name for name, _ in scope["headers"]}
    return bool(names & {b"content-length", b"transfer-encoding"})


class Forwarded:
    """Gives requests that workers have forwarded the address of their client.

    Args:
        app: the application of the learner's process. Workers alone reach it by a Unix socket, and
            their requests have no address otherwise.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope.get("client") is None:
            peers = [value.decode() for name, value in scope["headers"] if name == PEER]
            headers = [pair for pair in scope["headers"] if pair[0] != PEER]
            client = (peers[0], 0) if peers and peers[0] else None
            scope = {**scope, "headers": headers, "client": client}
        await self._app(scope, receive, send)
