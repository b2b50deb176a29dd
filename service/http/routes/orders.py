"""``POST /pause``, ``/resume`` and ``/promote``: commands of operators, which cuts carry."""

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict

from service.http.dependencies import CODES, Deciding
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.http.guard import sender_of
from service.log.cuts import Order, Pause, Promote, Resume
from service.log.errors import LogError, Stopped
from service.model import Model
from service.trainer.orders import UnknownLearnerError

WAIT_SECONDS = 30.0
"""Longest wait until an order is recorded."""

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


async def _carried_out(model: Model, kind: Callable[[str, int], Order], by: str) -> OrderAnswer:
    """Return the answer to an order, once it is recorded."""
    if model.is_open:
        message = "nothing has decided yet what is learned; send the first examples before"
        raise HTTPError(409, "undecided", message)
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
