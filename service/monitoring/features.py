"""A model of rows, read back: its weights and gains by feature, and the reasons for an answer.

Weights and reasons are of the weighted mean of the experts' weights; the model mixes their
probabilities, so the parts of an answer add up to its log odds only roughly. Names of keys are not
in the state: they are noted from the batches that this process has learned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from service.fold.inputs import completed, scaled
from service.fold.schema.encode import encode
from service.fold.schema.names import dense_names, named_keys
from service.fold.schema.schema import Schema
from service.fold.snapshot import Snapshot
from service.fold.standardizer import standardized
from service.fold.state import State
from service.fold.task import Task
from service.process import Clock
from streams.errors import FunnelError
from streams.examples import AnyBatch
from streams.rows.labels import emptied
from streams.rows.rows import Rows, join

MAX_NAMES = 100_000
"""Keys whose names are remembered; beyond that no new ones are."""
LONGEST_NAME = 200
"""Characters of a name that are kept."""
LEAST_PROBABILITY = 1e-9
"""Smaller probabilities count as this one, so that log odds are finite."""
EVERY_SECONDS = 1.0
NOTED_ROWS = 1_000
"""Rows of a batch whose names are noted at a time."""


Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Answer = tuple[npt.NDArray[np.int64 | np.float32], npt.NDArray[np.float32]]


class UnreadableModelError(FunnelError):
    """The model has no weights that belong to features; the message says why."""


@dataclass(frozen=True)
class Weights:
    """The weights of a feature."""

    name: str
    weights: dict[str, float]
    """By label, in nats for one unit: a standard deviation of a number, the presence of a key.
    They are relative to the mean of the labels."""
    place: int
    """Its dense place; of a key, the number of its row of the table."""
    is_key: bool


@dataclass(frozen=True)
class Learned:
    """How a feature is learned."""

    gain: float
    """The factor of its steps: the geometric mean of the gains p over the labels, and over the
    experts by their weights. Gains are factors and begin at 1, so their logarithms are averaged, as
    in `funnel.pool.pool.Pool.telemetry`."""
    count: int
    """Rows that had the number, since its column was added, or the key; in the whole life of the
    model."""


@dataclass(frozen=True)
class Part:
    """A part of an answer."""

    name: str
    nats: float
    """Contribution to the log odds of the predicted label, compared with the mean of all labels;
    or to the predicted number, in its unit."""


@dataclass(frozen=True, eq=False)
class Names:
    """Names of keys, in a fifth of the memory of a dictionary."""

    keys: npt.NDArray[np.uint64]
    """uint64 [k], all different."""
    texts: pa.Array
    """Strings [k]."""

    @classmethod
    def of(cls, names: Mapping[int, str]) -> "Names":
        """Return those of a dictionary; a name's first LONGEST_NAME characters are kept."""
        texts = [name[:LONGEST_NAME] for name in names.values()]
        return cls(np.fromiter(names, np.uint64, len(names)), pa.array(texts, pa.string()))

    def __len__(self) -> int:
        """Return the number of keys."""
        return len(self.keys)


class FeatureNames:
    """Names of the keys in recent batches, noted about once a second.

    Args:
        clock: says when a second has passed.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock, self._due = clock, 0.0
        self._names = Names.of({})

    def note(self, schema: Schema, batch: AnyBatch) -> None:
        """Remember the names of a batch, unless others were noted within the last second."""
        if not isinstance(batch, Rows) or self._clock.monotonic() < self._due:
            return
        self._due, room = self._clock.monotonic() + EVERY_SECONDS, MAX_NAMES - len(self._names)
        if not room:
            return
        found = Names.of(named_keys(schema, batch.part(0, NOTED_ROWS)))
        new = np.flatnonzero(~np.isin(found.keys, self._names.keys))[:room]
        self._names = Names(  # other threads read the old one
            np.concatenate([self._names.keys, found.keys[new]]),
            pa.concat_arrays([self._names.texts, found.texts.take(pa.array(new))]),
        )

    def read(self) -> Names:
        """Return the names so far, which never change."""
        return self._names


def strongest(snapshot: Snapshot, names: Names, top: int) -> list[Weights]:
    """Return the features with the largest weights, the largest first.

    Args:
        snapshot: of a model of rows.
        names: of keys.
        top: number of features.

    Raises:
        UnreadableModelError: the model has hidden layers, or is a user's module.
    """
    schema = _schema(snapshot)
    dense, experts = _dense(snapshot)
    outputs = _outputs(snapshot)
    if not outputs:
        return []
    titles = list(dense_names(schema))
    places, numbers = list(range(len(titles))), len(titles)
    found = [dense[:, : len(titles)]]
    if snapshot.table is not None and len(names):
        rows = snapshot.table.index.find(names.keys)
        known = (rows >= 0) & (rows < snapshot.table.used)
        order = rows[known].argsort(kind="stable")
        titles += names.texts.take(pa.array(np.flatnonzero(known)[order])).to_pylist()
        places += rows[known][order].tolist()
        found.append(_of_rows(snapshot, rows[known][order], experts))
    weights = _by_output(snapshot, torch.cat(found, dim=1))
    largest = weights.abs().amax(dim=0).argsort(descending=True, stable=True)[:top].tolist()
    columns = weights[:, largest].T.tolist()
    return [
        Weights(titles[k], dict(zip(outputs, column, strict=True)), places[k], k >= numbers)
        for k, column in zip(largest, columns, strict=True)
    ]


@torch.no_grad()
def learned(state: State, features: Sequence[Weights]) -> list[Learned]:
    """Return how features are learned.

    Args:
        state: at least as new as the snapshot that the features are of; not changed.
        features: as `strongest` found them.
    """
    pool, table = state.answering.pool, state.answering.table
    labels = state.spec.predicts.outputs(len(state.schema.labels))
    experts = pool.mixing.log_weights[: len(pool.experts)].exp().cpu()
    present = state.missing[:, 1] - state.missing[:, 0]
    found = []
    for feature in features:
        if not feature.is_key:
            log_gain = pool.columns()["log_gain"][:, :labels, feature.place].cpu()
            count = int(present[state.schema.dense[feature.place]])
        else:
            assert table is not None, "there are no keys without a table"
            row = table.rows.copied(torch.tensor([feature.place]))
            log_gain = row["log_gain"][0, :, :labels]
            count = int(table.index.row_visits[feature.place])
        found.append(Learned(float((experts @ log_gain).mean().exp()), count))
    return found


def reasons(
    snapshot: Snapshot, rows: Rows, predicted: npt.NDArray[np.int64 | np.float32], top: int
) -> list[list[Part]]:
    """Return the largest parts of each answer, the largest first.

    Args:
        snapshot: that has answered.
        rows: the questions, n of them.
        predicted: the answers, [n]: classes, or numbers.
        top: number of parts of each.

    Raises:
        UnreadableModelError: as `strongest`.
    """
    schema = _schema(snapshot)
    weights, experts = _dense(snapshot)
    encoded = encode(schema, rows)
    inputs = scaled(torch.from_numpy(encoded.dense))
    if snapshot.mean is not None and snapshot.scale is not None:
        inputs = standardized(inputs, snapshot.mean.cpu(), snapshot.scale.cpu())
    inputs = completed(inputs, weights.shape[1])
    weights = _by_output(snapshot, weights)
    if snapshot.task.is_numeric:
        predicted = np.full(len(rows), len(weights) // 2)
    titles = dense_names(schema)
    parts: list[list[Part]] = [
        [Part(name, float(x * w)) for name, x, w in zip(titles, row, weights[label], strict=False)]
        for row, label in zip(inputs, predicted.tolist(), strict=True)
    ]
    if snapshot.table is not None and len(encoded.keys):
        names = named_keys(schema, rows)
        distinct, place = np.unique(encoded.keys, return_inverse=True)
        numbers = snapshot.table.index.find(distinct)
        known = (numbers >= 0) & (numbers < snapshot.table.used)
        own = torch.zeros(len(weights), len(distinct))
        order = np.flatnonzero(known)[numbers[known].argsort(kind="stable")]
        own[:, order] = _by_output(snapshot, _of_rows(snapshot, numbers[order], experts))
        each = zip(encoded.rows.tolist(), place.tolist(), encoded.values.tolist(), strict=True)
        for row, key, value in each:
            nats = value * float(own[predicted[row], key])
            parts[row].append(Part(names[int(distinct[key])], nats))
    return [sorted(found, key=lambda part: -abs(part.nats))[:top] for found in parts]


def without_each(schema: Schema, rows: Rows) -> tuple[list[str], Rows]:
    """Return the columns that rows have, m of m, and m copies of the rows, each without one.

    Args:
        schema: of the model; it does not look at other columns.
        rows: n of them.

    Returns:
        The names of the columns, and m · n rows: all without the values of the first, and so on.
    """
    own = {name for chunk in rows.chunks for name in chunk.names}
    names = [column.name for column in schema.columns if column.name in own]
    return names, join([emptied(rows, name) for name in names])


def differences(
    names: Sequence[str], task: Task, answer: Answer, without: Answer, top: int
) -> list[list[Part]]:
    """Return the parts of each answer by what changes without a column, the largest first.

    That is how much the log odds of the predicted label, relative to the mean of all labels, or the
    number fall once the values of the column are missing. Columns that stand in for each other have
    small parts (Robnik-Šikonja and Kononenko, 'Explaining Classifications for Individual
    Instances', 2008).

    Args:
        names: of m columns.
        task: of the model.
        answer: labels [n], and probabilities or numbers [n, A].
        without: the same of the rows of `without_each`, [m · n].
        top: number of parts of each answer.
    """
    if task.is_numeric:
        own, others = answer[0].astype(np.float64), without[0].astype(np.float64)
    else:
        classes = answer[0].astype(np.int64)
        own, others = _odds(answer[1], classes), _odds(without[1], np.tile(classes, len(names)))
    parts = (own - others.reshape(len(names), -1)).T
    largest = np.argsort(-np.abs(parts), axis=1, kind="stable")[:, :top]
    return [
        [Part(names[k], float(row[k])) for k in order]
        for row, order in zip(parts, largest, strict=True)
    ]


def _odds(probabilities: npt.NDArray[np.float32], classes: Indices) -> Floats:
    """Return the log odds of classes relative to the mean of all, [n]."""
    logs = np.log(probabilities.astype(np.float64).clip(LEAST_PROBABILITY))
    found: Floats = logs[np.arange(len(classes)), classes] - logs.mean(axis=1)
    return found


def _schema(snapshot: Snapshot) -> Schema:
    if snapshot.schema is None:
        raise UnreadableModelError("this model takes dense features, which have no names")
    return snapshot.schema


def _outputs(snapshot: Snapshot) -> tuple[str, ...]:
    """Return the labels, or what else the weights belong to: the number, or its quantiles."""
    if not snapshot.task.is_numeric:
        return _schema(snapshot).labels
    return tuple(f"{level:g}" for level in snapshot.task.quantiles) or ("value",)


def _by_output(snapshot: Snapshot, weights: Tensor) -> Tensor:
    """Return weights by output, [outputs, m]: of labels relative to their mean, in nats; of
    numbers in their unit.

    Args:
        snapshot: whose weights they are.
        weights: [out, m], with room for more classes.
    """
    if snapshot.unit is not None:
        return weights * snapshot.unit[1].cpu()
    if snapshot.task.kind == "binary":
        weights = torch.cat([-weights, weights])
    weights = weights[: len(_schema(snapshot).labels)]
    return weights - weights.mean(dim=0)


def _dense(snapshot: Snapshot) -> tuple[Tensor, Tensor]:
    """Return the mean weights of the dense inputs, [classes, features], and the experts' weights.

    Raises:
        UnreadableModelError: they do not belong to features alone.
    """
    found = {k: v for k, v in snapshot.weights.items() if not k.startswith("loss.")}
    weights = found.pop("mixing.log_weights").exp().cpu()
    if found.keys() != {"weight", "bias"}:
        raise UnreadableModelError(
            "only the weights of the model logistic belong to features; this model has other layers"
        )
    experts = weights[: len(found["weight"])]
    return torch.einsum("k,kcd->cd", experts, found["weight"].cpu()), experts


def _of_rows(snapshot: Snapshot, rows: npt.NDArray[np.int64], experts: Tensor) -> Tensor:
    """Return the mean weights of ascending rows of the table, [classes, rows]."""
    assert snapshot.table is not None, "there are no rows without a table"
    if not len(rows):
        return torch.zeros(snapshot.weights["weight"].shape[1], 0)
    named, place = np.unique(rows, return_inverse=True)
    columns = snapshot.table.columns(named).unflatten(0, (len(experts), -1))
    return torch.einsum("k,kcu->cu", experts, columns)[:, torch.from_numpy(place)]


def shown(found: Sequence[Part]) -> list[dict[str, object]]:
    """Return parts as JSON shows them."""
    return [{"feature": part.name, "nats": part.nats} for part in found]
