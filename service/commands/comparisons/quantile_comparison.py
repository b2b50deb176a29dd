"""The service's learner of quantiles compared with its peers on a stream of rows, test-then-train.

Peers have a learner of their own for each quantile. None of the learners draws anything.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from service.commands.comparisons.comparison import later_shown
from service.commands.comparisons.evaluation import name_of
from service.commands.comparisons.number_comparison import (
    LATE,
    ServedNumbers,
    aligned,
    later_numbers,
    predictions,
)
from service.fold.schema.schema import Schema
from service.settings import Settings
from streams.delays.delay import Delay
from streams.peers.number_learners import Numbers
from streams.peers.quantile_peers import FLOORS, Make, QuantilePeer
from streams.peers.row_learners import RowBatch, steps_of
from streams.progress import progress_bar
from streams.rowstream import RowStream

EXPLANATION = f"""\
Each batch is predicted before it is learned; the first one is not scored, as nothing is known
before it. Pinball loss is the mean over the quantiles; inside is the share of numbers that are
within the outermost quantiles, and width their mean distance; crossed is the share of rows in which
a lower quantile is above a higher one. Coverage is the share of numbers that are not above a
quantile; the last column is after the first {LATE:,} rows. Peers have one learner for each
quantile, which gets the same numbers, standardized, and the same keys, and is shown at the best of
its settings, chosen for this stream and quantile in hindsight.
"""


@dataclass(frozen=True)
class Run:
    """A learner of quantiles after a pass."""

    learner: str
    settings: tuple[str, ...]
    """By quantile."""
    tuned: int
    """Settings among which each is the best in hindsight; 0 if they were not tuned."""
    predicted: Numbers
    """The answers for the scored rows, float64 [n, quantiles]."""

    def losses(self, numbers: Numbers, quantiles: Numbers) -> Numbers:
        """Return the mean pinball loss of each quantile, [quantiles]; see `pinball`."""
        return pinball(numbers[:, None] - self.predicted, quantiles)

    @property
    def crossed(self) -> float:
        """Share of the rows in which a lower quantile is above a higher one."""
        return float((np.diff(self.predicted, axis=1) < 0).any(axis=1).mean())


def pinball(missed: Numbers, quantiles: Numbers | float) -> Numbers:
    """Return the mean pinball loss over the rows [R. Koenker, G. Bassett, 'Regression quantiles',
    1978].

    Args:
        missed: number less prediction, [n, …].
        quantiles: of the last axis.
    """
    losses = np.maximum(quantiles * missed, (quantiles - 1.0) * missed)
    return np.asarray(losses.mean(axis=0))


def summary(runs: Sequence[Run], numbers: Numbers, quantiles: Numbers) -> str:
    """Return a line for each run, the least loss first.

    Args:
        runs: of the same rows.
        numbers: of these rows, [n].
        quantiles: ascending.
    """
    lines = [("learner", "pinball loss", "inside", "width", "crossed")]
    for run in sorted(runs, key=lambda one: float(one.losses(numbers, quantiles).mean())):
        low, high = run.predicted[:, 0], run.predicted[:, -1]
        inside = ((low <= numbers) & (numbers <= high)).mean()
        loss, width = run.losses(numbers, quantiles).mean(), (high - low).mean()
        shown = f"{loss:.4f}", f"{inside:.4f}", f"{width:.4f}", f"{run.crossed:.4f}"
        lines.append((run.learner, *shown))
    return aligned(lines)


def details(runs: Sequence[Run], numbers: Numbers, quantiles: Numbers, first: int) -> str:
    """Return a line for each quantile and run, for each quantile the least loss first.

    Args:
        runs, numbers, quantiles: as for `summary`.
        first: rows before the scored ones.
    """
    lines = [
        ("quantile", "learner", "setting", "pinball loss", "coverage", f"coverage after {LATE:,}")
    ]
    for k, quantile in enumerate(quantiles.tolist()):
        losses = {id(run): float(run.losses(numbers, quantiles)[k]) for run in runs}
        for run in sorted(runs, key=lambda one: losses[id(one)]):
            setting = run.settings[k]
            setting = f"{setting} (best of {run.tuned})" if run.tuned > 1 else setting
            covered = numbers <= run.predicted[:, k]
            late = covered[max(LATE - first, 0) :]
            after = f"{late.mean():.4f}" if len(late) else "–"
            shown = f"{losses[id(run)]:.4f}", f"{covered.mean():.4f}", after
            lines.append((f"{quantile:g}", run.learner, setting, *shown))
    return aligned(lines)


def warning(own: Run, floors: Sequence[Run], numbers: Numbers, quantiles: Numbers) -> str:
    """Return the line that says that Funnel is worse than floors; empty if it is not."""
    losses = [float(one.losses(numbers, quantiles).mean()) for one in (own, *floors)]
    below = [
        f"{one.learner} ({loss:.4f})"
        for one, loss in zip(floors, losses[1:], strict=True)
        if loss < losses[0]
    ]
    if not below:
        return ""
    return (
        f"Funnel is worse than a floor: its pinball loss is {losses[0]:.4f}; "
        f"{' and '.join(below)}\n\n"
    )


def best(
    makes: Mapping[str, Make],
    quantile: float,
    batches: Sequence[RowBatch],
    first: int,
    numbers: Numbers,
    progress: Callable[[int], object],
    come: Sequence[Sequence[RowBatch]] | None = None,
) -> tuple[str, Numbers]:
    """Return the setting with the least loss of a quantile, and its predictions of the scored rows.

    Args:
        makes: learners of a quantile, by setting.
        quantile: within (0, 1).
        batches: of the stream.
        first: rows of the first batch, which are not scored.
        numbers: of the scored rows.
        progress: called with the number of rows of each batch that a learner has learned.
        come: what is learned once each batch is predicted; None if it is the batch itself.
    """
    found = {
        setting: predictions(make(quantile), batches, progress, come)[first:]
        for setting, make in makes.items()
    }
    losses = {name: float(pinball(numbers - own, quantile)) for name, own in found.items()}
    setting = min(losses, key=lambda name: losses[name])
    return setting, found[setting]


def run(
    stream: RowStream,
    settings: Settings,
    schema: Schema,
    batches: Sequence[RowBatch],
    peers: Mapping[str, QuantilePeer],
    delay: Delay | None = None,
) -> int:
    """Compare, and print the tables.

    Args:
        stream: the rows.
        settings: of the service.
        schema: with which Funnel begins.
        batches: of the stream, with their numbers.
        peers: that run, by name.
        delay: of the labels, in examples; None if each batch is learned before the next.

    Raises:
        FunnelError: as for `later_numbers`.
    """
    torch.set_num_threads(settings.threads)
    quantiles = np.array(settings.predicts.quantiles)
    come, first = later_numbers(delay, stream, batches, settings.batch_size)
    numbers = np.concatenate([batch.numbers for batch in batches])[first:]
    passes = 1 + len(quantiles) * sum(len(peer.settings) for peer in peers.values())
    with progress_bar(f"{stream.name}, {passes} runs", passes * stream.examples) as bar:
        served, answers = ServedNumbers(settings, schema), []
        for batch, known in steps_of(batches, come):
            answers.append(served.answers(batch))
            for one in known:
                served.learn(one)
            bar.update(len(batch))
        as_served = ("as served",) * len(quantiles)
        predicted = np.concatenate(answers)[first:]
        own = Run(name_of(settings), as_served, 0, predicted)
        others = {}
        for name, peer in peers.items():
            each = [
                best(peer.settings, quantile, batches, first, numbers, bar.update, come)
                for quantile in quantiles.tolist()
            ]
            chosen, found = zip(*each, strict=True)
            others[name] = Run(peer.title, chosen, len(peer.settings), np.stack(found, axis=1))
    floors, runs = [others[name] for name in FLOORS if name in others], [own, *others.values()]
    sys.stdout.write(
        f"{warning(own, floors, numbers, quantiles)}{stream.name}: {stream.examples:,} rows\n\n"
        f"{summary(runs, numbers, quantiles)}\n{details(runs, numbers, quantiles, first)}\n"
        f"{EXPLANATION}{later_shown(delay)}"
    )
    return 0
