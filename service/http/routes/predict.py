"""``POST /predict``: labels and probabilities, or numbers, from the newest snapshot."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from service.fold.snapshot import Snapshot
from service.fold.task import Task
from service.http.body import Bodies
from service.http.budget import Reservation
from service.http.codecs import json
from service.http.codecs.codec import Unlabelled, hashes
from service.http.codecs.table import PREDICT, described
from service.http.dependencies import WRONG_ROLE, AnswerMemory, AnyService, BodiesOf, Running
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.http.guard import may_ask
from service.log.errors import LogUnavailable
from service.log.intake import WITHOUT_LOG
from service.log.labels import hash_of
from service.log.questions import Questions
from service.model import Model
from service.monitoring.features import (
    Part,
    UnreadableModelError,
    differences,
    reasons,
    shown,
    without_each,
)
from service.predictor import NoPredictionError, Prediction, PredictionFailed
from service.settings import INPUTS
from streams.batch import Features, InvalidBatchError
from streams.examples import AnyInputs
from streams.rows.labels import identified, without
from streams.rows.names import answered
from streams.rows.rows import Rows

NOTHING_LEARNED = "the model has learned nothing yet, and knows no label"
NOT_ASKED = "nothing is learned yet: send examples to /learn before you ask with ids"
NO_ANSWERS = (
    "this process has the role intake, and only takes examples and labels: send predictions to one "
    "with the role all or predict"
)
NUMBER_BYTES = 8
"""Memory of a probability while its answer is made and sent."""
MAX_EXPLAINED = 1_000
"""Rows of a request whose answers are explained."""
MAX_EMPTIED = 20_000
"""Rows of a request times columns whose answers are explained by what changes without each."""
MAX_NUMBERS_EMPTIED = 2_000_000
"""The same times labels, which all are computed and held."""
FEW = 64
"""Questions of a request that are encoded on the event loop."""
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
    ids: list[str] | None = None
    """An id for each example, with `track=true`."""
    effort: Literal["fast"] | None = None
    """``fast`` if the request had waited for more than `FUNNEL_PREDICT_MS`, so that the linear
    experts of the model `auto` answered alone."""


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
    track: Annotated[
        bool, Query(description="true makes an id for each example, and answers with them")
    ] = False,
    id: Annotated[
        str | None, Query(max_length=256, description="column of rows that holds their ids")
    ] = None,
) -> Response:
    """Predict with the newest version of the model, which does not change.

    With `ids` the questions and their answers are kept, and `POST /labels` may name them later.
    """
    if not model.answers:
        raise unavailable(WRONG_ROLE, NO_ANSWERS)
    async with _inputs(request, bodies, model, id) as asked:
        inputs, own, ids = asked.inputs, asked.hashes, list[str]()
        if track:
            ids, own = _minted(len(inputs), own)
        if own:
            _check_asking(request, model)
        _reserve(memory, len(inputs), model.classes)
        with service.metrics.predict_seconds.time():
            prediction = await _predicted(model, inputs)
        _check_finite(prediction, model.spec.predicts)
        why = await _explained(model, prediction, inputs, explain) if explain else {}
        if own:
            lost = partial(service.metrics.lost_questions.inc, len(inputs))
            await _ask(model, inputs, own, prediction, lost)
            service.metrics.asked.inc(len(inputs))
    end: dict[str, object] = {"model_version": prediction.version} | ({"ids": ids} if ids else {})
    if prediction.is_fast:
        service.metrics.fast_predictions.inc(len(prediction.labels))
        end["effort"] = "fast"
    if model.spec.predicts.is_numeric:
        found = _numbers(prediction, model.spec.predicts, probabilities)
        return json.answer({**found, **why, **end})
    is_named = names and prediction.names is not None
    if probabilities and not explain and prediction.probabilities.size > PIECE_NUMBERS:
        return StreamingResponse(_pieces(prediction, is_named, end), media_type=json.MEDIA_TYPE)
    more: dict[str, object] = {}
    if probabilities:
        more = {"probabilities": _shown(prediction, slice(None), is_named)}
    labels = _labels(prediction)
    return json.answer({"labels": labels, **more, **why, **end})


@asynccontextmanager
async def _inputs(
    request: Request, bodies: Bodies, model: Model, id_column: str | None
) -> AsyncIterator[Unlabelled[Features] | Unlabelled[Rows]]:
    """Return the examples of a request, whichever kind the model learns."""
    shape = model.spec.shape
    if shape is not None and model.is_open and INPUTS in model.settings.opens:
        async with bodies.either(request, shape) as found:
            if isinstance(found.inputs, Rows):
                has_ids = found.hashes or id_column is not None
                raise unavailable("starting", NOT_ASKED if has_ids else NOTHING_LEARNED)
            _refuse_column(id_column)
            yield found
        return
    if shape is not None:
        _refuse_column(id_column)
        async with bodies.features(request, shape, model.status.expects_bytes) as features:
            yield features
        return
    learns_classes = not model.spec.predicts.is_numeric
    if not (model.trainer.snapshot.names if learns_classes else model.trainer.snapshot.version):
        raise unavailable("starting", NOTHING_LEARNED)
    async with bodies.rows(request) as asked:
        rows, own = asked.inputs, asked.hashes
        try:
            if id_column is not None:
                rows, own = _identified(rows, id_column, own)
            if model.trainer.knows_schema:  # a standby's is that of a checkpoint
                rows = without(rows, {model.schema.label} - model.schema.index.keys())
                model.schema.check(rows)
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
        yield Unlabelled(rows, own)


def _refuse_column(id_column: str | None) -> None:
    """Make sure that dense features come without a column of ids.

    Raises:
        HTTPError: 422 the query names one.
    """
    if id_column is not None:
        message = "the query id is for rows; with dense features send ids in the body"
        raise HTTPError(422, "invalid", message, "id")


def _identified(rows: Rows, column: str, own: bytes) -> tuple[Rows, bytes]:
    """Return rows whose ids are one of their columns until now, and the hashes of these.

    Raises:
        InvalidBatchError: the column holds no ids, or the body holds ids too.
    """
    if own:
        raise InvalidBatchError("ids are given twice, in the body and as a column; give one", "ids")
    rest, ids = identified(rows, column)
    return rest, hashes(ids, len(rows))


def _minted(count: int, own: bytes) -> tuple[list[str], bytes]:
    """Return new ids, and their hashes.

    Raises:
        HTTPError: 422 the request has ids already.
    """
    if own:
        message = "the request has ids, and track=true makes others; send one of the two"
        raise HTTPError(422, "invalid", message, "ids")
    ids = [uuid.uuid4().hex for _ in range(count)]
    return ids, b"".join(map(hash_of, ids))


def _check_asking(request: Request, model: Model) -> None:
    """Make sure that a request may ask with ids.

    Raises:
        HTTPError: 403 its key does not allow that; 503 the model may still become another one.
    """
    if not may_ask(request.scope):
        message = (
            "asking with ids writes to the log: it needs a key of scope learn, too. Send that in "
            "the header Funnel-Learn-Key, or the key that may do everything"
        )
        raise HTTPError(403, "forbidden", message, "ids")
    if model.is_open:
        raise unavailable("starting", NOT_ASKED)
    if model.intake.redis is None:
        raise unavailable("log_unavailable", WITHOUT_LOG)


def _check_finite(prediction: Prediction, task: Task) -> None:
    """Make sure that a prediction is a number. Its deviation may be unknown.

    Raises:
        HTTPError: 422 it is not.
    """
    answers = prediction.probabilities
    finite = np.isfinite(answers[:, :1] if task.kind == "regression" else answers)
    if not finite.all():
        raise HTTPError(
            422,
            "no_prediction",
            "the prediction for this example is not finite; is one of its features extreme?",
            "features",
            int(finite.all(axis=1).argmin()),
        )


async def _ask(
    model: Model,
    inputs: AnyInputs,
    own: bytes,
    prediction: Prediction,
    lost: Callable[[], object],
) -> None:
    """Record questions with their answers, and wait until the log has them, unless TRACK is async.

    Args:
        model: that was asked.
        inputs: the examples.
        own: hashes of their ids.
        prediction: the answers.
        lost: called if nobody waits, and the log does not confirm.

    Raises:
        HTTPError: 503 the log did not confirm.
    """
    answers = prediction.labels, prediction.probabilities
    questions = Questions(inputs, own, *answers, prediction.version)
    if len(inputs) <= FEW:
        fields = questions.to_fields()
    else:
        fields = await asyncio.to_thread(questions.to_fields)
    if model.settings.track == "async":
        model.intake.ask_later(fields, lost)
        return
    try:
        await model.intake.ask(fields)
    except LogUnavailable as error:
        message = f"{error}. It may hold the questions; ask again with the same ids"
        raise unavailable("log_unavailable", message) from error


async def _explained(
    model: Model, prediction: Prediction, inputs: AnyInputs, top: int
) -> dict[str, object]:
    """Return the largest parts of each answer.

    Raises:
        HTTPError: 413 there are too many answers; 422 the model has no weights by feature; 503 the
            machine failed.
    """
    if not isinstance(inputs, Rows) or prediction.snapshot is None:
        raise HTTPError(422, "no_explanation", "only answers for rows are explained", "explain")
    if len(inputs) > MAX_EXPLAINED:
        message = f"at most {MAX_EXPLAINED} rows are explained in one request"
        raise HTTPError(413, "too_many_examples", message, "explain")
    if prediction.snapshot.families is not None:
        found = await _by_column(model, prediction, prediction.snapshot, inputs, top)
        return {"explanations": list(map(shown, found))}
    arguments = prediction.snapshot, inputs, prediction.labels, top
    try:
        found = await asyncio.to_thread(reasons, *arguments)
    except UnreadableModelError as error:
        raise HTTPError(422, "no_explanation", str(error), "explain") from error
    return {"explanations": list(map(shown, found))}


async def _by_column(
    model: Model, prediction: Prediction, snapshot: Snapshot, rows: Rows, top: int
) -> list[list[Part]]:
    """Return the parts of answers of all families, which are what changes without a column.

    Raises:
        HTTPError: 413 there are too many answers.
    """
    assert snapshot.schema is not None, "rows have a schema"
    names = snapshot.schema.columns
    emptied = min(MAX_EMPTIED, MAX_NUMBERS_EMPTIED // prediction.probabilities.shape[1])
    most = max(1, emptied // max(1, len(names)))
    if len(rows) > most:
        message = f"at most {most} rows of {len(names)} columns are explained in one request"
        raise HTTPError(413, "too_many_examples", message, "explain")
    own, others = await asyncio.to_thread(without_each, snapshot.schema, rows)
    if not own:
        return [[] for _ in range(len(rows))]
    without = await _predicted(model, others, snapshot)
    answer = prediction.labels, prediction.probabilities
    answers = without.labels, without.probabilities
    return differences(own, model.spec.predicts, answer, answers, top)


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


async def _pieces(
    prediction: Prediction, is_named: bool, end: dict[str, object]
) -> AsyncIterator[bytes]:
    """Yield the same JSON as for a short answer; other requests are served between the pieces.

    Args:
        prediction: the answer.
        is_named: whether probabilities are shown by label.
        end: the members that follow.
    """
    probabilities = prediction.probabilities
    rows = max(1, PIECE_NUMBERS // probabilities.shape[1])
    yield b'{"labels":' + json.text(_labels(prediction)) + b',"probabilities":['
    for start in range(0, len(probabilities), rows):
        part = json.text(_shown(prediction, slice(start, start + rows), is_named))[1:-1]
        yield b"," + part if start else part
        await asyncio.sleep(0)
    yield b"]," + json.text(end)[1:]


async def _predicted(
    model: Model, inputs: AnyInputs, snapshot: Snapshot | None = None
) -> Prediction:
    """Return the prediction for checked inputs, of a snapshot or the newest one.

    Raises:
        HTTPError: 422 the model raises for an example; 503 the machine failed.
    """
    try:
        return await model.predictor.predict(inputs, snapshot)
    except NoPredictionError as error:
        raise HTTPError(422, "no_prediction", str(error), model.inputs, error.index) from error
    except PredictionFailed as error:
        raise unavailable("prediction_failed", str(error)) from error
