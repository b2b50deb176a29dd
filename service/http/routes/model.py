"""``GET /model``, ``GET /optimizer``, ``POST /checkpoint``: the model, and checkpoints of it."""

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict

from service.export import ExportError
from service.fold.state import SERVED
from service.http.codecs.safetensors import MEDIA_TYPE as TYPE
from service.http.dependencies import CODES, Deciding, Running
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.log.cuts import Promote
from service.log.errors import Stopped
from service.model import Model
from service.monitoring.statistics import CALIBRATED, Statistics
from service.monitoring.status import LabelStatus

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})

SHOWN = {"batch_size", "max_wait_ms", "standardize", "seed"}
"""Settings among the hyperparameters of ``GET /model``."""
MAX_CLASSES = 100
"""Classes that are shown one by one; of more, only the first."""
Finite = Annotated[
    float | None, BeforeValidator(lambda value: value if math.isfinite(value) else None)
]
"""A number; null if it is not finite, which JSON cannot express."""


class Window(BaseModel):
    """Scores over some examples; null where a score is not defined."""

    model_config = ConfigDict(from_attributes=True)

    examples: int
    """How many; all scores but accuracy and log loss are of these."""
    accuracy: Finite
    log_loss: Finite
    """Mean cross-entropy in nats."""
    brier: Finite
    """Mean of Σ (p - y)² over the classes, in [0, 2]."""
    auc: Finite
    """Null unless exactly two classes are open; the second is the positive one."""
    pr_auc: Finite
    ece: Finite
    """Expected calibration error in 15 bins of equal mass."""
    balanced_accuracy: Finite


class CalibrationAnswer(BaseModel):
    """A bin of the calibration curve."""

    model_config = ConfigDict(from_attributes=True)

    probability: float
    share: float
    """Share of the examples that were as predicted with this probability."""
    examples: int


class ClassesAnswer(BaseModel):
    """The served model by class, over some examples."""

    recall: list[Finite]
    """Null for a class without examples."""
    precision: list[Finite]
    """Null for a class that was never predicted."""
    confusion: list[list[int]]
    """Counts by label, then by predicted class; empty with more than 64 classes."""
    calibration: list[CalibrationAnswer]
    """By probability, before it is calibrated, as for the scores under ``served``: of the second
    class if exactly two are open, otherwise of the predicted one."""
    calibrated: list[CalibrationAnswer]
    """The same of the answers, as for the scores under ``calibrated``; empty without them."""


class QuestionsAnswer(BaseModel):
    """The questions that were asked with ids, and the labels that came later."""

    given_accuracy: float | None
    """Share of the answers that were right when they were given; null before the first label, and
    where numbers are predicted."""
    rolling_given_accuracy: float | None
    """The same of the last 1,000 that have a label."""
    coverage: float | None
    """Share of the questions of the last `FUNNEL_LABEL_TTL` that have a label."""
    delay_seconds: float | None
    """Median time from a question to its label, of the last 1,000 labels since the start."""
    open_questions: int
    """Questions that wait for their labels."""
    oldest_seconds: float
    """Age of the oldest question that is not closed."""
    results: dict[str, int]
    """Labels by what became of them."""


class OrderedAnswer(BaseModel):
    """A command of an operator that was recorded."""

    cut: int
    command: str
    """pause, resume, promote or rebuild."""
    learner: str | None
    """The learner that was promoted; null for the other commands."""
    by: str
    """Name of the key with which it was given; anonymous without keys."""
    at: float
    """When it was given, as Unix time in seconds."""


class ModelAnswer(BaseModel):
    """The served model."""

    name: str
    """In the keys of its log and its folder of checkpoints."""
    model: str
    task: str
    """Classes are predicted (multiclass or binary), or numbers (regression, or quantile with its
    quantiles)."""
    inputs: str
    """rows or features: the field of a request that holds the examples."""
    model_version: int
    examples_learned: int
    position: str
    """Progress in the log: an entry's id, with ``+k`` if only its first k examples are learned."""
    optimizer: str
    hyperparameters: dict[str, Any]
    device: str
    role: str
    condition: str
    """starting, standby, replaying, learning, paused, waiting (for the log) or halted."""
    reason: str
    promoted: str
    """Name of the shadow that was promoted and answers; empty if the learner does with which the
    model began, which is called ``original`` otherwise."""
    commands: list[OrderedAnswer]
    """The newest commands of operators, in order."""
    accuracy: Finite
    """Prequential accuracy over all examples. Where numbers are predicted, the share of examples to
    which the prediction was nearer than the mean, or the quantiles, of the numbers before."""
    rolling_accuracy: Finite
    below_floors: list[str]
    """Where the model is worse than a floor over the last 1,000 examples, in words."""
    scores: dict[str, dict[str, Window]]
    """Scores of all learners and floors, about a second old: by learner, then by window."""
    numbers: dict[str, dict[str, dict[str, float]]]
    """Scores of predicted numbers, without those that are not defined: by learner or floor, then
    by window; `scores` is empty then."""
    questions: QuestionsAnswer | None
    """Null if nothing was asked with ids."""
    classes: list[str]
    """The first 100 classes, as ``by_class`` has them."""
    by_class: dict[str, ClassesAnswer]
    """The served model by window."""


class TensorAnswer(BaseModel):
    """Funnel's scale and gains of one tensor, and its last step."""

    scale: float
    step_size: float
    """Learning rate in effect, η s."""
    gain_quantiles: dict[str, Finite]
    gain_at_bound: dict[str, float]
    """Shares of the gains at the lower and at the upper bound."""
    alignment: float
    gradient_norm: Finite
    update_norm: Finite


class OptimizerAnswer(BaseModel):
    """The optimizer, as of about a second ago."""

    optimizer: str
    model_version: int
    tensors: dict[str, TensorAnswer]
    """Weighted means over the experts if the optimizer is a pool."""
    expert_weights: dict[str, float]
    """Weights of the pool's experts; empty without a pool."""
    family_weights: dict[str, float]
    """How much of the answer each family has; empty unless the model is auto."""


class CheckpointAnswer(BaseModel):
    """A checkpoint on disk."""

    model_version: int
    position: str
    bytes: int
    sha256: str
    """Digest of the state alone: equal states have equal digests."""


@router.get("/model")
async def model(model: Running) -> ModelAnswer:
    """Show which model is served and how far it has learned."""
    settings, status = model.settings, model.status
    scores = status.scores
    return ModelAnswer(
        name=settings.called,
        model=settings.model,
        task=model.spec.task,
        inputs=model.inputs,
        model_version=status.version,
        examples_learned=status.examples,
        position=str(status.progress.position),
        optimizer=settings.optimizer,
        hyperparameters={
            **status.optimizer,
            "loss_guard": status.hyperparameters.loss_guard,
            "shadow": list(status.hyperparameters.shadow),
            "class_weights": status.hyperparameters.class_weights,
            "hidden": list(model.spec.hidden),
            **settings.model_dump(include=SHOWN),
            **_sizes(model),
        },
        device=model.device,
        role=status.shown_role,
        condition=status.condition,
        reason=status.reason,
        promoted=status.promoted,
        commands=[
            OrderedAnswer(
                cut=c.cut,
                command=c.name,
                learner=c.order.learner if isinstance(c.order, Promote) else None,
                by=c.order.by,
                at=c.order.at / 1000,
            )
            for c in status.commands
        ],
        accuracy=scores.accuracy if scores else math.nan,
        rolling_accuracy=scores.rolling_accuracy if scores else math.nan,
        questions=_questions(status.labels),
        **_scores(status.statistics),
    )


def _questions(labels: LabelStatus) -> QuestionsAnswer | None:
    """Return what is known of questions; None if there are none."""
    if not (labels.open_bytes or any(labels.results.values())):
        return None
    return QuestionsAnswer(
        given_accuracy=labels.given_accuracy,
        rolling_given_accuracy=labels.rolling_given_accuracy,
        coverage=labels.coverage,
        delay_seconds=labels.delay_seconds,
        open_questions=labels.open_questions,
        oldest_seconds=labels.oldest_seconds,
        results={str(result): n for result, n in labels.results.items()},
    )


def _scores(statistics: Statistics | None) -> dict[str, Any]:
    """Return what is known of all learners and floors."""
    if statistics is None:
        return {"below_floors": [], "scores": {}, "numbers": {}, "classes": [], "by_class": {}}
    if numbers := statistics.numbers():
        return {
            "below_floors": statistics.below_floors(),
            "scores": {},
            "numbers": {
                name: {window: own.scores() for window, own in summary.windows.items()}
                for name, summary in numbers.items()
            },
            "classes": [],
            "by_class": {},
        }
    windows = statistics.served.scores.windows
    count = min(max(len(one.recall) for one in windows.values()), MAX_CLASSES)
    names = statistics.labels or tuple(map(str, range(count)))
    return {
        "below_floors": statistics.below_floors(),
        "scores": {
            name: {window: Window.model_validate(own) for window, own in summary.windows.items()}
            for name, summary in statistics.scores().items()
        },
        "numbers": {},
        "classes": names[:count],
        "by_class": {
            window: ClassesAnswer(
                recall=list(own.recall[:count]),
                precision=list(own.precision[:count]),
                confusion=[list(row) for row in own.confusion],
                calibration=_curve(statistics, SERVED, window),
                calibrated=_curve(statistics, CALIBRATED, window),
            )
            for window, own in windows.items()
        },
    }


def _curve(statistics: Statistics, name: str, window: str) -> list[CalibrationAnswer]:
    """Return a calibration curve; empty if there is none of this name."""
    points = statistics.calibrations(window).get(name, ())
    return list(map(CalibrationAnswer.model_validate, points))


def _sizes(model: Model) -> dict[str, int]:
    """Return the sizes of a model; those of rows grow with its schema. Numbers have no classes."""
    if (shape := model.spec.shape) is not None:
        features, classes = shape
        return {"features": features, "classes": classes}
    schema = model.schema
    labels = 0 if model.spec.predicts.is_numeric else len(schema.labels)
    return {"features": len(schema.columns), "classes": labels}


@router.get(
    "/model/export",
    response_class=Response,
    responses={200: {"content": {TYPE: {}}}, 409: {"model": ErrorBody}},
)
async def export(model: Running) -> Response:
    """Return the model that answers now as safetensors; `funnel export` makes ONNX of it."""
    try:
        raw = await asyncio.to_thread(model.exported)
    except ExportError as error:
        raise HTTPError(409, "not_exportable", str(error)) from error
    disposition = f'attachment; filename="{model.settings.model}.safetensors"'
    return Response(raw, media_type=TYPE, headers={"Content-Disposition": disposition})


@router.get("/optimizer", response_model=OptimizerAnswer)
async def optimizer(model: Running) -> dict[str, object]:
    """Show scale, gains, alignment and norms of every tensor."""
    status = model.status
    statistics = status.statistics
    return {
        "optimizer": model.settings.optimizer,
        "model_version": statistics.version if statistics else status.version,
        "tensors": statistics.served.tensors if statistics else {},
        "expert_weights": statistics.served.expert_weights if statistics else {},
        "family_weights": statistics.served.family_weights if statistics else {},
    }


@router.post("/checkpoint", status_code=201)
async def checkpoint(model: Deciding) -> CheckpointAnswer:
    """Write a checkpoint of the current state."""
    try:
        info = await asyncio.wrap_future(model.trainer.checkpoint())
    except OSError as error:
        raise unavailable(
            "checkpoint_failed", f"the checkpoint was not written: {error}"
        ) from error
    except Stopped as error:
        code = CODES.get(model.status.condition, "learning_halted")
        raise unavailable(code, str(error)) from error
    return CheckpointAnswer(
        model_version=info.version,
        position=str(info.progress.position),
        bytes=info.bytes,
        sha256=info.sha256,
    )
