"""``POST /pause``, ``/resume``, ``/promote``, ``/skip`` and ``/rollback``: commands of operators,
which cuts carry."""

import asyncio
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field

from service.http.dependencies import CODES, Deciding
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.http.guard import sender_of
from service.log.cuts import Order, Pause, Promote, Resume
from service.log.errors import LogError, Stopped
from service.model import Model
from service.trainer.archive.replay import UnreachableError
from service.trainer.archive.rules import Rule, RuleError
from service.trainer.orders import UnknownLearnerError

WAIT_SECONDS, REBUILD_SECONDS = 30.0, 3_600.0
"""Longest wait until an order is recorded, and until a model is rebuilt."""
MOST_SECONDS = 1e11

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 409, 503)})


class OrderAnswer(BaseModel):
    """The command is recorded."""

    cut: int
    """Number of the cut that carries it; of an earlier one if it changes nothing."""


@router.post("/pause", status_code=202)
async def pause(request: Request, model: Deciding) -> OrderAnswer:
    """Pause learning: predictions are served and examples accepted, and none is learned.

    It stays so after a restart, and where a standby takes over, until `POST /resume`.
    """
    return await _carried_out(model, Pause, sender_of(request.scope))


@router.post("/resume", status_code=202)
async def resume(request: Request, model: Deciding) -> OrderAnswer:
    """Go on learning after a pause, with the examples that have come meanwhile."""
    return await _carried_out(model, Resume, sender_of(request.scope))


class Promotion(BaseModel):
    """The learner that is to answer predictions."""

    model_config = ConfigDict(extra="forbid", strict=True)

    learner: str
    """Name of a shadow, or ``original`` for the learner with which the model began."""


@router.post(
    "/promote", status_code=202, responses={s: {"model": ErrorBody} for s in (400, 413, 422)}
)
async def promote(request: Request, model: Deciding, promotion: Promotion) -> OrderAnswer:
    """Let a shadow answer predictions from now on; the learner that did becomes a shadow.

    All learners go on learning. It stays so after a restart, also if the settings no longer name
    the shadow, until another learner is promoted.
    """
    kind = partial(Promote, learner=promotion.learner)
    return await _carried_out(model, kind, sender_of(request.scope))


MOST_ID = 41
"""Characters of the longest id of an entry: two numbers of 64 bits."""


class Skip(BaseModel):
    """Examples that the model is to be without: give entries, or a time."""

    model_config = ConfigDict(extra="forbid", strict=True)

    entries: list[Annotated[str, Field(max_length=MOST_ID)]] = Field([], max_length=1_000)
    """Ids of entries of the log, as ``POST /learn`` returns them."""
    source: str = Field("", max_length=256)
    """Field ``source`` of the entries: ``http``, or the name that a producer gives; empty: any."""
    since: float = Field(0, ge=0, le=MOST_SECONDS)
    until: float = Field(0, ge=0, le=MOST_SECONDS)
    """Unix time in seconds between which the log has got them."""
    dry_run: bool = False
    """True to count what would be skipped, and change nothing."""


class Rollback(BaseModel):
    """The version to which the model is to go back."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(ge=1, le=1 << 53)
    dry_run: bool = False
    """True to count what would be skipped, and change nothing."""


class RebuildAnswer(BaseModel):
    """The model was rebuilt, or what that would skip was counted."""

    cut: int
    """Number of the cut that carries the command, which is the version from then on; 0 if nothing
    was changed."""
    begin: int
    """Number of the cut after which it was rebuilt."""
    examples: int
    """Examples that are skipped since then, with those of earlier commands."""
    batches: int
    """Batches that these were in."""
    version: int
    """Version before that."""


BODY: dict[int | str, dict[str, Any]] = {s: {"model": ErrorBody} for s in (400, 413, 422)}


@router.post("/skip", responses=BODY)
async def skip(request: Request, model: Deciding, skipped: Skip) -> RebuildAnswer:
    """Rebuild the model without some examples: all others stay learned, also those after them.

    Learning waits meanwhile, and goes on with the examples that have come. Predictions are served.
    """
    try:
        since, until = round(1000 * skipped.since), round(1000 * skipped.until)
        rule = Rule(tuple(skipped.entries), skipped.source, since, until)
    except RuleError as error:
        raise HTTPError(422, "invalid_rule", str(error)) from error
    return await _rebuilt(model, rule, sender_of(request.scope), skipped.dry_run)


@router.post("/rollback", responses=BODY)
async def rollback(request: Request, model: Deciding, to: Rollback) -> RebuildAnswer:
    """Go back to a version, and on from the present position: later examples are not learned again.

    The schema and the classes stay as they are now.
    """
    rule = Rule(version=to.version)
    return await _rebuilt(model, rule, sender_of(request.scope), to.dry_run)


async def _rebuilt(model: Model, rule: Rule, by: str, is_dry: bool) -> RebuildAnswer:
    """Return the answer to a rebuild, once it is recorded."""
    _check_decided(model)
    try:
        async with asyncio.timeout(REBUILD_SECONDS):
            outcome = await asyncio.wrap_future(model.trainer.rebuild(rule, by, is_dry))
    except UnreachableError as error:
        raise HTTPError(422, "not_archived", str(error)) from error
    except TimeoutError as error:
        message = "it goes on; GET /model lists the command once it is recorded"
        raise unavailable("rebuilding", message) from error
    except OSError as error:
        raise unavailable("checkpoint_failed", f"nothing is changed: {error}") from error
    except LogError as error:
        raise unavailable("log_unavailable", f"{error}. It may hold the command") from error
    except Stopped as error:
        code = CODES.get(model.status.condition, "learning_halted")
        raise unavailable(code, str(error)) from error
    return RebuildAnswer(**asdict(outcome))


def _check_decided(model: Model) -> None:
    if model.is_open:
        message = "nothing has decided yet what is learned; send the first examples before"
        raise HTTPError(409, "undecided", message)


async def _carried_out(model: Model, kind: Callable[[str, int], Order], by: str) -> OrderAnswer:
    """Return the answer to an order, once it is recorded."""
    _check_decided(model)
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return OrderAnswer(cut=await asyncio.wrap_future(model.trainer.order(kind, by)))
    except UnknownLearnerError as error:
        raise HTTPError(422, "unknown_learner", str(error)) from error
    except TimeoutError as error:
        message = f"the log did not take the command within {WAIT_SECONDS:g} s; it may still do so"
        raise unavailable("log_unavailable", message) from error
    except LogError as error:
        raise unavailable("log_unavailable", f"{error}. It may hold the command") from error
    except Stopped as error:
        code = CODES.get(model.status.condition, "learning_halted")
        raise unavailable(code, str(error)) from error
