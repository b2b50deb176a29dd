"""``GET /model``, ``GET /optimizer``, ``POST /checkpoint``: the model, and checkpoints of it."""

import asyncio
import math
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator

from service.http.dependencies import CODES, Learning, Running
from service.http.errors import ErrorBody, unavailable
from service.log.errors import Stopped
from service.model import Model

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})

SHOWN = {"batch_size", "max_wait_ms", "standardize", "features", "classes", "seed"}
"""Settings among the hyperparameters of ``GET /model``."""
Finite = Annotated[
    float | None, BeforeValidator(lambda value: value if math.isfinite(value) else None)
]
"""A number; null if it is not finite, which JSON cannot express."""


class ModelAnswer(BaseModel):
    """The served model."""

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
    """starting, standby, replaying, learning, waiting (for the log) or halted."""
    reason: str
    accuracy: Finite
    """Prequential accuracy over all examples. Where numbers are predicted, the share of examples to
    which the prediction was nearer than the mean, or the quantiles, of the numbers before."""
    rolling_accuracy: Finite


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
            **({} if model.spec.shape else _sizes(model)),
            **({"classes": 0} if model.spec.predicts.is_numeric else {}),
        },
        device=model.device,
        role=status.role,
        condition=status.condition,
        reason=status.reason,
        accuracy=scores.accuracy if scores else math.nan,
        rolling_accuracy=scores.rolling_accuracy if scores else math.nan,
    )


def _sizes(model: Model) -> dict[str, int]:
    """Return the sizes of a model of rows, which grow with its schema."""
    schema = model.schema
    return {"features": len(schema.columns), "classes": len(schema.labels)}


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
    }


@router.post("/checkpoint", status_code=201)
async def checkpoint(model: Learning) -> CheckpointAnswer:
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
