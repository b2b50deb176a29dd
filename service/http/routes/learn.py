"""``POST /learn``: append labelled examples to the log."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Literal, TypeVar

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.fold.schema.schema import Schema
from service.http.body import Bodies
from service.http.codecs.codec import Examples
from service.http.codecs.rows import Named, Packed
from service.http.codecs.table import LEARN, described
from service.http.dependencies import AnyService, BodiesOf, Learning, WaitsOf
from service.http.errors import RETRY_SECONDS, ErrorBody, HTTPError, unavailable
from service.log.backlog import BacklogFullError
from service.log.errors import LogFullError, LogUnavailable, Stopped
from service.log.intake import KeyInFlightError, KeyReusedError, is_small
from service.log.keys import Field
from service.log.position import EntryId
from service.model import Model
from service.service import Service
from service.trainer.waiters import Applied
from streams.batch import InvalidBatchError
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.rows import Rows

WAIT_SECONDS = 60.0
CELLS_AT_ONCE = 20_000
"""Cells of rows that are checked and encoded on the event loop, in about a millisecond."""

T = TypeVar("T", Rows, bytes)

router = APIRouter()


class InLog(BaseModel):
    """The examples are in the log."""

    accepted: int
    """Number of examples."""
    entry: str
    """Id of the entry that holds them."""


class Accepted(InLog):
    """The examples are in the log."""

    reason: str | None = None
    """Why the answer did not wait for the examples to be learned; only with `wait=applied`."""


class AppliedAnswer(InLog):
    """The examples are learned."""

    model_version: int
    """The first version that has learned the whole entry."""
    accuracy: float | None
    """Accuracy on the batch that holds the entry's last example, before it was learned; null if
    that batch was skipped because its loss or gradient is not finite."""
    loss: float | None
    """Cross-entropy on the same batch, in nats."""


@router.post(
    "/learn",
    status_code=202,
    response_model=Accepted,
    responses={
        200: {"model": AppliedAnswer},
        **{s: {"model": ErrorBody} for s in (401, 403, 408, 409, 413, 415, 422, 429, 503)},
    },
    openapi_extra=described(LEARN),
)
async def learn(
    request: Request,
    service: AnyService,
    bodies: BodiesOf,
    waits: WaitsOf,
    model: Learning,
    wait: Annotated[
        Literal["applied"] | None, Query(description="answer when the examples are learned")
    ] = None,
    label: Annotated[
        str | None, Query(max_length=256, description="column of the labels, for CSV and Arrow")
    ] = None,
    weight: Annotated[
        str | None, Query(max_length=256, description="column of the weights of rows")
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
    answer comes when they are learned (200); after a minute, at shutdown, or while too many
    others wait, it is 202. A request with rows that change the schema is answered once they have
    changed it.
    """
    _check_backlog(model)
    is_keyed = idempotency_key is not None
    async with _examples(request, bodies, model, label, weight, is_keyed) as examples:
        count = len(examples)
        changes_schema = isinstance(examples, Examples) and examples.changes_schema
        entry = await _append(model, examples, idempotency_key)
        del examples  # their memory is not held while they are waited for
    accepted = {"accepted": count, "entry": str(entry)}
    if not (wait or changes_schema):
        return JSONResponse(accepted, 202)
    with waits.one_more() as reason:
        applied = None if reason else await _applied(service, model, entry)
    if applied is None or not wait:
        return JSONResponse(accepted | ({"reason": reason} if reason else {}), 202)
    return JSONResponse(accepted | asdict(applied), 200)


@asynccontextmanager
async def _examples(
    request: Request,
    bodies: Bodies,
    model: Model,
    label: str | None,
    weight: str | None,
    is_keyed: bool,
) -> AsyncIterator[Examples | Rows]:
    """Return the examples of a request as the log takes them, whichever kind the model learns.

    Rows are small ones, which change no schema and may share an entry."""
    if (shape := model.spec.shape) is not None:
        async with bodies.examples(request, shape, model.status.expects_bytes) as examples:
            for name, query in (("label", label), ("weight", weight)):
                if query is not None:
                    message = f"the query {name} is for rows; this model takes dense features"
                    raise HTTPError(422, "invalid", message, name)
            yield examples
        return
    if not model.trainer.knows_schema:
        message = "the log is replayed, and the schema is not known yet; send these again later"
        raise unavailable("starting", message)
    named, may_share = Named(label, weight, model.schema.label), not is_keyed
    async with bodies.labelled_rows(request, named) as rows:
        schema = model.schema
        if isinstance(rows, Packed):
            if rows.labels is not None and schema.takes(rows.columns, rows.labels):
                yield Examples(len(rows), rows.payload, Field.ARROW)
            else:
                yield await asyncio.to_thread(_checked, schema, from_bytes, rows.payload, may_share)
        elif rows.cells <= CELLS_AT_ONCE:
            yield _checked(schema, named.apart, rows, may_share)
        else:
            yield await asyncio.to_thread(_checked, schema, named.apart, rows, may_share)


def _checked(
    schema: Schema, labelled: Callable[[T], Rows], found: T, may_share: bool
) -> Examples | Rows:
    """Check rows against the schema; return them as the log takes them.

    Args:
        schema: of the model.
        labelled: returns the rows with their labels.
        found: its argument.
        may_share: whether the rows may share an entry.

    Raises:
        HTTPError: 422 a row cannot be learned.
    """
    try:
        rows = labelled(found)
        schema.check(rows)
    except InvalidBatchError as error:
        raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
    changes = bool(schema.changes_for(rows))
    if may_share and not changes and is_small(rows):
        return rows
    payload = found if isinstance(found, bytes) else to_bytes(rows)
    return Examples(len(rows), payload, Field.ARROW, changes)


def _check_backlog(model: Model) -> None:
    """Refuse a request before its body is read; `Intake.append` checks again."""
    try:
        model.intake.backlog.check()
    except BacklogFullError as error:
        raise _backlog_full(error) from error


def _backlog_full(error: BacklogFullError) -> HTTPError:
    message = f"{error}; send these again later"
    return HTTPError(429, "backlog_full", message, retry=RETRY_SECONDS)


async def _append(model: Model, examples: Examples | Rows, key: str | None) -> EntryId:
    """Return the entry that holds the examples."""
    try:
        if isinstance(examples, Rows):
            return await model.intake.append_small(examples)
        return await model.intake.append(examples.payload, key, examples.count, examples.field)
    except BacklogFullError as error:
        raise _backlog_full(error) from error
    except LogFullError as error:
        raise unavailable("log_unavailable", f"{error}. The examples are not accepted") from error
    except LogUnavailable as error:
        message = f"{error}. It may hold the examples; with an Idempotency-Key a retry is safe"
        raise unavailable("log_unavailable", message) from error
    except KeyReusedError as error:
        raise HTTPError(422, "key_reused", str(error), field="Idempotency-Key") from error
    except KeyInFlightError as error:
        raise HTTPError(409, "key_in_flight", str(error), retry=RETRY_SECONDS) from error


async def _applied(service: Service, model: Model, entry: EntryId) -> Applied | None:
    """Wait until an entry is learned; None if that takes too long or learning ends first."""
    learned = asyncio.wrap_future(model.trainer.applied(entry))
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            return await service.unless_stopped(learned)
    except (TimeoutError, Stopped):
        return None
