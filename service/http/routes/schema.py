"""``GET /schema``, ``GET /features``: the columns of a model of rows, and what it has learned."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.http.dependencies import Running
from service.http.errors import ErrorBody, HTTPError
from service.model import Model
from service.monitoring.columns import ColumnDrift
from service.monitoring.features import (
    Learned,
    UnreadableModelError,
    Weights,
    learned,
    strongest,
)
from service.monitoring.status import Role
from streams.rows.names import answered

READ_SECONDS = 2.0
"""Longest wait for a pause between batches."""

router = APIRouter(responses={s: {"model": ErrorBody} for s in (401, 403, 404, 503)})


class ColumnAnswer(BaseModel):
    """A column."""

    name: str
    kind: str | None
    """number, category, time, text or bool; null until a row has a value in it."""
    missing_ratio: float
    """Share of the rows learned since the column was added that have no usable value in it."""


class SchemaAnswer(BaseModel):
    """The schema of rows; columns and labels are only ever added, at the end."""

    version: int
    """Number of changes so far."""
    label: str
    """The column of the labels in CSV and Arrow."""
    columns: list[ColumnAnswer]
    labels: list[bool | int | float | str]
    new_columns: str
    """add, ignore or reject."""
    new_labels: str
    """grow, other or reject."""
    max_classes: int
    crosses: list[list[str]]


@router.get("/schema")
async def schema(model: Running) -> SchemaAnswer:
    """Show the schema of a model of rows; 404 if the model takes dense features."""
    _check_named(model)
    found, status = model.schema, model.status
    missing = status.statistics.missing if status.statistics else {}
    return SchemaAnswer(
        version=found.version,
        label=found.label,
        columns=[
            ColumnAnswer(
                name=column.name,
                kind=column.kind.value if column.kind else None,
                missing_ratio=missing.get(column.name, 0.0),
            )
            for column in found.columns
        ],
        labels=list(map(answered, found.labels)),
        new_columns=found.new_columns,
        new_labels=found.new_labels,
        max_classes=found.max_classes,
        crosses=[list(pair) for pair in found.crosses],
    )


class FeatureAnswer(BaseModel):
    """The weights that the model has learned for one feature."""

    name: str
    """A column, ``column=value``, or a cross of two."""
    weights: dict[str, float]
    """By label, relative to the mean of the labels, in nats for one unit: a standard deviation of a
    number, the presence of a value."""
    gain: float | None
    """The factor of its weights' steps now: the geometric mean over the labels, and over
    the experts by their weights. null unless this process learns."""
    count: int | None
    """Rows learned that had it. null unless this process learns."""


class DriftOfColumn(BaseModel):
    """A column in the rows learned recently, and before; null where nothing is known yet."""

    name: str
    kind: str | None
    missing: float | None
    """Share of the recent rows without a usable value."""
    missing_before: float | None
    new_keys: float | None
    """Keys per recent row that were new; null without a table."""
    new_keys_before: float | None
    shift: float | None
    """Standard deviations from the mean before to the recent one; of numbers that are standardized,
    otherwise null."""
    is_drifting: bool
    """True while a number of it differs from before by more than chance explains; `GET /drift`
    names which."""


class FeaturesAnswer(BaseModel):
    """The features with the largest weights, the largest first."""

    model_version: int
    named_keys: int
    """Keys whose names this process knows: it notes those of recent batches."""
    features: list[FeatureAnswer]
    """Empty for a model with hidden layers, whose weights belong to no feature."""
    columns: list[DriftOfColumn]
    """In the order of the schema."""


async def _learned(model: Model, found: list[Weights]) -> list[Learned] | None:
    """Return how features are learned; None if that cannot be read off the state now."""
    if model.status.role is not Role.LEARNER:
        return None
    reading = asyncio.wrap_future(model.trainer.read(partial(learned, features=found)))
    try:
        return await asyncio.wait_for(reading, READ_SECONDS)
    except TimeoutError:  # a batch takes long, or the trainer has just ended
        return None


@router.get("/features", responses={422: {"model": ErrorBody}})
async def features(
    model: Running,
    top: Annotated[int, Query(ge=1, le=1_000, description="number of features")] = 50,
) -> FeaturesAnswer:
    """Show the features that matter most now, and which columns drift.

    The weights are means over the pool's experts.
    """
    _check_named(model)
    snapshot, names = model.trainer.snapshot, model.trainer.feature_names.read()
    try:
        found = await asyncio.to_thread(strongest, snapshot, names, top)
    except UnreadableModelError:
        found = []
    details: Sequence[Learned | None] | None = await _learned(model, found)
    if details is None:
        details = [None] * len(found)
    drift = model.trainer.columns.read()
    return FeaturesAnswer(
        model_version=snapshot.version,
        named_keys=len(names),
        features=[
            FeatureAnswer(
                name=one.name,
                weights=one.weights,
                gain=None if how is None else how.gain,
                count=None if how is None else how.count,
            )
            for one, how in zip(found, details, strict=True)
        ],
        columns=[
            DriftOfColumn(name=column.name, kind=column.kind, **_shown(drift[column.name]))
            for column in model.schema.columns
            if column.name in drift
        ],
    )


def _shown(drift: ColumnDrift) -> dict[str, Any]:
    fields = {name: value for name, value in vars(drift).items() if name != "changes"}
    return fields | {"is_drifting": drift.is_drifting}


def _check_named(model: Model) -> None:
    """Refuse a model of dense features."""
    if model.spec.shape is not None:
        if model.is_open:
            message = "nothing is learned yet; the first examples decide between rows and features"
            raise HTTPError(404, "undecided", message)
        message = "this model takes dense features; rows need a service with another --data-dir"
        raise HTTPError(404, "no_schema", message)
