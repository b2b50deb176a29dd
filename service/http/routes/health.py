"""``GET /health/live``, ``GET /health/ready`` and ``GET /metrics``."""

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel

from service.http.dependencies import AnyService, Running
from service.http.errors import ErrorBody

router = APIRouter()


class Health(BaseModel):
    """The state of the service."""

    status: str
    role: str
    learning: str
    """starting, standby, following, replaying, learning, paused, waiting (for the log), halted."""
    reason: str = ""
    """Why it does not learn; empty while it does."""
    model: str
    """The name of the model that is served."""
    version: int
    """Batches folded into it."""
    learned: int
    """Examples folded into it; 0 if nothing has been learned."""


@router.get("/health/live")
async def live() -> dict[str, str]:
    """Answer as long as the process lives."""
    return {"status": "live"}


@router.get("/health/ready", responses={503: {"model": ErrorBody}})
async def ready(model: Running) -> Health:
    """Answer 200 while predictions are served, even if learning waits for the log."""
    status = model.status
    return Health(
        status="ready",
        role=status.shown_role,
        learning=status.condition,
        reason=status.reason,
        model=model.settings.called,
        version=status.version,
        learned=status.examples,
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **{s: {"model": ErrorBody} for s in (401, 403)},
    },
)
async def metrics(service: AnyService) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(service.metrics.exposed(), media_type=CONTENT_TYPE_LATEST)
