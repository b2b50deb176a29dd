"""``POST /predict``: labels and probabilities from the newest snapshot."""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.http.budget import Reservation
from service.http.codecs import json
from service.http.codecs.table import PREDICT, described
from service.http.dependencies import AnswerMemory, AnyService, BodiesOf, Running
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.model import Model
from service.predictor import NoPredictionError, Prediction, PredictionFailed
from streams.batch import Features

NUMBER_BYTES = 8
"""Memory of a probability while its answer is made and sent."""
PIECE_NUMBERS = 4_096
"""Probabilities that are written as JSON at once, in less than a millisecond."""

router = APIRouter()


class Predictions(BaseModel):
    """Predictions in the order of the examples."""

    labels: list[int]
    probabilities: list[list[float]] | None = None
    """[n, classes]."""
    model_version: int


@router.post(
    "/predict",
    response_model=Predictions,
    responses={s: {"model": ErrorBody} for s in (401, 403, 408, 413, 415, 422, 503)},
    openapi_extra=described(PREDICT),
)
async def predict(
    request: Request,
    service: AnyService,
    bodies: BodiesOf,
    model: Running,
    memory: AnswerMemory,
    probabilities: Annotated[bool, Query(description="false omits them")] = True,
) -> Response:
    """Predict; the model does not change."""
    async with bodies.features(request, model.spec) as features:
        _reserve(memory, len(features), model.spec.classes)
        with service.metrics.predict_seconds.time():
            prediction = await _predicted(model, features)
    finite = np.isfinite(prediction.probabilities).all(axis=1)
    if not finite.all():
        raise HTTPError(
            422,
            "no_prediction",
            "the prediction for this example is not finite; is one of its features extreme?",
            "features",
            int(finite.argmin()),
        )
    if probabilities and prediction.probabilities.size > PIECE_NUMBERS:
        return StreamingResponse(_pieces(prediction), media_type=json.MEDIA_TYPE)
    shown = {"probabilities": prediction.probabilities} if probabilities else {}
    return json.answer({"labels": prediction.labels, **shown, "model_version": prediction.version})


def _reserve(memory: Reservation, examples: int, classes: int) -> None:
    """Reserve the memory of an answer.

    Raises:
        HTTPError: 413 there never is so much; 503 there is not now.
    """
    each = NUMBER_BYTES * (classes + 1)
    if examples * each > memory.most:
        raise HTTPError(
            413,
            "too_many_examples",
            f"the probabilities of {examples} examples and {classes} classes take more memory than "
            f"there is for answers; send at most {memory.most // each} examples",
        )
    memory.grow(examples * each)


async def _pieces(prediction: Prediction) -> AsyncIterator[bytes]:
    """Yield the same JSON as for a short answer; other requests are served between the pieces."""
    probabilities = prediction.probabilities
    rows = max(1, PIECE_NUMBERS // probabilities.shape[1])
    yield b'{"labels":' + json.text(prediction.labels) + b',"probabilities":['
    for start in range(0, len(probabilities), rows):
        part = json.text(probabilities[start : start + rows])[1:-1]
        yield b"," + part if start else part
        await asyncio.sleep(0)
    yield b'],"model_version":%d}' % prediction.version


async def _predicted(model: Model, features: Features) -> Prediction:
    """Return the prediction for features [n, d].

    Raises:
        HTTPError: 422 the model raises for an example; 503 the machine failed.
    """
    try:
        return await model.predictor.predict(features)
    except NoPredictionError as error:
        raise HTTPError(422, "no_prediction", str(error), "features", error.index) from error
    except PredictionFailed as error:
        raise unavailable("prediction_failed", str(error)) from error
