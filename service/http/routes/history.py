"""``GET /history`` and ``GET /events``: the recent past, at once or as it happens."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import BaseModel

from service.http.dependencies import AnyService, Running
from service.http.errors import ErrorBody
from service.http.events import EventStream
from service.monitoring.history import Point

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class HistoryAnswer(BaseModel):
    """About a point a second of learning, oldest first."""

    points: list[Point]


@router.get("/history", response_model=HistoryAnswer, responses={422: {"model": ErrorBody}})
async def history(
    model: Running,
    since: Annotated[
        int | None, Query(description="only points of a newer model version", ge=0)
    ] = None,
) -> Response:
    """Return the points that are kept: those of the last hour of learning."""
    points = model.history.points(since)
    return Response(b'{"points":[%s]}' % b",".join(points), media_type="application/json")


@router.get(
    "/events",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events. `point`: as in `/history`. `drift`: as in `/drift`;"
            " one that comes again under its `id` has news of the recovery. `shift`: the stream is "
            "known to change at an example. `reset`: forget what came before; it comes first unless"
            " the stream goes on behind `Last-Event-ID`.",
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        }
    },
)
async def events(
    service: AnyService,
    model: Running,
    last_event_id: Annotated[str, Header(description="go on behind this event")] = "",
) -> Response:
    """Send the points that are kept, and then each as it is made."""
    return EventStream(service, model.history, last_event_id)
