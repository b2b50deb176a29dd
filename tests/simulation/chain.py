"""A cheap fold with the interface of the real one: a chain of digests, and a count of each example.

A step costs microseconds, and any difference in what was learned, in which batches, in which order,
by which version of the fold and with which hyperparameters, changes the digest.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from unittest.mock import patch

import numpy as np
import orjson
import torch
from torch import Tensor

from funnel.pool.loss import CROSS_ENTROPY
from funnel.pool.tables.index import KeyIndex, Numbers
from funnel.pool.tables.published import Published
from funnel.pool.tables.rows import Field
from funnel.pool.tables.rows import Rows as TableRows
from funnel.pool.tables.table import Table
from service.fold.drift.monitor import Monitor
from service.fold.report import Report
from service.fold.schema.changes import Change as SchemaChange
from service.fold.schema.schema import Schema
from service.fold.scoring.classification import ScoreSummary
from service.fold.spec import FOLD_VERSION, Hyperparameters, Spec
from service.fold.state import KEY_BUCKETS, SERVED, State
from service.log.position import Position
from streams.examples import AnyBatch
from streams.rows.rows import Rows
from tests.simulation.joins import ASKED, BY_LABEL

BAD = 1.0
"""Second feature of an example whose batch is skipped."""
NUMBER, IS_BAD = "number", "is_bad"
"""The same two as columns of rows."""
BITS, IN_ROW = 12, 4
"""Of a chain's table: slots, so many that no two rows share one, and examples in a row."""
SCORES = ScoreSummary(0, 0, 0.0, 0.0, 0.0, 0.0, ())


def link(
    before: bytes,
    numbers: Sequence[int],
    is_bad: bool,
    fold: int,
    lr: float,
    weights: Sequence[float] = (),
) -> bytes:
    """Return the digest after a batch.

    Args:
        before: the digest before it.
        numbers: of its examples.
        is_bad: whether it is skipped.
        fold: version of the fold.
        lr: the hyperparameter.
        weights: of the examples; none if each is 1.
    """
    content = list(numbers), is_bad, fold, lr
    more = list(weights) if any(weight != 1 for weight in weights) else ""
    return hashlib.sha256(before + f"{content}{more}".encode()).digest()


class _StillMonitor(Monitor):
    """Drift events: there are none."""

    def __init__(self) -> None:
        self.fold_version = FOLD_VERSION
        self.events, self.counts, self.last_recovery = (), {}, None

    def set_version(self, version: int) -> None:
        self.fold_version = version

    def note(self, report: Report, batch: int, examples: int, position: Position) -> None:
        """Nothing is watched."""

    def settle(self) -> None:
        """Nothing waits."""

    def tensors(self) -> dict[str, Tensor]:
        return {}

    def positions(self) -> tuple[Position, ...]:
        return ()


class _ChainTable(Table):
    """How often each example was learned or skipped; a row counts IN_ROW neighbours."""

    def __init__(self) -> None:
        self.index = KeyIndex(BITS)
        fresh = torch.zeros(1, IN_ROW)
        self.rows = TableRows([Field(k, slice(0, 1), fresh, False) for k in ("count", "zero")], 0.0)

    def learn(self, numbers: Numbers) -> None:
        keys, place = np.unique(numbers // IN_ROW, return_inverse=True)
        more = np.zeros((len(keys), IN_ROW), dtype=np.float32)
        np.add.at(more, (place, numbers % IN_ROW), 1)
        numbers = self.index.admit(keys.astype(np.uint64))
        order = numbers.argsort()
        rows = torch.from_numpy(numbers[order])
        self.rows.use(self.index.used)
        counts = self.rows.weights[rows] + torch.from_numpy(more[order])
        self.rows.write(rows, counts, self.rows.state[rows])

    def published(self) -> Published:
        own = self.rows
        return Published(
            (), torch.zeros(0), own.version(), CROSS_ENTROPY, {}, self.index,
            own.of_weights, own.start_of,
        )  # fmt: skip

    def learned(self) -> dict[int, int]:
        counts = self.rows.weights[: self.rows.used].int().tolist()
        return {
            IN_ROW * key + k: n
            for key, row in zip(self.index.keys.tolist(), counts, strict=True)
            for k, n in enumerate(row)
            if n
        }


class _ChainLearner:
    """The served learner, as far as statistics and snapshots look at it."""

    device = torch.device("cpu")
    nonfinite, is_plain = 0, False
    expert_names: tuple[str, ...] = ()

    def __init__(self, spec: Spec) -> None:
        self.spec, self.size, self.experts = spec, spec.size, ("chain",)
        self.table = _ChainTable()
        self.pool = self.scores = self
        self.loss, self.numbers, self.families = CROSS_ENTROPY, None, None
        self.held: dict[str, Tensor] = {}

    def telemetry(self) -> dict[str, object]:
        nothing = torch.zeros(0)
        return {
            "weights": nothing, "ages": nothing, "tensors": {}, "log_gains": {}, "step_sizes": {},
        }  # fmt: skip

    def read(self) -> ScoreSummary:
        return SCORES

    def measure(self, learner: int = 0) -> ScoreSummary:
        return SCORES

    def frozen(self) -> dict[str, Tensor]:
        return {}

    def evaluator(self) -> None:
        return None

    def network(self) -> None:
        return None

    def shown_hyperparameters(self) -> dict[str, object]:
        return {}


class ChainState(State):
    """A state whose whole content is a digest and the counts of examples.

    Args:
        spec: of a model that does not standardize.
        hyperparameters: of which the chain has ``lr``.
        stepped: called after each step.
    """

    def __init__(
        self,
        spec: Spec,
        hyperparameters: Hyperparameters,
        stepped: Callable[["ChainState"], object],
    ) -> None:
        self.spec, self.device, self.hyperparameters = spec, torch.device("cpu"), hyperparameters
        self.stepped = stepped
        self.schema = Schema.from_json(orjson.loads(spec.schema)) if spec.schema else Schema()
        self.missing = torch.zeros(0, 2, dtype=torch.int64)
        self.new_keys = torch.zeros(0, dtype=torch.int64)
        self.chain = bytes(32)
        self.version = self.examples = self.byte_examples = 0
        self.served = _ChainLearner(spec)  # type: ignore[assignment]
        self.shadows, self.promoted = {}, ""
        self.guard = self  # type: ignore[assignment]
        self.quarantined = 0
        self.size = spec.size
        self.target = self.number_floors = self.calibration = None
        self.floors = self._fresh_floors()
        self.floors.scores = self.served.scores
        self.buckets = torch.zeros(0, KEY_BUCKETS, dtype=torch.int64)
        self.drift = _StillMonitor()

    @property
    def learned(self) -> dict[int, int]:
        """How often each example was learned or skipped."""
        return self._table.learned()

    def learn(self, numbers: Numbers) -> None:
        """Count examples."""
        self._table.learn(numbers)

    @property
    def _table(self) -> _ChainTable:
        table = self.served.table
        assert isinstance(table, _ChainTable)
        return table

    def reshape(self, changes: Sequence[SchemaChange]) -> None:
        """Take any row: the schema stays as it is, and a recovery decides on it again."""

    def set_hyperparameters(self, hyperparameters: Hyperparameters) -> None:
        self.hyperparameters = hyperparameters

    def learners(self):  # type: ignore[no-untyped-def]
        return {SERVED: self.served}

    def tensors(self) -> dict[str, Tensor]:
        chain = torch.from_numpy(np.frombuffer(self.chain, dtype=np.uint8).copy())
        return {"chain": chain, **self._table.tensors()}

    def load(
        self,
        tensors: dict[str, Tensor],
        version: int,
        examples: int,
        drifts: Sequence[Position] = (),
        byte_examples: int | None = None,
    ) -> None:
        self.chain = tensors["chain"].numpy().tobytes()
        self._table.load(tensors)
        self.version, self.examples = version, examples
        self.byte_examples = byte_examples


def _read(batch: AnyBatch) -> tuple[Numbers, bool]:
    """Return the numbers of the examples, and whether one of them is bad."""
    if isinstance(batch, Rows):
        columns = [chunk.columns for chunk in batch.chunks]
        numbers = [number for one in columns for number in one[NUMBER].to_pylist()]
        return np.array(numbers, dtype=np.int64), any(
            BAD in one[IS_BAD].to_pylist() for one in columns
        )
    numbers = batch.features[:, 0].astype(np.int64)
    is_asked = numbers >= ASKED  # what a question is learned as depends on its label
    numbers += np.where(is_asked, BY_LABEL, 0) * batch.labels.astype(np.int64)
    return numbers, bool(BAD in batch.features[:, 1])


class ChainFold:
    """Executes steps on a chain.

    Args:
        state: changed in place.
    """

    def __init__(self, state: ChainState) -> None:
        self.state = state

    def can_replay(self, version: int) -> bool:
        return version <= FOLD_VERSION

    def foresee(self, batches: Sequence[AnyBatch]) -> None:
        """Nothing is prepared."""

    def step(self, batch: AnyBatch, is_fast: bool = False) -> Report:
        state = self.state
        numbers, is_bad = _read(batch)
        fold, lr = state.drift.fold_version, state.hyperparameters.lr
        weights = [] if batch.weights is None else batch.weights.tolist()
        state.chain = link(state.chain, numbers.tolist(), is_bad, fold, lr, weights)
        state.learn(numbers)
        state.version += 1
        state.examples += len(batch)
        state.stepped(state)
        return Report(state.version, 0.5, 1.0, not is_bad)


@contextlib.contextmanager
def chained() -> Iterator[None]:
    """Let replicas fold chains for a while."""
    with patch("service.trainer.replica.Fold", ChainFold):
        yield
