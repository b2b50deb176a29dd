"""``POST /predict``: labels and probabilities, or numbers, from the newest snapshot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.fold.task import Task
from service.http.body import Bodies
from service.http.budget import Reservation
from service.http.codecs import json
from service.http.codecs.table import PREDICT, described
from service.http.dependencies import AnswerMemory, AnyService, BodiesOf, Running
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.model import Model
from service.monitoring.features import UnreadableModelError, reasons, shown
from service.predictor import NoPredictionError, Prediction, PredictionFailed
from service.settings import INPUTS
from streams.batch import InvalidBatchError
from streams.examples import AnyInputs
from streams.rows.labels import without
from streams.rows.names import answered
from streams.rows.rows import Rows

NOTHING_LEARNED = "the model has learned nothing yet, and knows no label"
NUMBER_BYTES = 8
"""Memory of a probability while its answer is made and sent."""
MAX_EXPLAINED = 1_000
"""Rows of a request whose answers are explained."""
PIECE_NUMBERS = 4_096
"""Probabilities that are written as JSON at once, in less than a millisecond."""

router = APIRouter()


class Contribution(BaseModel):
    """A part of an answer."""

    feature: str
    nats: float
    """Contribution to the log odds of the predicted label, compared with the mean of all labels."""


class Predictions(BaseModel):
    """Predictions in the order of the examples."""

    labels: list[bool | int | float | str] | None = None
    """Numbers of classes; the labels as they were sent if the model learns rows. A model that
    predicts numbers has `values` instead."""
    values: list[float] | None = None
    """Predicted numbers: means, or the middle quantile."""
    std: list[float] | None = None
    """Standard deviation of each number, with the task `regression`."""
    quantiles: dict[str, list[float]] | None = None
    """Quantiles of each number, with the task `quantile`."""
    probabilities: list[list[float]] | list[dict[str, float]] | None = None
    """[n, classes], or by label if the model learns rows."""
    explanations: list[list[Contribution]] | None = None
    """The largest parts of each answer, with `explain`."""
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
    probabilities: Annotated[
        bool, Query(description="false omits them, and deviations and quantiles")
    ] = True,
    names: Annotated[
        bool,
        Query(description="false lists probabilities in the order of `GET /schema`; for rows"),
    ] = True,
    explain: Annotated[
        int, Query(ge=0, le=100, description="parts of each answer to show; for rows")
    ] = 0,
) -> Response:
    """Predict; the model does not change."""
    async with _inputs(request, bodies, model) as inputs:
        _reserve(memory, len(inputs), model.classes)
        with service.metrics.predict_seconds.time():
            prediction = await _predicted(model, inputs)
        why = await _explained(prediction, inputs, explain) if explain else {}
    finite = np.isfinite(prediction.probabilities).all(axis=1)
    if not finite.all():
        raise HTTPError(
            422,
            "no_prediction",
            "the prediction for this example is not finite; is one of its features extreme?",
            "features",
            int(finite.argmin()),
        )
    if model.spec.predicts.is_numeric:
        found = _numbers(prediction, model.spec.predicts, probabilities)
        return json.answer({**found, **why, "model_version": prediction.version})
    is_named = names and prediction.names is not None
    if probabilities and not explain and prediction.probabilities.size > PIECE_NUMBERS:
        return StreamingResponse(_pieces(prediction, is_named), media_type=json.MEDIA_TYPE)
    more: dict[str, object] = {}
    if probabilities:
        more = {"probabilities": _shown(prediction, slice(None), is_named)}
    labels = _labels(prediction)
    return json.answer({"labels": labels, **more, **why, "model_version": prediction.version})


@asynccontextmanager
async def _inputs(request: Request, bodies: Bodies, model: Model) -> AsyncIterator[AnyInputs]:
    """Return the examples of a request, whichever kind the model learns."""
    shape = model.spec.shape
    if shape is not None and model.is_open and INPUTS in model.settings.opens:
        async with bodies.either(request, shape) as found:
            if isinstance(found, Rows):
                raise unavailable("starting", NOTHING_LEARNED)
            yield found
        return
    if shape is not None:
        async with bodies.features(request, shape, model.status.expects_bytes) as features:
            yield features
        return
    learns_classes = not model.spec.predicts.is_numeric
    if not (model.trainer.snapshot.names if learns_classes else model.trainer.snapshot.version):
        raise unavailable("starting", NOTHING_LEARNED)
    async with bodies.rows(request) as rows:
        try:
            if model.trainer.knows_schema:  # a standby's is that of a checkpoint
                rows = without(rows, {model.schema.label} - model.schema.index.keys())
                model.schema.check(rows)
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
        yield rows


async def _explained(prediction: Prediction, inputs: AnyInputs, top: int) -> dict[str, object]:
    """Return the largest parts of each answer.

    Raises:
        HTTPError: 413 there are too many answers; 422 the model has no weights by feature.
    """
    if not isinstance(inputs, Rows) or prediction.snapshot is None:
        raise HTTPError(422, "no_explanation", "only answers for rows are explained", "explain")
    if len(inputs) > MAX_EXPLAINED:
        message = f"at most {MAX_EXPLAINED} rows are explained in one request"
        raise HTTPError(413, "too_many_examples", message, "explain")
    arguments = prediction.snapshot, inputs, prediction.labels, top
    try:
        found = await asyncio.to_thread(reasons, *arguments)
    except UnreadableModelError as error:
        raise HTTPError(422, "no_explanation", str(error), "explain") from error
    return {"explanations": list(map(shown, found))}


def _labels(prediction: Prediction) -> object:
    """Return the predicted labels as answers show them."""
    if prediction.names is None:
        return prediction.labels
    shown = list(map(answered, prediction.names))
    return [shown[label] for label in prediction.labels.tolist()]


def _numbers(prediction: Prediction, task: Task, shows_more: bool) -> dict[str, object]:
    """Return predicted numbers as answers show them.

    Args:
        prediction: of a model of numbers.
        task: of the model.
        shows_more: whether deviations or quantiles are shown.
    """
    columns = prediction.probabilities.T
    found: dict[str, object] = {"values": prediction.labels}
    if shows_more and task.kind == "regression":
        found["std"] = np.ascontiguousarray(columns[1])
    elif shows_more:
        pairs = zip(task.quantiles, columns, strict=True)
        found["quantiles"] = {f"{level:g}": np.ascontiguousarray(own) for level, own in pairs}
    return found


def _shown(prediction: Prediction, rows: slice, is_named: bool) -> object:
    """Return the probabilities of some examples as answers show them."""
    probabilities = prediction.probabilities[rows]
    if not is_named or prediction.names is None:
        return probabilities
    each = probabilities.tolist()
    return [dict(zip(prediction.names, row, strict=True)) for row in each]


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


async def _pieces(prediction: Prediction, is_named: bool) -> AsyncIterator[bytes]:
    """Yield the same JSON as for a short answer; other requests are served between the pieces."""
    probabilities = prediction.probabilities
    rows = max(1, PIECE_NUMBERS // probabilities.shape[1])
    yield b'{"labels":' + json.text(_labels(prediction)) + b',"probabilities":['
    for start in range(0, len(probabilities), rows):
        part = json.text(_shown(prediction, slice(start, start + rows), is_named))[1:-1]
        yield b"," + part if start else part
        await asyncio.sleep(0)
    yield b'],"model_version":%d}' % prediction.version


async def _predicted(model: Model, inputs: AnyInputs) -> Prediction:
    """Return the prediction for checked inputs.

    Raises:
        HTTPError: 422 the model raises for an example; 503 the machine failed.
    """
    try:
        return await model.predictor.predict(inputs)
    except NoPredictionError as error:
        raise HTTPError(422, "no_prediction", str(error), model.inputs, error.index) from error
    except PredictionFailed as error:
        raise unavailable("prediction_failed", str(error)) from error
