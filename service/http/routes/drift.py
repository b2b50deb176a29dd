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
    """adwin, page_hinkley or excess_loss."""
    direction: str
    """worse or better."""
    accuracy_before: float
    accuracy_after: float
    recovery_examples: int | None
    """Examples from the event to its recovery (`streams.recovery`); null if there is none yet."""


class ColumnDriftAnswer(BaseModel):
    """A column of rows whose recent values differ from those before."""

    name: str
    kind: str
    """The number that changed: missing (the share of rows without a value), new_keys (per row),
    mean or scale (of a number), values (the spread over a category's values)."""
    since: int
    """Examples learned when it was first seen."""
    statistic: float
    """Difference of recent and before, in deviations of that difference by chance."""
    limit: float
    """The largest statistic that chance explains, given how many numbers are watched."""


class DriftAnswer(BaseModel):
    """Drift events, the newest last, and the columns that drift now."""

    events: list[DriftEvent]
    columns: list[ColumnDriftAnswer]
    """In the order of the schema; empty for dense features, and unless this process learns."""


@router.get("/drift")
async def drift(
    model: Running, since: Annotated[int, Query(ge=0, description="id of an event")] = 0
) -> DriftAnswer:
    """List the drift events after ``since``, of which the newest hundred are kept, and the columns
    that drift now."""
    events = model.status.drift.events
    return DriftAnswer(
        events=[DriftEvent(**e.shown()) for e in events if e.id > since],
        columns=[
            ColumnDriftAnswer(name=name, **vars(change))
            for name, column in model.trainer.columns.read().items()
            for change in column.changes
        ],
    )
