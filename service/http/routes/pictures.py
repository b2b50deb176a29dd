"""``GET /optimizer/gains`` and ``GET /newest``: what the live page shows of images."""

import asyncio
from typing import Any

import orjson
from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from service.http.dependencies import Running
from service.http.errors import ErrorBody

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class GainsAnswer(BaseModel):
    """The gains of one weight for each pixel and class, as of about a second ago."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: int
    side: int | None
    """Of the images; None if the inputs are none."""
    tensor: str | None
    log_gains: list[list[float]]
    """log p, [classes, side · side], for at most 16 classes; empty if no tensor has that shape."""


class Example(BaseModel):
    """An input with its label, and what was predicted before it was learned."""

    pixels: list[int]
    """[side · side], 0 to 255."""
    label: int
    predicted: int


class NewestAnswer(BaseModel):
    """A few of the newest examples, as of about a second ago."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: int
    """Of the model that predicted."""
    side: int | None
    """Of the images; None if the inputs are none."""
    examples: list[Example]


@router.get("/optimizer/gains", response_model=GainsAnswer)
async def gains(service: Running) -> Response:
    """Show the gains as images, where the inputs are images."""
    assert service.learner is not None
    statistics = service.learner.status.statistics
    found = statistics.gains if statistics else None
    return _json(
        {
            "model_version": statistics.version if statistics else 0,
            "side": service.learner.newest.side,
            "tensor": found.tensor if found else None,
            "log_gains": found.log_gains if found else [],
        }
    )


@router.get("/newest", response_model=NewestAnswer)
async def newest(service: Running) -> Response:
    """Show a few of the newest inputs, where they are images."""
    assert service.learner is not None
    newest = service.learner.newest
    seen = await asyncio.to_thread(newest.read)
    examples = zip(seen.pixels, seen.labels, seen.predicted, strict=True) if seen else ()
    return _json(
        {
            "model_version": seen.version if seen else 0,
            "side": newest.side,
            "examples": [{"pixels": p, "label": y, "predicted": z} for p, y, z in examples],
        }
    )


def _json(answer: dict[str, Any]) -> Response:
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    return Response(body, media_type="application/json")
