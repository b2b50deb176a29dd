"""Middleware in front of every route: it checks where a request comes from and its key, times it,
gives it an id, and turns HEAD into GET."""

import base64
import binascii
import hmac
import re
import time
from collections.abc import Mapping, Sequence
from uuid import uuid4

from pydantic import SecretStr
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.body import bounded
from service.http.errors import HTTPError
from service.http.sites import READS, Sites
from service.monitoring.logs import REQUEST
from service.monitoring.metrics import Metrics
from streams.environment import named_keys

ADMIN, LEARN, PREDICT = "admin", "learn", "predict"
"""Scopes of keys; admin may do everything."""
NAMES = {ADMIN: "API_KEY", LEARN: "LEARN_KEY", PREDICT: "PREDICT_KEY"}
"""Names of keys that have none of their own."""
OPEN_PATHS = ("/health/live", "/health/ready")
ENDLESS_PATHS = ("/events",)
SCOPES = {
    ("POST", "/learn"): LEARN,
    ("POST", "/labels"): LEARN,
    ("POST", "/predict"): PREDICT,
}
"""Scopes that requests other than reads need; admin where none is listed. These have a body."""
ORDERS = ("/pause", "/resume", "/promote", "/skip", "/rollback")
"""Paths of operators' commands."""
ADMIN_READS = ("/dead", "/model/export")
"""Paths whose reads need scope admin."""
LEARN_HEADER = b"funnel-learn-key"
"""Header that holds the key of scope learn for a question with ids, which writes to the log."""
REQUEST_HEADER, SHOWABLE = b"x-request-id", re.compile(rb"[!-~]{1,64}")
HELD = "funnel.scopes"
"""Key of the request's scope that holds the scopes of its keys; missing if no key is needed."""
SENDER = "funnel.sender"
"""Key of the request's scope that holds the name of its key; missing if no key is needed."""
ANONYMOUS = "anonymous"
BASIC = 'Basic realm="Funnel", charset="UTF-8"'


class Guard:
    """Checks the sender before any of the body is read, and times the request.

    Args:
        app: the application.
        keys: by scope; empty ones do not count, and without any, no key is needed. A key is sent as
            ``Authorization: Bearer``, or in reads as the password of ``Basic``, since browsers send
            no other.
        routes: of the application.
        metrics: count the requests.
        sites: refuses requests of other sites' pages.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Mapping[str, SecretStr],
        routes: Sequence[BaseRoute],
        metrics: Metrics,
        sites: Sites,
    ) -> None:
        self.app, self.routes, self.metrics, self._sites = app, routes, metrics, sites
        self._expected = {
            (scope, name): key.encode()
            for scope, secret in keys.items()
            for name, key in named_keys(secret.get_secret_value(), NAMES[scope]).items()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD" and scope["path"] not in ENDLESS_PATHS:
            scope = {**scope, "method": "GET"}  # the server sends no body to HEAD
        began, request = time.perf_counter(), request_of(scope)
        status = 500
        REQUEST.set(request)  # each request has a task, and a context, of its own

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message.get("headers", ()), (REQUEST_HEADER, request.encode())]
                message = {**message, "headers": headers}
            await send(message)

        try:
            if (error := self.refusal(scope)) is None:
                is_long = (scope["method"], scope["path"]) in SCOPES
                await self.app(scope, receive if is_long else bounded(receive), watched)
            else:
                self.metrics.rejected.labels(error.code).inc()
                answer = error.answer()
                if error.status == 401 and scope["method"] in READS:
                    answer.headers.append("WWW-Authenticate", BASIC)
                await answer(scope, receive, watched)
        finally:
            # The label is the route's template, so that it has few values.
            route = str(getattr(scope.get("route"), "path", "other"))
            seconds = time.perf_counter() - began
            self.metrics.http_seconds.labels(route, str(status)).observe(seconds)

    def refusal(self, scope: Scope) -> HTTPError | None:
        """Return the answer to a request that its sender may not send; None if it may."""
        if scope["path"] in OPEN_PATHS:
            return None
        return self._sites.refusal(scope) or self._refusal_of_key(scope)

    def _refusal_of_key(self, scope: Scope) -> HTTPError | None:
        if not self._expected:
            return self._sites.refusal_of_order(scope) if scope["path"] in ORDERS else None
        sent = {value for name, value in scope["headers"] if name == b"authorization"}
        if len(sent) > 1:
            message = "the header Authorization came with different values; send it once"
            return HTTPError(401, "unauthorized", message)
        given = _key_of(next(iter(sent), b""), scope["method"])
        # A set, not any(): the time must not depend on which key it was.
        own = {of for of, key in self._expected.items() if hmac.compare_digest(given, key)}
        held = {name for name, _ in own}
        if not held:
            return HTTPError(401, "unauthorized", "send the header Authorization: Bearer <key>")
        is_open = scope["method"] in READS and scope["path"] not in ADMIN_READS
        otherwise = PREDICT if is_open else ADMIN
        needed = SCOPES.get((scope["method"], scope["path"]), otherwise)
        scope[HELD], scope[SENDER] = held | self._of_header(scope), min(own)[1]
        if held & {needed, ADMIN} or self._leads_nowhere(scope):
            return None
        return HTTPError(403, "forbidden", f"this request needs a key of scope {needed}")

    def _of_header(self, scope: Scope) -> set[str]:
        """Return the scope of the key in the header that a question with ids may have."""
        keys = [key for (name, _), key in self._expected.items() if name == LEARN]
        sent = [value for name, value in scope["headers"] if name == LEARN_HEADER]
        found = {hmac.compare_digest(sent[0], key) for key in keys} if sent else set()
        return {LEARN} if True in found else set()

    def _leads_nowhere(self, scope: Scope) -> bool:
        """Return whether a read has no route; with any valid key the answer is 404, not 403."""
        return scope["method"] in READS and all(
            route.matches(scope)[0] is Match.NONE for route in self.routes
        )


def may_ask(scope: Scope) -> bool:
    """Return whether the keys of a request allow questions with ids, which write to the log."""
    held = scope.get(HELD)
    return held is None or not held.isdisjoint({LEARN, ADMIN})


def request_of(scope: Scope) -> str:
    """Return the id of a request: that of its header if it is short and can be shown, or a new
    one."""
    sent = [value for name, value in scope["headers"] if name == REQUEST_HEADER]
    return sent[0].decode() if len(sent) == 1 and SHOWABLE.fullmatch(sent[0]) else uuid4().hex


def sender_of(scope: Scope) -> str:
    """Return the name of the key of a request; ANONYMOUS if no key is needed."""
    return str(scope.get(SENDER, ANONYMOUS))


def _key_of(authorization: bytes, method: str) -> bytes:
    """Return the key of ``Bearer``, or of ``Basic`` in a read; empty if there is none."""
    scheme, _, given = authorization.partition(b" ")
    scheme, given = scheme.lower(), given.strip()
    if scheme == b"bearer":
        return given
    if scheme != b"basic" or method not in READS:
        return b""
    try:
        return base64.b64decode(given, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""
