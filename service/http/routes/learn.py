"""``POST /learn``: labelled examples into the log."""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from service.http.body import (
    JSON,
    NDJSON,
    SAFETENSORS,
    check_number,
    content_type,
    decoded,
    read_body,
)
from service.http.dependencies import Running
from service.http.errors import RETRY_SECONDS, ErrorBody, HTTPError, unavailable
from service.http.json_process import translate
from service.log.errors import LogUnavailable, Stopped
from service.log.intake import Intake, KeyInFlightError, KeyReusedError
from service.log.position import EntryId
from service.service import Service
from service.trainer.trainer import Trainer
from service.trainer.waiters import Applied
from streams.batch import check, decode

WAIT_SECONDS = 60.0

router = APIRouter()


class Examples(BaseModel):
    """Labelled examples."""

    features: list[list[float]] = Field(examples=[[[0.0, 0.5, 1.0]]])
    labels: list[int] = Field(examples=[[2]])


class Accepted(BaseModel):
    """The examples are in the log."""

    accepted: int
    """Number of examples."""
    entry: str
    """Id of the entry that holds them."""


class AppliedAnswer(Accepted):
    """The examples are learned."""

    model_version: int
    """Of the first model that has learned all of them."""
    accuracy: float | None
    """Of the batch in which the last of them fell, before it was learned; null if that batch was
    left out because it is not finite."""
    loss: float | None
    """Cross-entropy of the same, in nats."""


BODY: dict[str, Any] = {
    "required": True,
    "content": {
        JSON: {"schema": Examples.model_json_schema()},
        NDJSON: {
            "schema": {"type": "string"},
            "example": '{"features": [0.0, 0.5, 1.0], "label": 2}\n',
        },
        SAFETENSORS: {
            "schema": {
                "type": "string",
                "format": "binary",
                "description": "safetensors: features [n, d] uint8, float16 or float32; "
                "labels [n] int64",
            }
        },
    },
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody} for status in (401, 403, 408, 409, 413, 415, 422, 429, 503)
}


@router.post(
    "/learn",
    status_code=202,
    response_model=Accepted,
    responses={200: {"model": AppliedAnswer}, **ERRORS},
    openapi_extra={"requestBody": BODY},
)
async def learn(
    request: Request,
    service: Running,
    wait: Annotated[
        Literal["applied"] | None, Query(description="answer when the examples are learned")
    ] = None,
    idempotency_key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            min_length=1,
            max_length=255,
            description="makes a retry within an hour safe",
        ),
    ] = None,
) -> JSONResponse:
    """Append labelled examples to the log.

    202 means that they are in the log, as durable as the operator chose. With `wait=applied` the
    answer comes when they are learned (200), or after a minute or at shutdown without that (202).
    """
    intake = admit(service)
    kind = content_type(request, JSON, NDJSON, SAFETENSORS)
    body = await read_body(request, service.settings.max_body_bytes)
    spec = service.settings.spec

    def read(body: bytes) -> tuple[int, bytes]:
        payload = body if kind == SAFETENSORS else translate(body, kind == NDJSON, spec.features)
        batch = decode(payload)
        check_number(len(batch))
        check(batch, spec.features, spec.classes)
        return len(batch), payload

    examples, payload = await decoded(read, body, kind)
    try:
        entry = await intake.append(payload, examples, idempotency_key)
    except LogUnavailable as error:
        raise unavailable(
            "log_unavailable", f"{error}. It may hold the examples; with an Idempotency-Key a "
            "retry is safe",
        ) from error  # fmt: skip
    except KeyReusedError as error:
        raise HTTPError(422, "key_reused", str(error), field="Idempotency-Key") from error
    except KeyInFlightError as error:
        raise HTTPError(409, "key_in_flight", str(error), retry=RETRY_SECONDS) from error
    accepted = Accepted(accepted=examples, entry=str(entry))
    if wait is None or service.learner is None:
        return JSONResponse(accepted.model_dump(), 202)
    applied = await _applied(service, service.learner, entry)
    if applied is None:
        return JSONResponse(accepted.model_dump(), 202)
    answer = AppliedAnswer(
        accepted=examples,
        entry=str(entry),
        model_version=applied.model_version,
        accuracy=applied.accuracy,
        loss=applied.loss,
    )
    return JSONResponse(answer.model_dump(), 200)


async def _applied(service: Service, learner: Trainer, entry: EntryId) -> Applied | None:
    """Wait until an entry is learned; None if that takes too long or learning ends first."""
    future = asyncio.wrap_future(learner.applied(entry))
    draining = asyncio.ensure_future(service.draining.wait())
    done, _ = await asyncio.wait(
        (future, draining), timeout=WAIT_SECONDS, return_when=asyncio.FIRST_COMPLETED
    )
    draining.cancel()
    if future not in done:
        future.cancel()
        return None
    try:
        return future.result()
    except Stopped:
        return None


def admit(service: Service) -> Intake:
    """Return the intake, if it may take examples now.

    Raises:
        HTTPError: 503 the log is not there; 429 too many examples wait already.
    """
    learner = service.learner
    if service.intake is None or learner is None:
        raise unavailable("starting", "the service is starting")
    codes = {"waiting": "log_unavailable", "halted": "learning_halted", "standby": "standby"}
    if code := codes.get(learner.status.condition):
        raise unavailable(code, f"no examples are taken: {learner.status.reason}")
    if (backlog := service.backlog()) >= service.settings.max_backlog:
        raise HTTPError(
            429,
            "backlog_full",
            f"about {backlog} examples wait to be learned already (FUNNEL_MAX_BACKLOG is "
            f"{service.settings.max_backlog})",
            retry=RETRY_SECONDS,
        )
    return service.intake
