"""Middleware that sends answers in pieces, as the client reads them, and counts them meanwhile."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.budget import SMALL, Budget, Reservation
from service.http.errors import HTTPError
from service.monitoring.metrics import Metrics

PIECE = SMALL
"""Bytes that are given to the connection at once; shorter answers are not counted."""


class Answers:
    """Bounds the memory of answers that wait for their clients.

    Args:
        app: the application.
        budget: an answer counts towards it until the last piece is given to the connection.
        metrics: count the answers for which there was no room.
    """

    def __init__(self, app: ASGIApp, budget: Budget, metrics: Metrics) -> None:
        self.app, self._budget, self._metrics = app, budget, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        is_refused = False

        async def sparingly(message: Message) -> None:
            nonlocal is_refused
            if is_refused:
                return
            if error := _begin(message, held):
                is_refused = True
                self._metrics.rejected.labels(error.code).inc()
                await error.answer()(scope, receive, send)
            elif len(body := message.get("body", b"")) > PIECE:
                for start in range(0, len(body), PIECE):
                    more = message.get("more_body", False) or start + PIECE < len(body)
                    piece = body[start : start + PIECE]
                    await send({**message, "body": piece, "more_body": more})
            else:
                await send(message)

        with self._budget.reserve() as held:
            await self.app(scope, receive, sparingly)


def _begin(message: Message, held: Reservation) -> HTTPError | None:
    """Reserve the memory of an answer that begins; return the refusal if there is no room."""
    lengths = [v for k, v in message.get("headers", ()) if k.lower() == b"content-length"]
    if message["type"] == "http.response.start" and lengths and int(lengths[0]) > PIECE:
        try:
            held.grow(int(lengths[0]))
        except HTTPError as error:
            return error
    return None
