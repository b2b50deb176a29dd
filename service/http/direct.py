"""Middleware that calls the functions of the busiest routes itself.

FastAPI matches the route of a request, solves its dependencies, and validates its parameters. For
one example that takes longer than the rest of the request. So requests without anything unusual go
this way. All others go FastAPI's, which alone words what is wrong with a parameter, and which
documents the routes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.body import Bodies
from service.http.budget import Budget, Reservation
from service.http.dependencies import informed, learning, running
from service.http.errors import HTTPError
from service.http.routes import labels, learn, predict
from service.http.strict import SINGLE
from service.http.waits import Waits
from service.service import Service

Arguments = Mapping[str, Any]
"""Arguments of the function of a route that the query and the headers of a request give."""
LEARN, LABELS, PREDICT = "/learn", "/labels", "/predict"
APPLIED: Mapping[bytes, Arguments] = {b"": {}, b"wait=applied": {"wait": "applied"}}
QUERIES: Mapping[str, Mapping[bytes, Arguments]] = {
    LEARN: APPLIED,
    LABELS: APPLIED,
    PREDICT: {b"": {}, b"probabilities=false": {"probabilities": False}},
}
"""Queries of each path that go this way, as they are sent."""
ROUTES = {
    route.path: route
    for router in (learn.router, labels.router, predict.router)
    for route in router.routes
    if isinstance(route, APIRoute)
}
"""The routes of these paths, by which requests are counted."""
ONCE = frozenset(name.lower().encode() for name in SINGLE)
KEY = b"idempotency-key"


@dataclass(frozen=True)
class Direct:
    """Answers what it can, and leaves the rest to the application.

    Args:
        app: the application.
        service: answers the requests.
        bodies: decodes their bodies.
        budget: counts the memory of answers.
        waits: counts the requests that wait.
        refuse: returns the answer to an exception.
    """

    app: ASGIApp
    service: Service
    bodies: Bodies
    budget: Budget
    waits: Waits
    refuse: Callable[[Exception], Response]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        arguments = arguments_of(scope)
        if arguments is None:
            await self.app(scope, receive, send)
            return
        scope["route"] = ROUTES[scope["path"]]
        with self.budget.reserve() as memory:
            try:
                answer = await self._answer(Request(scope, receive), arguments, memory)
            except (HTTPError, HTTPException) as error:
                answer = self.refuse(error)
            await answer(scope, receive, send)

    async def _answer(
        self, request: Request, arguments: Arguments, memory: Reservation
    ) -> Response:
        """Call the function of a route.

        Args:
            request: with the body.
            arguments: of the function, which its query and headers give.
            memory: of the answer, for predictions.

        Raises:
            HTTPError: as the function does.
        """
        service, path = self.service, request.scope["path"]
        model = await running(service)
        if path == PREDICT:
            return await predict.predict(request, service, self.bodies, model, memory, **arguments)
        model = await informed(service, await learning(service, model))
        append = learn.learn if path == LEARN else labels.labels
        return await append(request, service, self.bodies, self.waits, model, **arguments)


def arguments_of(scope: Scope) -> Arguments | None:
    """Return the arguments of a route that a request gives; None if it goes FastAPI's way."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    path, query = scope["path"], scope["query_string"]
    known = QUERIES.get(path)
    if known is None or (arguments := known.get(query)) is None:
        return None
    names = [name for name, _ in scope["headers"]]
    if any(names.count(name) > 1 for name in ONCE):
        return None
    if path != LEARN or KEY not in names:
        return arguments
    [key] = [value for name, value in scope["headers"] if name == KEY]
    return (
        {**arguments, "idempotency_key": key.decode("latin-1")}
        if 0 < len(key) <= learn.MAX_KEY
        else None
    )
