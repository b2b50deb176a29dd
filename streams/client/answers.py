"""Answers of a service, as a client returns them."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

Label = bool | int | float | str
"""A label as it was sent; the number of a class where features are dense."""
Floats = npt.NDArray[np.float32]
Result = Literal["joined", "duplicate", "conflict", "waiting", "unknown", "late", "invalid"]


@dataclass(frozen=True)
class Learned:
    """Examples that are in the log, in their order."""

    accepted: int
    """Their number."""
    entries: list[str]
    """Ids of the log's entries that hold them, one for each request that was needed."""
    model_version: int | None = None
    """The first version that has learned them all; None if nobody waited for that."""
    accuracy: float | None = None
    """Accuracy on the batch that holds the last of them, before it was learned; None if nobody
    waited, or that batch was skipped."""
    loss: float | None = None
    """Loss on the same batch: cross-entropy in nats, or in the unit of numbers."""
    reason: str | None = None
    """Why the service did not wait; None if it did, or was not asked to, or gives no reason."""


@dataclass(frozen=True)
class Labelled:
    """Labels that are in the log, in their order."""

    accepted: int
    """Their number."""
    entries: list[str]
    """Ids of the log's entries that hold them."""
    model_version: int | None = None
    """The first version after they were decided on; None if nobody waited for that."""
    results: list[Result] | None = None
    """Result of each label; None if nobody waited, or the service did not for one of them."""
    reason: str | None = None
    """Why the service did not wait; None if it did, or was not asked to, or gives no reason."""


class Explanation(NamedTuple):
    """A part of an answer."""

    feature: str
    nats: float
    """Contribution to the log odds of the label; of a predicted number, in its unit."""


@dataclass(frozen=True)
class Predictions:
    """Predictions in the order of the examples, n.

    A model of classes has `labels`, `classes` and `probabilities`; one of numbers has `values`, and
    `std` or `quantiles`. The others are None.
    """

    model_version: int
    """The version that predicted; the newest one if several requests were needed."""
    labels: list[Label] | None = None
    """[n], as they were sent."""
    classes: list[Label] | None = None
    """[classes]: the labels that the columns of `probabilities` stand for."""
    probabilities: Floats | None = None
    """float32 [n, classes]; 0 for a class that was new to the model after the example."""
    values: Floats | None = None
    """float32 [n], in the unit of the labels: means, or the middle quantile."""
    std: Floats | None = None
    """float32 [n]: standard deviations, with the task `regression`."""
    quantiles: dict[float, Floats] | None = None
    """float32 [n] by level, with the task `quantile`."""
    ids: list[str | int] | None = None
    """[n]: the ids under which labels may come later."""
    explanations: list[list[Explanation]] | None = None
    """[n], the largest parts of each answer first."""
    is_fast: bool = False
    """True if the linear experts answered alone, because a request had waited for too long."""

    def __len__(self) -> int:
        """Return the number of examples, n."""
        found = self.values if self.labels is None else self.labels
        return 0 if found is None else len(found)


@dataclass(frozen=True)
class Readiness:
    """The state of a service; true if predictions are served."""

    is_ready: bool
    role: str = ""
    """``learner`` or ``standby``."""
    learning: str = ""
    """A condition, such as ``learning`` or ``waiting``; see ``GET /health/ready``."""
    reason: str = ""
    """Why it does not learn, or why it is not ready."""

    def __bool__(self) -> bool:
        """Return whether predictions are served."""
        return self.is_ready


class Column(TypedDict):
    """A column of a schema."""

    name: str
    kind: str | None
    missing_ratio: float


class Schema(TypedDict):
    """The names and kinds of columns, and the labels; see ``GET /schema``."""

    version: int
    label: str
    columns: list[Column]
    labels: list[Label]
    new_columns: str
    new_labels: str
    max_classes: int
    crosses: list[list[str]]


class Model(TypedDict):
    """The model that is served, and how far it has come; see ``GET /model``."""

    name: str
    model: str
    optimizer: str
    hyperparameters: dict[str, object]
    device: str
    task: str
    inputs: Literal["rows", "features"]
    model_version: int
    examples_learned: int
    position: str
    role: str
    condition: str
    reason: str
    commands: list[dict[str, object]]
    accuracy: float | None
    rolling_accuracy: float | None
    below_floors: list[str]
    scores: dict[str, dict[str, dict[str, float | None]]]
    numbers: dict[str, dict[str, dict[str, float]]]
    classes: list[str]
    by_class: dict[str, dict[str, object]]
