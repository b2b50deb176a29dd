"""``POST /predict``: labels and probabilities from the newest snapshot."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel

from service.http.codecs import json
from service.http.codecs.table import PREDICT, described
from service.http.dependencies import AnyService, BodiesOf, Running
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.model import Model
from service.predictor import NoPredictionError, Prediction, PredictionFailed
from streams.batch import Features

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
    probabilities: Annotated[bool, Query(description="false omits them")] = True,
) -> Response:
    """Predict; the model does not change."""
    async with bodies.features(request, model.spec) as features:
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
    shown = {"probabilities": prediction.probabilities} if probabilities else {}
    return json.answer({"labels": prediction.labels, **shown, "model_version": prediction.version})


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
