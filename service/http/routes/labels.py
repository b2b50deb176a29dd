"""``POST /labels``: append labels of questions that were asked with ids to the log."""

import asyncio
from typing import Annotated, Literal

import pyarrow as pa
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from service.http.codecs.codec import Examples
from service.http.codecs.labels import LABELS
from service.http.codecs.table import described
from service.http.dependencies import AnyService, BodiesOf, Informed, WaitsOf
from service.http.errors import ErrorBody, HTTPError, unavailable
from service.http.routes.learn import Accepted, InLog, append, applied, check_backlog
from service.log.keys import Field
from service.log.labels import Labels, Result
from service.model import Model
from streams.batch import InvalidBatchError
from streams.rows.labels import label_texts
from streams.rows.rows import Chunk, Rows

NO_QUESTION = "nothing is learned yet, so that no question waits"
FEW = 1_000
"""Labels that are checked and encoded on the event loop."""

router = APIRouter()


class Results(InLog):
    """The labels are decided on."""

    model_version: int
    """The first version after that; it has learned those that were joined."""
    results: list[Result]
    """Result of each label, in their order."""


@router.post(
    "/labels",
    status_code=202,
    response_model=Accepted,
    responses={
        200: {"model": Results},
        **{s: {"model": ErrorBody} for s in (401, 403, 408, 413, 415, 422, 429, 503)},
    },
    openapi_extra=described(LABELS),
)
async def labels(
    request: Request,
    service: AnyService,
    bodies: BodiesOf,
    waits: WaitsOf,
    model: Informed,
    wait: Annotated[
        Literal["applied"] | None, Query(description="answer when the labels are decided on")
    ] = None,
) -> JSONResponse:
    """Append labels of questions to the log.

    202 means that they are in the log. With `wait=applied` the answer says what became of each
    (200); after a minute, at shutdown, or while too many others wait, it is 202.
    """
    check_backlog(model)
    shape = model.spec.shape
    if model.is_open:
        raise unavailable("starting", NO_QUESTION)
    async with bodies.labels(request, shape) as found:
        if len(found) <= FEW:
            examples = _checked(model, found)
        else:
            examples = await asyncio.to_thread(_checked, model, found)
        entry = await append(model, examples, None)
    accepted = {"accepted": examples.count, "entry": str(entry)}
    if not wait:
        return JSONResponse(accepted, 202)
    with waits.one_more(model.status) as reason:
        decided = None if reason else await applied(service, model, entry)
    if decided is None or len(decided.results) != examples.count:
        return JSONResponse(accepted | ({"reason": reason} if reason else {}), 202)
    version, results = decided.model_version, [*decided.results]
    return JSONResponse(accepted | {"model_version": version, "results": results}, 200)


def _checked(model: Model, labels: Labels) -> Examples:
    """Check labels against the schema of rows, if there is one; return them as the log takes them.

    Raises:
        HTTPError: 422 a label cannot be learned; 503 nothing is learned yet.
    """
    schema, n = model.schema, len(labels)
    if model.spec.shape is None:
        if not schema.columns:
            raise unavailable("starting", NO_QUESTION)
        columns = pa.RecordBatch.from_arrays([pa.nulls(n)], [schema.columns[0].name])
        try:
            schema.check(Rows((Chunk(columns, label_texts(labels.labels, n)),)))
        except InvalidBatchError as error:
            raise HTTPError(422, "invalid", str(error), "labels", error.index) from error
    return Examples(n, labels.to_json(), Field.LABELS)
