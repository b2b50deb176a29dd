"""The service's learner of numbers compared with its peers on a stream of rows, test-then-train."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np
import orjson
import torch

from service.commands.comparisons.comparison import later_shown
from service.commands.comparisons.evaluation import name_of
from service.fold.schema.schema import Schema
from service.fold.state import State
from service.offline import Offline
from service.settings import Settings
from streams.delays.arrivals import Arrivals
from streams.delays.delay import Delay
from streams.errors import FunnelError
from streams.peers.number_learners import NumberLearner, Numbers
from streams.peers.number_peers import FLOORS, NumberPeer
from streams.peers.row_learners import RowBatch, steps_of, take_rows
from streams.progress import progress_bar
from streams.rowstream import RowStream

LATE = 1_000
"""Rows after which learners are scored a second time."""
EXPLANATION = f"""\
Each batch is predicted before it is learned; the first one is not scored, as nothing is known
before it. The last column is the MAE after the first {LATE:,} rows. R² is how much of the variance
of all scored numbers is explained. Peers get the same numbers, standardized, and the same keys
(river's trees the rows themselves), and are shown at the best of their settings, chosen for this
stream in hindsight.
"""


class ServedNumbers:
    """The learner that the service runs: a snapshot answers, and the fold learns.

    Args:
        settings: of the service.
        schema: with which it begins.
    """

    def __init__(self, settings: Settings, schema: Schema) -> None:
        text = orjson.dumps(schema.to_json(), option=orjson.OPT_SORT_KEYS).decode()
        spec = replace(settings.spec, schema=text)
        self._offline = Offline(spec, settings.hyperparameters)

    @property
    def state(self) -> State:
        """The state of the learner."""
        return self._offline.state

    def answers(self, batch: RowBatch) -> Numbers:
        """Return value and deviation, or the quantiles, float64 [n, A]."""
        return np.asarray(self._offline.answer(batch.rows)[1], np.float64)

    def predict(self, batch: RowBatch) -> Numbers:
        """Return a number for each row, float64 [n]."""
        return self.answers(batch)[:, 0]

    def learn(self, batch: RowBatch) -> None:
        """Learn a batch, as a trainer does."""
        self._offline.learn(batch.rows)


@dataclass(frozen=True)
class Scores:
    """How far off predictions are."""

    mae: float
    rmse: float
    r2: float
    late: float
    """MAE after the first LATE rows; NaN if there are no more."""

    @classmethod
    def of(cls, predicted: Numbers, numbers: Numbers, first: int) -> "Scores":
        """Return the scores of predictions, [n].

        Args:
            predicted: [n].
            numbers: [n].
            first: rows of the first batch, which is not scored.
        """
        missed = predicted - numbers
        scored, spread = missed[first:], float(np.var(numbers[first:]))
        square = float(np.mean(scored**2))
        late = missed[max(first, LATE) :]
        return cls(
            float(np.mean(np.abs(scored))),
            square**0.5,
            1.0 - square / spread if spread > 0.0 else np.nan,
            float(np.mean(np.abs(late))) if len(late) else np.nan,
        )


@dataclass(frozen=True)
class Run:
    """One learner with one setting over some seeds."""

    learner: str
    setting: str
    tuned: int
    """Settings among which this one is the best in hindsight; 0 if it was not tuned."""
    scores: list[Scores] = field(default_factory=list)
    """The scores of each seed."""

    def value(self, name: str) -> float:
        """Return the median over seeds of a field of the scores."""
        return median(float(getattr(one, name)) for one in self.scores)


def predictions(
    learner: NumberLearner,
    batches: Sequence[RowBatch],
    progress: Callable[[int], object],
    come: Sequence[Sequence[RowBatch]] | None = None,
) -> Numbers:
    """Predict, then learn, batch after batch; return the predictions, [n].

    Args:
        learner: of numbers.
        batches: of the stream.
        progress: called with the number of rows of each batch that is done.
        come: what is learned once each batch is predicted; None if it is the batch itself.
    """
    found = []
    for batch, known in steps_of(batches, come):
        found.append(learner.predict(batch))
        for one in known:
            learner.learn(one)
        progress(len(batch))
    return np.concatenate(found)


def later_numbers(
    delay: Delay | None, stream: RowStream, batches: Sequence[RowBatch], batch_size: int
) -> tuple[list[list[RowBatch]] | None, int]:
    """Return what is learned after each batch, and the rows that are not scored.

    These are the rows that are asked before anything is known.

    Args:
        delay: of the labels, in examples; None if each batch is learned before the next.
        stream: of the batches.
        batches: of the stream, with their numbers.
        batch_size: rows that are learned at once.

    Raises:
        FunnelError: nothing is known before the last row is asked, or labels have delays of their
            own: they are numbers.
    """
    if delay is None:
        return None, len(batches[0]) if len(batches) > 1 else 0
    if delay.by_label:
        raise FunnelError(f"--delay {delay} is by label, but the labels are numbers to predict")
    sizes = [*map(len, batches)]
    later = Arrivals.of(delay.draws(0).next([""] * sum(sizes)), sizes, batch_size)
    if later.first == sum(sizes):
        raise FunnelError(f"no label of {stream.name} comes before its end; --delay is {delay}")
    return later.arranged(batches, take_rows), later.first


def table(runs: Sequence[Run]) -> str:
    """Return the runs as aligned lines, the least MAE first."""
    lines = [["learner", "setting", "MAE", "RMSE", "R²", f"MAE after {LATE:,}"]]
    for run in sorted(runs, key=lambda one: one.value("mae")):
        setting = f"{run.setting} (best of {run.tuned})" if run.tuned > 1 else run.setting
        values = (run.value(name) for name in ("mae", "rmse", "r2", "late"))
        shown = ["–" if np.isnan(value) else f"{value:.4f}" for value in values]
        lines.append([run.learner, setting, *shown])
    return aligned(lines)


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text in columns."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip()
        + "\n"
        for line in lines
    )


def warning(own: Run, floors: Sequence[Run]) -> str:
    """Return the line that says that Funnel is worse than floors; empty if it is not."""
    parts = []
    for name in ("mae", "rmse"):
        below = [one for one in floors if one.value(name) < own.value(name)]
        if below:
            shown = " and ".join(f"{one.learner} ({one.value(name):.4f})" for one in below)
            parts.append(f"its {name.upper()} is {own.value(name):.4f}; {shown}")
    return f"Funnel is worse than a floor: {'; '.join(parts)}\n\n" if parts else ""


def run(
    stream: RowStream,
    settings: Settings,
    schema: Schema,
    batches: Sequence[RowBatch],
    peers: Mapping[str, NumberPeer],
    seeds: Sequence[int],
    delay: Delay | None = None,
) -> int:
    """Compare, and print the table.

    Args:
        stream: the rows.
        settings: of the service.
        schema: with which Funnel begins.
        batches: of the stream, with their numbers.
        peers: that run, by name.
        seeds: of the peers; Funnel draws nothing.
        delay: of the labels, in examples; None if each batch is learned before the next.

    Raises:
        FunnelError: as for `later_numbers`.
    """
    torch.set_num_threads(settings.threads)
    numbers = np.concatenate([batch.numbers for batch in batches])
    come, first = later_numbers(delay, stream, batches, settings.batch_size)
    own = Run(name_of(settings), "as served", 0)
    tried = {
        name: [Run(peer.title, setting, len(peer.settings)) for setting in peer.settings]
        for name, peer in peers.items()
    }
    passes = 1 + len(seeds) * sum(map(len, tried.values()))
    with progress_bar(f"{stream.name}, {passes} runs", passes * stream.examples) as bar:
        served = ServedNumbers(settings, schema)
        own.scores.append(Scores.of(predictions(served, batches, bar.update, come), numbers, first))
        for seed in seeds:
            for name, peer in peers.items():
                for one, make in zip(tried[name], peer.settings.values(), strict=True):
                    found = predictions(make(seed), batches, bar.update, come)
                    one.scores.append(Scores.of(found, numbers, first))
    best = {name: min(runs, key=lambda one: one.value("mae")) for name, runs in tried.items()}
    floors = [best[name] for name in FLOORS if name in best]
    sys.stdout.write(
        f"{warning(own, floors)}{stream.name}: {stream.examples:,} rows\n\n"
        f"{table([own, *best.values()])}\n{EXPLANATION}{later_shown(delay)}"
    )
    return 0
