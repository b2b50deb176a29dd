"""The answers to the requests of one call, made into one."""

from collections.abc import Sequence
from typing import NotRequired, TypedDict

import numpy as np

from streams.client.answers import (
    Explanation,
    Floats,
    Label,
    Labelled,
    Learned,
    Predictions,
    Result,
)
from streams.rows.names import answered


class AcceptedAnswer(TypedDict):
    """The answer to examples or labels."""

    accepted: int
    entry: str
    model_version: NotRequired[int]
    accuracy: NotRequired[float | None]
    loss: NotRequired[float | None]
    results: NotRequired[list[Result]]
    reason: NotRequired[str]


class PartAnswer(TypedDict):
    """A part of an answer that is explained."""

    feature: str
    nats: float


class PredictionAnswer(TypedDict):
    """The answer to examples without labels."""

    model_version: int
    labels: NotRequired[list[Label]]
    probabilities: NotRequired[list[list[float]] | list[dict[str, float]]]
    values: NotRequired[list[float]]
    std: NotRequired[list[float]]
    quantiles: NotRequired[dict[str, list[float]]]
    explanations: NotRequired[list[list[PartAnswer]]]
    effort: NotRequired[str]


def learned(parts: Sequence[AcceptedAnswer]) -> Learned:
    """Return the answer to examples that went in several requests, of which the last one waited."""
    last = parts[-1]
    return Learned(
        sum(part["accepted"] for part in parts),
        [part["entry"] for part in parts],
        last.get("model_version"),
        last.get("accuracy"),
        last.get("loss"),
        last.get("reason"),
    )


def labelled(parts: Sequence[AcceptedAnswer]) -> Labelled:
    """Return the answer to labels that went in several requests, all of which waited or none."""
    results: list[Result] | None = []
    for part in parts:
        if results is not None:
            results = [*results, *part["results"]] if "results" in part else None
    return Labelled(
        sum(part["accepted"] for part in parts),
        [part["entry"] for part in parts],
        None if results is None else parts[-1].get("model_version"),
        results,
        next((part["reason"] for part in parts if "reason" in part), None),
    )


def predictions(
    parts: Sequence[PredictionAnswer], ids: list[str | int] | None, explains: bool
) -> Predictions:
    """Return the predictions for examples that went in several requests.

    Args:
        parts: the answers, in order.
        ids: of all examples, or None.
        explains: whether there are explanations.
    """
    is_numeric = "values" in parts[0]
    explanations = [
        [Explanation(own["feature"], own["nats"]) for own in each]
        for part in parts
        for each in part.get("explanations", ())
    ]
    names = None if is_numeric else _names(parts)
    return Predictions(
        model_version=max(part["model_version"] for part in parts),
        labels=None if is_numeric else [own for part in parts for own in part.get("labels", ())],
        classes=None if names is None else _classes(names),
        probabilities=None if names is None else _probabilities(parts, names),
        values=_joined([part["values"] for part in parts if "values" in part]),
        std=_joined([part["std"] for part in parts if "std" in part]),
        quantiles=_quantiles([part["quantiles"] for part in parts if "quantiles" in part]),
        ids=ids,
        explanations=explanations if explains else None,
        is_fast=any(part.get("effort") == "fast" for part in parts),
    )


def _names(parts: Sequence[PredictionAnswer]) -> list[str] | list[int]:
    """Return what each column of probabilities stands for, in the order of the model.

    Models add labels at the end, so that the longest list has them all.
    """
    firsts = [part["probabilities"][0] for part in parts if part.get("probabilities")]
    longest = max(firsts, key=len)
    return [*longest] if isinstance(longest, dict) else [*range(len(longest))]


def _classes(names: Sequence[str] | Sequence[int]) -> list[Label]:
    return [answered(name) if isinstance(name, str) else name for name in names]


def _probabilities(
    parts: Sequence[PredictionAnswer], names: Sequence[str] | Sequence[int]
) -> Floats:
    """Return float32 [n, classes]."""
    rows = [row for part in parts for row in part.get("probabilities", ())]
    found = np.zeros((len(rows), len(names)), np.float32)
    for k, row in enumerate(rows):
        if isinstance(row, dict):
            found[k] = [row.get(str(name), 0.0) for name in names]
        else:
            found[k, : len(row)] = row
    return found


def _joined(parts: Sequence[Sequence[float]]) -> Floats | None:
    """Return float32 [n]; None without parts."""
    return np.concatenate([np.array(part, np.float32) for part in parts]) if parts else None


def _quantiles(parts: Sequence[dict[str, list[float]]]) -> dict[float, Floats] | None:
    """Return float32 [n] by level; None without parts."""
    if not parts:
        return None
    return {
        float(level): np.concatenate([np.array(part[level], np.float32) for part in parts])
        for level in parts[0]
    }
