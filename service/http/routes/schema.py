"""``GET /schema``, ``GET /features``: the columns of a model of rows, and what it has learned."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from service.http.dependencies import Running
from service.http.errors import ErrorBody, HTTPError
from service.model import Model
from service.monitoring.features import UnreadableModelError, strongest
from streams.rows.names import answered

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
    labels: list[int | str]
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


class FeaturesAnswer(BaseModel):
    """The features with the largest weights, the largest first."""

    model_version: int
    named_keys: int
    """Keys whose names this process knows: it notes those of recent batches."""
    features: list[FeatureAnswer]


@router.get("/features", responses={422: {"model": ErrorBody}})
async def features(
    model: Running,
    top: Annotated[int, Query(ge=1, le=1_000, description="number of features")] = 50,
) -> FeaturesAnswer:
    """Show the features that matter most now; the weights are means over the pool's experts."""
    _check_named(model)
    snapshot, names = model.trainer.snapshot, model.trainer.feature_names.read()
    try:
        found = await asyncio.to_thread(strongest, snapshot, names, top)
    except UnreadableModelError as error:
        raise HTTPError(422, "no_explanation", str(error)) from error
    return FeaturesAnswer(
        model_version=snapshot.version,
        named_keys=len(names),
        features=[FeatureAnswer(name=one.name, weights=one.weights) for one in found],
    )


def _check_named(model: Model) -> None:
    """Refuse a model of dense features."""
    if model.spec.shape is not None:
        raise HTTPError(
            404, "no_schema", "this model takes dense features; start one with --schema auto"
        )
