"""``GET /dead``: entries and batches that were not learned, and why."""

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict

from service.http.dependencies import Running
from service.http.errors import ErrorBody, unavailable
from service.log.errors import LogUnavailable
from service.log.letters import newest_letters

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 422, 503)})


class LetterAnswer(BaseModel):
    """A dead letter."""

    model_config = ConfigDict(from_attributes=True)

    id: str
    time: float
    """Unix time in seconds at which it was written."""
    begin: str
    """Id of the entry; of a skipped batch, the position in the log at which it begins."""
    end: str
    """The same as `begin`; of a skipped batch, the position at which it ends."""
    examples: int | None
    """Examples of a skipped batch; null for an entry, which could not be read."""
    reason: str
    fields: list[str]
    """Names of the entry's fields."""


class DeadAnswer(BaseModel):
    """The dead letters, the newest first."""

    letters: list[LetterAnswer]


@router.get("/dead")
async def dead(
    model: Running,
    count: Annotated[int, Query(ge=1, le=1_000, description="most letters")] = 100,
) -> DeadAnswer:
    """List the newest entries of the log that could not be read, and batches that were skipped.

    It needs the key that may do everything, since reasons may quote what was sent."""
    try:
        letters = await newest_letters(model.intake.server, model.intake.keys, count)
    except LogUnavailable as error:
        raise unavailable("log_unavailable", str(error)) from error
    return DeadAnswer(letters=[LetterAnswer.model_validate(letter) for letter in letters])
