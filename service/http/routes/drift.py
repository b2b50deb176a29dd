"""``GET /drift``: when the model's error changed."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from service.fold.drift import Event
from service.http.dependencies import Running
from service.http.errors import ErrorBody

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class DriftEvent(BaseModel):
    """A change in the served model's prequential error."""

    model_config = ConfigDict(protected_namespaces=())

    id: int
    time: float
    """Unix time in seconds at which the entry at the position was added to the log."""
    position: str
    examples: int
    """Learned when it was detected."""
    model_version: int
    detector: str
    """adwin or page_hinkley."""
    direction: str
    """worse or better."""
    accuracy_before: float
    accuracy_after: float
    recovery_examples: int | None
    """From the event until rolling accuracy was back within 2 points; null until then."""

    @classmethod
    def of(cls, event: Event) -> "DriftEvent":
        """Return what is shown of an event."""
        return cls(
            id=event.id,
            time=event.time,
            position=str(event.position),
            examples=event.examples,
            model_version=event.model_version,
            detector=event.detector,
            direction=event.direction,
            accuracy_before=event.accuracy_before,
            accuracy_after=event.accuracy_after,
            recovery_examples=event.recovery_examples,
        )


class DriftAnswer(BaseModel):
    """Drift events, the newest last."""

    events: list[DriftEvent]


@router.get("/drift")
async def drift(
    service: Running, since: Annotated[int, Query(ge=0, description="an event's id")] = 0
) -> DriftAnswer:
    """List the drift events after one; the newest hundred are kept."""
    assert service.learner is not None
    events = service.learner.status.drift.events
    return DriftAnswer(events=[DriftEvent.of(e) for e in events if e.id > since])
