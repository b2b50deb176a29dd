"""The FastAPI application around a `Service`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from enum import Enum
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from service.http.answers import Answers
from service.http.body import Bodies
from service.http.budget import MEMORY, Budget
from service.http.direct import Direct
from service.http.errors import ErrorBody, HTTPError
from service.http.examples import with_examples
from service.http.guard import ADMIN, LEARN, OPEN_PATHS, PREDICT, Guard
from service.http.routes import (
    dead,
    drift,
    health,
    history,
    labels,
    learn,
    model,
    orders,
    page,
    pictures,
    predict,
    schema,
)
from service.http.sites import Sites
from service.http.strict import check, check_headers
from service.http.waits import Waits
from service.monitoring.logs import REQUEST
from service.service import Service

logger = logging.getLogger("funnel")

GROUPS: dict[str | Enum, Sequence[APIRouter]] = {
    "learn": (learn.router, labels.router),
    "predict": (predict.router,),
    "model": (model.router, orders.router, schema.router, pictures.router),
    "watch": (drift.router, history.router, dead.router),
}
"""The groups of routes that the page /docs shows, in order."""
DEMO, HEALTH = "demo", "health"
"""The groups of the demo's own routes, and of those for probes and scrapes."""
CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: Service, more: Sequence[APIRouter] = ()) -> FastAPI:
    """Return the application, which neither starts nor stops the service.

    Args:
        service: answers the requests.
        more: further routes.
    """
    settings = service.settings
    budget = Budget(max(MEMORY, 2 * settings.max_body_bytes))
    bodies = Bodies(settings.max_body_bytes, budget)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(bodies.close)

    app = FastAPIOffline(  # its /docs loads nothing from other hosts
        title="Funnel",
        version=version("funnel-stream"),
        description="Online learning for data that drifts, with no step size to tune.",
        lifespan=lifespan,
        license_info={"name": "MIT License", "identifier": "MIT"},
        redirect_slashes=False,  # the address would be made from the header Host
    )
    app.state.service, app.state.bodies, app.state.budget = service, bodies, budget
    app.state.waits = waits = Waits()
    wrong: dict[int | str, dict[str, Any]] = {422: {"model": ErrorBody}}
    for group, routers in {**GROUPS, DEMO: more}.items():
        for router in routers:
            _summarize(router)
            app.include_router(router, dependencies=[Depends(check)], responses=wrong, tags=[group])
    for module in (health, page):  # probes and browsers may add queries against caches
        _summarize(module.router)
        app.include_router(module.router, dependencies=[Depends(check_headers)], tags=[HEALTH])

    def refuse(error: Exception) -> Response:
        refusal = as_http_error(error)
        service.metrics.rejected.labels(refusal.code).inc()
        return refusal.answer()

    async def answer(_: Request, error: Exception) -> Response:
        return refuse(error)

    for kind in (HTTPError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)

    if settings.api_key:
        _describe_key(app)
    describe = app.openapi

    def described() -> dict[str, Any]:
        document, model = describe(), service.model
        return document if model is None else with_examples(document, model)

    vars(app)["openapi"] = described  # FastAPI's own way to extend it
    app.add_middleware(
        Direct, service=service, bodies=bodies, budget=budget, waits=waits, refuse=refuse
    )
    app.add_middleware(Answers, budget=budget, metrics=service.metrics)
    app.state.guard = guard = partial(
        Guard,
        keys={ADMIN: settings.api_key, LEARN: settings.learn_key, PREDICT: settings.predict_key},
        routes=app.routes,
        metrics=service.metrics,
        sites=Sites(settings.host, settings.allowed_hosts, bool(settings.api_key)),
    )
    app.add_middleware(guard)
    return app


def as_http_error(error: Exception) -> HTTPError:
    """Return the answer to an exception of a route, FastAPI or Starlette."""
    match error:
        case HTTPError():
            return error
        case RequestValidationError():
            wrong = error.errors()[0]
            where = str(wrong["loc"][-1])
            return HTTPError(422, "invalid", f"{where}: {wrong['msg']}", where)
        case HTTPException():
            code = CODES.get(error.status_code, "http_error")
            return HTTPError(error.status_code, code, str(error.detail), headers=error.headers)
    message = f"the service failed; its log has the details of request {REQUEST.get()}"
    return HTTPError(500, "internal", message)


def _summarize(router: APIRouter) -> None:
    """Let /docs list each route by the first sentence of its description, not by its function."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            first = route.description.partition("\n")[0].partition(";")[0]
            route.summary = first.rstrip(".").replace("``", "")


def _describe_key(app: FastAPI) -> None:
    """Describe in the schema that requests need a key, which `Guard` checks."""
    schema: dict[str, Any] = app.openapi()
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    for path in OPEN_PATHS:
        schema["paths"][path]["get"]["security"] = []
