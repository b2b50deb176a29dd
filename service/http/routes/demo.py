"""``GET`` and ``POST /demo/shift``: shift the demo's stream by hand. Only the demo has them."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from service.http.errors import ErrorBody
from streams.steering import KINDS, Steered


class Control(BaseModel):
    """One way to shift the stream."""

    kind: str
    label: str
    """The text of its button."""


class ControlsAnswer(BaseModel):
    """The ways to shift the stream."""

    controls: list[Control]


class ShiftRequest(BaseModel):
    """A way to shift the stream."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["rotate", "pixels", "noise", "labels"]


class ShiftAnswer(BaseModel):
    """The shift of the stream."""

    what: str
    """A description in a few words."""


def demo_router(steered: Steered) -> APIRouter:
    """Return the routes that shift this stream."""
    router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403)})

    @router.get("/demo/shift")
    async def controls() -> ControlsAnswer:
        """List the ways to shift the stream."""
        return ControlsAnswer(controls=[Control(kind=k, label=v) for k, v in KINDS.items()])

    @router.post("/demo/shift", responses={422: {"model": ErrorBody}})
    async def shift(request: ShiftRequest) -> ShiftAnswer:
        """Shift the stream, which runs without end from then on."""
        return ShiftAnswer(what=steered.shift(request.kind))

    return router
