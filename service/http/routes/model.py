"""``GET /model``, ``GET /optimizer``, ``POST /checkpoint``: what the model is, and keeping it."""

import asyncio
import math
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict

from funnel.telemetry import QUANTILES
from service.http.dependencies import Running
from service.http.errors import ErrorBody, unavailable
from service.log.errors import Stopped

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 503)})


class ModelAnswer(BaseModel):
    """The served model."""

    model_config = ConfigDict(protected_namespaces=())

    model: str
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
    accuracy: float | None
    """Prequential, of all examples."""
    rolling_accuracy: float | None


class TensorAnswer(BaseModel):
    """Funnel's view of one tensor; see README for the letters."""

    scale: float
    step_size: float
    """Learning rate in effect, η s."""
    gain_quantiles: dict[str, float | None]
    gain_at_bound: dict[str, float]
    """Share of the gains at the lower and at the upper bound."""
    alignment: float
    gradient_norm: float | None
    update_norm: float | None


class OptimizerAnswer(BaseModel):
    """The optimizer, as of about a second ago."""

    model_config = ConfigDict(protected_namespaces=())

    optimizer: str
    model_version: int
    tensors: dict[str, TensorAnswer]
    """Of a pool, of its experts together, weighted."""
    expert_weights: dict[str, float]
    """Of a pool; else empty."""


class CheckpointAnswer(BaseModel):
    """A checkpoint that is on disk."""

    model_config = ConfigDict(protected_namespaces=())

    model_version: int
    position: str
    bytes: int
    sha256: str
    """Digest of the state alone: equal states, equal digests."""


@router.get("/model")
async def model(service: Running) -> ModelAnswer:
    """Say what is served and how far it is."""
    learner, settings = service.learner, service.settings
    assert learner is not None
    scores = learner.status.statistics.served.scores if learner.status.statistics else None
    rates = learner.status.hyperparameters
    return ModelAnswer(
        model=settings.model,
        model_version=learner.status.version,
        examples_learned=learner.status.examples,
        position=str(learner.status.progress.position),
        optimizer=settings.optimizer,
        hyperparameters={
            **learner.status.optimizer,
            "loss_guard": rates.loss_guard,
            "shadow": list(rates.shadow),
            "batch_size": settings.batch_size,
            "max_wait_ms": settings.max_wait_ms,
            "standardize": settings.standardize,
            "features": settings.features,
            "classes": settings.classes,
            "hidden": list(settings.spec.hidden),
            "seed": settings.seed,
        },
        device=str(settings.torch_device()),
        role=learner.status.role,
        condition=learner.status.condition,
        reason=learner.status.reason,
        accuracy=_number(scores.accuracy) if scores else None,
        rolling_accuracy=_number(scores.rolling_accuracy) if scores else None,
    )


@router.get("/optimizer")
async def optimizer(service: Running) -> OptimizerAnswer:
    """Show scale, gains, alignment and norms of every tensor."""
    learner = service.learner
    assert learner is not None
    statistics = learner.status.statistics
    tensors = statistics.served.tensors if statistics else {}
    return OptimizerAnswer(
        optimizer=service.settings.optimizer,
        model_version=statistics.version if statistics else learner.status.version,
        tensors={
            name: TensorAnswer(
                scale=t.scale,
                step_size=t.step_size,
                gain_quantiles={
                    f"{q:g}": _number(value)
                    for q, value in zip(QUANTILES, t.gain_quantiles, strict=True)
                },
                gain_at_bound={"lower": t.gain_at_lower_bound, "upper": t.gain_at_upper_bound},
                alignment=t.alignment,
                gradient_norm=_number(t.gradient_norm),
                update_norm=_number(t.update_norm),
            )
            for name, t in tensors.items()
        },
        expert_weights=statistics.served.expert_weights if statistics else {},
    )


@router.post("/checkpoint", status_code=201)
async def checkpoint(service: Running) -> CheckpointAnswer:
    """Write a checkpoint of the state as it is now."""
    assert service.learner is not None
    if service.learner.status.condition == "standby":
        raise unavailable("standby", "another service learns; ask that one for a checkpoint")
    if service.learner.status.condition == "waiting":
        raise unavailable(
            "log_unavailable", f"no checkpoint is written: {service.learner.status.reason}"
        )
    try:
        info = await asyncio.wrap_future(service.learner.checkpoint())
    except OSError as error:
        raise unavailable(
            "checkpoint_failed", f"the checkpoint was not written: {error}"
        ) from error
    except Stopped as error:
        code = (
            "log_unavailable"
            if service.learner.status.condition == "waiting"
            else "learning_halted"
        )
        raise unavailable(code, str(error)) from error
    return CheckpointAnswer(
        model_version=info.version,
        position=str(info.progress.position),
        bytes=info.bytes,
        sha256=info.sha256,
    )


def _number(value: float) -> float | None:
    """Return the value, or None for what JSON cannot say."""
    return value if math.isfinite(value) else None
