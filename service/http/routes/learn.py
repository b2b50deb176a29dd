"""``POST /learn``: append labelled examples to the log."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from service.http.body import Bodies
from service.http.codecs.codec import Examples
from service.http.codecs.rows import Named, Packed
from service.http.codecs.table import LEARN, described
from service.http.dependencies import AnyService, BodiesOf, Informed, WaitsOf
from service.http.errors import RETRY_SECONDS, ErrorBody, HTTPError, unavailable
from service.log.backlog import BacklogFullError
from service.log.entries import inputs_of
from service.log.errors import LogFullError, LogUnavailable, Stopped
from service.log.intake import KeyInFlightError, KeyReusedError, is_small
from service.log.keys import Field, Inputs
from service.log.position import EntryId
from service.model import Model
from service.service import Service
from service.settings import INPUTS, TASK
from service.trainer.choice import SHOWN, are_numbers, kind_of
from service.trainer.waiters import Applied
from streams.batch import InvalidBatchError, check, decode
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.labels import has_fractions
from streams.rows.numbers import Numbers
from streams.rows.rows import Rows

WAIT_SECONDS = 60.0
MAX_KEY = 255
"""Characters of an Idempotency-Key."""
CELLS_AT_ONCE = 20_000
"""Cells of rows that are checked and encoded on the event loop, in about a millisecond."""
OF_NUMBERS = 16
"""Cells of an array of numbers that cost as much as one cell of another kind."""

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
    model: Informed,
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
            max_length=MAX_KEY,
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
    check_backlog(model)
    is_keyed = idempotency_key is not None
    async with _examples(request, bodies, model, label, weight, is_keyed) as examples:
        count = len(examples)
        changes_schema = isinstance(examples, Examples) and examples.changes_schema
        entry = await append(model, examples, idempotency_key)
        del examples  # their memory is not held while they are waited for
    accepted = {"accepted": count, "entry": str(entry)}
    if not (wait or changes_schema):
        return JSONResponse(accepted, 202)
    with waits.one_more(model.status) as reason:
        learned = None if reason else await applied(service, model, entry)
    if learned is None or not wait:
        return JSONResponse(accepted | ({"reason": reason} if reason else {}), 202)
    scores = {"accuracy": learned.accuracy, "loss": learned.loss}
    return JSONResponse(accepted | {"model_version": learned.model_version} | scores, 200)


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

    Rows are small ones, which change no schema and may share an entry.
    """
    shape, is_open = model.spec.shape, model.is_open
    named, may_share = Named(label, weight, model.schema.label), not (is_keyed or is_open)
    opens = model.settings.opens if is_open else frozenset()
    dense = shape and (shape[0], 0 if TASK in opens else shape[1])
    found: AbstractAsyncContextManager[Examples | Rows | Packed]
    if dense is None:
        found = bodies.labelled_rows(request, named)
    elif INPUTS in opens:
        found = bodies.labelled_either(request, dense, named)
    else:
        found = bodies.examples(request, dense, model.status.expects_bytes)
    async with found as examples:
        if isinstance(examples, Examples):
            _refuse_columns(label=label, weight=weight)
            fitting: Examples | Rows = examples
        elif isinstance(examples, Packed) and _takes(model, examples):
            fitting = Examples(len(examples), examples.payload, Field.ARROW)
        elif isinstance(examples, Rows) and _effort(examples) <= CELLS_AT_ONCE:
            fitting = _checked(model, named, examples, may_share)
        else:
            fitting = await asyncio.to_thread(_checked, model, named, examples, may_share)
        if is_open:
            assert isinstance(fitting, Examples), "rows of an open model share no entry"
            await _claim(model, fitting)
        yield fitting


def _effort(rows: Rows) -> int:
    """Return the number of cells, less those that cost next to nothing."""
    cells = rows.cells
    for chunk in rows.chunks:
        if isinstance(chunk.own, Numbers):
            cells -= chunk.own.values.size * (OF_NUMBERS - 1) // OF_NUMBERS
    return cells


def _refuse_columns(**queries: str | None) -> None:
    """Refuse the queries that name columns, which dense features do not have."""
    for name, query in queries.items():
        if query is not None:
            message = f"the query {name} is for rows; this model takes dense features"
            raise HTTPError(422, "invalid", message, name)


async def _claim(model: Model, examples: Examples) -> None:
    """Let the log be of these examples' kind, unless others have come first.

    Raises:
        HTTPError: 422 they were of another kind, or a class is outside its range; 503 the log
            cannot be reached.
    """
    own = inputs_of({examples.field.encode(): examples.payload})
    shape, opens = model.spec.shape, model.settings.opens
    if shape is not None and examples.field == Field.BATCH and own == Inputs.FEATURES:
        try:
            check(decode(examples.payload), *shape)
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
    try:
        claimed = await model.intake.claim(own)
    except LogUnavailable as error:
        message = f"{error}. It does not hold the examples"
        raise unavailable("log_unavailable", message) from error
    if (INPUTS in opens and kind_of(claimed) != kind_of(own)) or (
        TASK in opens and are_numbers(claimed) != are_numbers(own)
    ):
        came, sent = SHOWN[claimed], SHOWN[own]
        message = f"{came} came first, and this service learns those; it takes no {sent}"
        raise HTTPError(422, "invalid", message, kind_of(own))


def _takes(model: Model, rows: Packed) -> bool:
    """Return whether rows fit the schema, whatever their values."""
    is_known = rows.labels is not None and not model.is_open
    return is_known and model.schema.takes(rows.columns, rows.labels or ())


def _checked(model: Model, named: Named, found: Rows | Packed, may_share: bool) -> Examples | Rows:
    """Check rows against the schema; return them as the log takes them.

    Args:
        model: that will learn them.
        named: the columns of labels and weights.
        found: the rows.
        may_share: whether they may share an entry.

    Raises:
        HTTPError: 422 a row cannot be learned.
    """
    schema = model.schema
    try:
        rows = from_bytes(found.payload) if isinstance(found, Packed) else named.apart(found)
        if model.is_open and TASK in model.settings.opens:
            schema = replace(schema, numeric_labels=has_fractions(rows))
        schema.check(rows)
    except InvalidBatchError as error:
        raise HTTPError(422, "invalid", str(error), error.field, error.index) from error
    changes = bool(schema.changes_for(rows))
    if may_share and not changes and is_small(rows):
        return rows
    payload = found.payload if isinstance(found, Packed) else to_bytes(rows)
    return Examples(len(rows), payload, Field.ARROW, changes)


def check_backlog(model: Model) -> None:
    """Refuse a request before its body is read; `Intake.append` checks again."""
    try:
        model.intake.backlog.check()
    except BacklogFullError as error:
        raise _backlog_full(error) from error


def _backlog_full(error: BacklogFullError) -> HTTPError:
    message = f"{error}; send these again later"
    return HTTPError(429, "backlog_full", message, retry=RETRY_SECONDS)


async def append(model: Model, examples: Examples | Rows, key: str | None) -> EntryId:
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


async def applied(service: Service, model: Model, entry: EntryId) -> Applied | None:
    """Wait until an entry is learned; None if that takes too long or learning ends first."""
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    learned = asyncio.wrap_future(model.trainer.applied(entry))
                    return await service.unless_stopped(learned)
                except Stopped:
                    if (newest := await service.newest(model)) is model:
                        return None
                    model = newest
    except (TimeoutError, Stopped):
        return None
