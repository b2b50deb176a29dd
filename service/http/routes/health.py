"""``GET /health/live``, ``GET /health/ready`` and ``GET /metrics``."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from service.http.dependencies import AnyCondition
from service.http.errors import ErrorBody, unavailable

router = APIRouter()


class Health(BaseModel):
    """How the service is."""

    status: str
    role: str
    learning: str
    """starting, standby, replaying, learning, waiting (for the log) or halted."""
    reason: str = ""
    """Why it does not learn."""


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "live"}


@router.get("/health/ready", responses={503: {"model": ErrorBody}})
async def ready(service: AnyCondition) -> Health:
    """Say whether predictions are served, also while learning waits for the log."""
    if service.draining.is_set():
        raise unavailable("draining", "the service is shutting down")
    if not service.is_ready or service.learner is None:
        raise unavailable("starting", "the service is starting")
    return Health(
        status="ready",
        role=service.learner.status.role,
        learning=service.learner.status.condition,
        reason=service.learner.status.reason,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{s: {"model": ErrorBody} for s in (401, 403)},
    },
)
async def metrics(service: AnyCondition) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)
