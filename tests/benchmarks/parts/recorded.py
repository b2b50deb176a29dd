"""What the service's learner predicts of a stream before it learns each batch; not calibrated."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson

from service.commands.comparisons.evaluation import CPU
from service.fold.schema.schema import Schema
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.fold.step import Fold
from service.settings import load_settings
from streams.batch import Batch
from streams.examples import AnyBatch
from streams.made import churn, clicks
from streams.rowfile import read
from streams.rows.rows import Rows
from streams.rowstream import RowStream
from streams.sources.catalog import get
from streams.sources.names import NAMES

ROWS = {
    "churn": lambda n: churn.churn(n, n // 2),
    "churn_stationary": lambda n: churn.churn(n),
    "clicks": clicks.clicks,
}
"""Streams of rows that are made, by name, from their length."""
LEAST = 1e-30
"""Least probability of a label: a loss is finite."""


@dataclass(frozen=True)
class Recorded:
    """What was predicted of a stream."""

    name: str
    size: int
    """Examples in a batch."""
    probabilities: npt.NDArray[np.float32]
    """float32 [n, classes]; 0 for a class that had not appeared."""
    labels: npt.NDArray[np.int64]
    """int64 [n]."""

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """Log loss of each example, float64 [n], in nats."""
        own = self.probabilities[np.arange(len(self.labels)), self.labels].astype(float)
        return np.asarray(-np.log(np.maximum(own, LEAST)))

    @property
    def floor(self) -> npt.NDArray[np.float64]:
        """Log loss of the shares of the labels in the batches before, float64 [n], in nats.

        Each class counts as seen half a time more.
        """
        one_hot = np.eye(self.probabilities.shape[1])[self.labels]
        starts = np.arange(len(self.labels)) // self.size * self.size
        before = np.concatenate([np.zeros((1, one_hot.shape[1])), one_hot.cumsum(axis=0)])[starts]
        counts = before + 0.5
        own = counts[np.arange(len(counts)), self.labels] / counts.sum(axis=1)
        return np.asarray(-np.log(own))

    def save(self, path: Path) -> None:
        """Write it to a file."""
        np.savez_compressed(
            path, probabilities=self.probabilities, labels=self.labels,
            about=np.array([self.name, str(self.size)]),
        )  # fmt: skip

    @classmethod
    def load(cls, path: Path) -> "Recorded":
        """Return what `save` wrote."""
        with np.load(path) as found:
            name, size = found["about"].tolist()
            return cls(name, int(size), found["probabilities"], found["labels"])


def record(name: str, size: int, seed: int, examples: int, data: Path) -> Recorded:
    """Let the service's learner run through a stream with its default settings.

    Args:
        name: of a stream of `streams.sources.names`, one of ROWS, or of a file ``NAME.csv.gz``.
        size: examples in a batch.
        seed: of the stream.
        examples: its length at most.
        data: the folder of the files.
    """
    if name in NAMES:
        stream = get(name, examples)
        return _record(name, size, stream.batches(size, seed), stream.width, stream.classes)
    if name in ROWS:
        return _of_rows(name, size, ROWS[name](examples), seed)
    return _of_rows(name, size, read(str(data / f"{name}.csv.gz")).stream(examples), seed)


def _of_rows(name: str, size: int, stream: RowStream, seed: int) -> Recorded:
    return _record(name, size, stream.batches(size, seed), 0, 0, stream.labels)


def _record(
    name: str, size: int, batches: Iterator[AnyBatch], width: int, classes: int,
    texts: Sequence[str] = (),
) -> Recorded:  # fmt: skip
    given = {"schema": "auto"} if texts else {"features": width, "classes": classes}
    settings = load_settings(
        given | {"model": "logistic", "batch_size": size, "device": "cpu", "calibrate": False}
    )
    spec = settings.spec
    if texts:
        empty = orjson.dumps(Schema().to_json(), option=orjson.OPT_SORT_KEYS).decode()
        spec = replace(spec, features=0, classes=0, schema=empty, table_bits=settings.table_bits)
    state = State(spec, settings.hyperparameters, CPU)
    fold, evaluate = Fold(state), Evaluator(state.served)
    found, labels = [], []
    for batch in batches:
        if isinstance(batch, Batch):
            inputs, own, order = batch.features, batch.labels, np.arange(classes)
        else:
            inputs, own, order = batch, _numbers(batch, texts), _numbers_of(state, texts)
        probabilities = np.zeros((len(batch), classes or len(texts)), np.float32)
        if len(order):
            probabilities[:, order] = evaluate(Snapshot.of(state), inputs)[1].numpy()
        else:
            probabilities += 1 / len(texts)
        found.append(probabilities)
        labels.append(own)
        if isinstance(batch, Rows) and (changes := state.schema.changes_for(batch)):
            state.reshape(changes)
        fold.step(batch)
    return Recorded(name, size, np.concatenate(found), np.concatenate(labels))


def _numbers(rows: Rows, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([texts.index(x) for c in rows.chunks for x in c.labels.to_pylist()], np.int64)


def _numbers_of(state: State, texts: Sequence[str]) -> npt.NDArray[np.int64]:
    return np.array([texts.index(x) for x in state.schema.labels], np.int64)
