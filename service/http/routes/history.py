"""``GET /history`` and ``GET /events``: the recent past, all at once or as it happens."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.http.dependencies import AnyService, Running
from service.http.errors import ErrorBody
from service.http.events import HEADERS, Viewer, events_after
from service.monitoring.history import Point
from service.monitoring.recovery import ShiftRecovery

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class HistoryAnswer(BaseModel):
    """About one point for each second of learning, oldest first."""

    points: list[Point]
    shifts: list[ShiftRecovery]
    """Known shifts of the stream, such as the demo's, and how the learners recovered from them."""


@router.get("/history", response_model=HistoryAnswer, responses={422: {"model": ErrorBody}})
async def history(
    model: Running,
    since: Annotated[
        int | None, Query(description="only points of newer model versions", ge=0)
    ] = None,
) -> Response:
    """Return the points of the last hour of learning, and the known shifts."""
    history = model.history
    shifts = b",".join(shift.model_dump_json().encode() for shift in history.shifts)
    return Response(
        b'{"points":[%s],"shifts":[%s]}' % (b",".join(history.points(since)), shifts),
        media_type="application/json",
    )


@router.get(
    "/events",
    dependencies=[Viewer],
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events. `point`: as in `/history`. `drift`: as in "
            "`/drift`; `shift`: as in `/history`; both are sent again under their `id` once a "
            "recovery is measured. `reset`: forget the events before; it comes first unless the "
            "stream continues after `Last-Event-ID`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def events(
    service: AnyService,
    model: Running,
    last_event_id: Annotated[str, Header(description="continue after this event")] = "",
) -> Response:
    """Send the points of the last hour of learning, then each new one."""
    pieces = events_after(service, model.history, last_event_id)
    return StreamingResponse(pieces, headers=HEADERS, media_type="text/event-stream")
