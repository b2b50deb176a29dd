"""Middleware in front of every route: the key, the clock, and errors nobody expected."""

import hmac
import logging
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import HTTPError
from service.metrics import Metrics

logger = logging.getLogger("funnel")

OPEN_PATHS = ("/health/live", "/health/ready")


class Guard:
    """Checks the API key before anything of the body is read, and times the request.

    Args:
        app: what comes behind.
        key: expected after ``Authorization: Bearer``; empty lets everybody in.
        metrics: where requests are counted.
    """

    def __init__(self, app: ASGIApp, key: str, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics
        self._expected = f"Bearer {key}".encode() if key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.perf_counter()
        status = 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if self._may(scope):
                await self.app(scope, receive, watched)
            else:
                error = HTTPError(
                    401, "unauthorized", "this needs the header Authorization: Bearer <key>"
                )
                self.metrics.rejected.labels(error.code).inc()
                await error.answer()(scope, receive, watched)
        finally:
            self.metrics.http_seconds.labels(_route(scope), str(status)).observe(
                time.perf_counter() - began
            )

    def _may(self, scope: Scope) -> bool:
        if not self._expected or scope["path"] in OPEN_PATHS:
            return True
        given = dict(scope["headers"]).get(b"authorization", b"")
        return hmac.compare_digest(given, self._expected)


def _route(scope: Scope) -> str:
    """Return the route's template, so that the label has few values."""
    return str(getattr(scope.get("route"), "path", "other"))
