"""The FastAPI application around a `Service`."""

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from service.http.answers import Answers
from service.http.body import Bodies
from service.http.budget import MEMORY, Budget
from service.http.errors import HTTPError
from service.http.guard import ADMIN, LEARN, OPEN_PATHS, PREDICT, Guard
from service.http.routes import (
    drift,
    health,
    history,
    learn,
    model,
    page,
    pictures,
    predict,
    schema,
)
from service.http.sites import Sites
from service.http.strict import check
from service.http.waits import Waits
from service.service import Service

logger = logging.getLogger("funnel")

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
        redirect_slashes=False,  # the address would be made from the header Host
    )
    app.state.service, app.state.bodies, app.state.budget = service, bodies, budget
    app.state.waits = Waits()
    modules = (learn, predict, model, schema, drift, history, pictures, health, page)
    for router in (*(module.router for module in modules), *more):
        app.include_router(router, dependencies=[Depends(check)])

    async def answer(_: Request, error: Exception) -> Response:
        refusal = as_http_error(error)
        service.metrics.rejected.labels(refusal.code).inc()
        return refusal.answer()

    for kind in (HTTPError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)

    if settings.api_key:
        _describe_key(app)
    app.add_middleware(Answers, budget=budget, metrics=service.metrics)
    app.add_middleware(
        Guard,
        keys={ADMIN: settings.api_key, LEARN: settings.learn_key, PREDICT: settings.predict_key},
        routes=app.routes,
        metrics=service.metrics,
        sites=Sites(settings.host, settings.allowed_hosts, bool(settings.api_key)),
    )
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
    return HTTPError(500, "internal", "the service failed; its log has the details")


def _describe_key(app: FastAPI) -> None:
    """Describe in the schema that requests need a key, which `Guard` checks."""
    schema: dict[str, Any] = app.openapi()
    schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    schema["security"] = [{"key": []}]
    for path in OPEN_PATHS:
        schema["paths"][path]["get"]["security"] = []
