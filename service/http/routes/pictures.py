"""``GET /optimizer/gains`` and ``GET /newest``: the images on the live page."""

import asyncio

from fastapi import APIRouter, Response
from pydantic import BaseModel

from service.http.codecs import json
from service.http.dependencies import Running
from service.http.errors import ErrorBody

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class GainsAnswer(BaseModel):
    """The gains of the weight that has one element for each class and pixel, about a second old."""

    model_version: int
    side: int | None
    """Side of the images in pixels; null if the inputs are not images."""
    tensor: str | None
    log_gains: list[list[float]]
    """log p, [classes, side · side], for at most 16 classes; empty if no tensor has that shape."""


class Example(BaseModel):
    """An input with its label, and the prediction made before it was learned."""

    pixels: list[int]
    """[side · side], 0 to 255."""
    label: int
    predicted: int


class NewestAnswer(BaseModel):
    """A few of the newest examples, about a second old."""

    model_version: int
    """Version of the model that predicted."""
    side: int | None
    """Side of the images in pixels; null if the inputs are not images."""
    examples: list[Example]


@router.get("/optimizer/gains", response_model=GainsAnswer)
async def gains(model: Running) -> Response:
    """Show the gains as images, if the inputs are images."""
    statistics = model.status.statistics
    gains = statistics.gains if statistics else None
    return json.answer(
        {
            "model_version": statistics.version if statistics else 0,
            "side": model.newest.side,
            "tensor": gains.tensor if gains else None,
            "log_gains": gains.log_gains if gains else [],
        }
    )


@router.get("/newest", response_model=NewestAnswer)
async def newest(model: Running) -> Response:
    """Show a few of the newest inputs, if they are images."""
    seen = await asyncio.to_thread(model.newest.read)
    examples = zip(seen.pixels, seen.labels, seen.predicted, strict=True) if seen else ()
    return json.answer(
        {
            "model_version": seen.version if seen else 0,
            "side": model.newest.side,
            "examples": [{"pixels": p, "label": y, "predicted": z} for p, y, z in examples],
        }
    )
