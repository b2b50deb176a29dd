"""``GET /drift``: changes in the model's error."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.http.dependencies import Running
from service.http.errors import ErrorBody

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class DriftEvent(BaseModel):
    """A change in the served model's prequential error."""

    id: int
    time: float
    """Unix time in seconds at which the entry at the position was added to the log."""
    position: str
    examples: int
    """Examples learned when it was detected."""
    model_version: int
    detector: str
    """adwin or page_hinkley."""
    direction: str
    """worse or better."""
    accuracy_before: float
    accuracy_after: float
    recovery_examples: int | None
    """Examples from the event to its recovery (`streams.recovery`); null if there is none yet."""


class DriftAnswer(BaseModel):
    """Drift events, the newest last."""

    events: list[DriftEvent]


@router.get("/drift")
async def drift(
    model: Running, since: Annotated[int, Query(ge=0, description="id of an event")] = 0
) -> DriftAnswer:
    """List the drift events after ``since``; the newest hundred are kept."""
    events = model.status.drift.events
    return DriftAnswer(events=[DriftEvent(**e.shown()) for e in events if e.id > since])
