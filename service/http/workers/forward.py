"""Forwards what a worker cannot answer to the learner's process, over a socket of their own."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

import httpx
from fastapi import FastAPI, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.errors import HTTPError, unavailable
from service.http.guard import Guard
from service.model import Model

PREDICT = "/predict"
APPENDS = ("/learn", "/labels")
"""Paths of the requests that a worker handles itself if they have no query: that may make them
wait for the trainer."""
PEER = b"x-funnel-peer"
"""Header with the address of the client of a request that was forwarded."""
FORWARDED = "funnel.forwarded"
"""Key of the state of connections on the socket of the workers."""
OF_CONNECTION = frozenset({b"connection", b"keep-alive", b"transfer-encoding", b"date"})
"""Headers of one connection, and the one that every server adds itself."""
LEARNER = "http://localhost"
CONNECT_SECONDS = 5.0


class Forward:
    """Answers what a worker can, and forwards the rest.

    Args:
        app: the worker's application.
        model: returns the worker's model; None before it has one.
        path: of the socket of the learner's process.
    """

    def __init__(self, app: FastAPI, model: Callable[[], Model | None], path: Path) -> None:
        self._app, self._model = app, model
        self._guard: Guard = app.state.guard(app)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(path), limits=limits),
            timeout=httpx.Timeout(None, connect=CONNECT_SECONDS),
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_own = scope["type"] != "http" or self._answers(scope)
        target = b"" if is_own else _target(scope)
        if is_own or not target.startswith(b"/") or self._guard.refusal(scope) is not None:
            await self._app(scope, receive, send)
            return
        try:
            async with self._app.state.bodies.whole(Request(scope, receive)) as body:
                await self._forward(_request(scope, target, body), receive, send)
        except HTTPError as error:
            await error.answer()(scope, receive, send)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            message = f"the learner's process does not answer: {error}"
            await unavailable("starting", message).answer()(scope, receive, send)

    def _answers(self, scope: Scope) -> bool:
        """Return whether the worker handles a request itself."""
        path = scope["path"]
        may_answer = path == PREDICT or (path in APPENDS and not scope["query_string"])
        if scope["method"] != "POST" or not may_answer:
            return False
        model = self._model()
        return model is not None and not model.is_open and model.trainer.knows_schema

    async def _forward(self, request: httpx.Request, receive: Receive, send: Send) -> None:
        """Send a request to the learner's process, and its answer to the client.

        Raises:
            httpx.TransportError: there is no answer.
        """
        gone = asyncio.create_task(_gone(receive))
        answering = asyncio.create_task(self._client.send(request, stream=True))
        try:
            await asyncio.wait({gone, answering}, return_when=asyncio.FIRST_COMPLETED)
            if gone.done() and not answering.done():
                return
            answer = await answering
            sending = asyncio.create_task(_pass_on(answer, send))
            try:
                await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                sending.cancel()
                with contextlib.suppress(asyncio.CancelledError, httpx.TransportError):
                    await sending
                await answer.aclose()
        finally:
            gone.cancel()
            answering.cancel()


def _target(scope: Scope) -> bytes:
    """Return the target of a request, as it was sent."""
    query: bytes = scope["query_string"]
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    return path + (b"?" + query if query else b"")


def _request(scope: Scope, target: bytes, body: bytes) -> httpx.Request:
    """Return the request that is forwarded: the same, with the address of its client."""
    client = scope.get("client")
    kept = [(name, value) for name, value in scope["headers"] if _may_pass(name)]
    if not any(name == b"host" for name, _ in kept):  # HTTP/1.0 needs none
        kept.append((b"host", b"localhost"))
    kept.append((PEER, client[0].encode() if client else b""))
    url = httpx.URL(LEARNER).copy_with(raw_path=target)
    return httpx.Request(scope["method"], url, headers=kept, content=body or None)


async def _gone(receive: Receive) -> None:
    """Return when the client has disconnected."""
    while (await receive())["type"] != "http.disconnect":
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


class Forwarded:
    """Gives requests that workers have forwarded the address of their client.

    Args:
        app: the application of the learner's process.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            peers = [value.decode() for name, value in scope["headers"] if name == PEER]
            headers = [pair for pair in scope["headers"] if pair[0] != PEER]
            scope = {**scope, "headers": headers}
            if scope["state"].get(FORWARDED):  # it came by the socket that workers alone can use
                scope["client"] = (peers[0], 0) if peers and peers[0] else None
        await self._app(scope, receive, send)
