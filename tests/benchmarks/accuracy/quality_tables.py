"""The tables of `tests.benchmarks.quality`."""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from service.commands.comparisons.comparison import (
    examples_shown,
    interval,
    median_recovery,
    recoveries_of,
    shown,
)
from streams.peers.peers import PEERS
from streams.prequential import Curve
from streams.sources.catalog import IMAGE_STREAMS, LABELLED, SYNTHETIC, Stream
from tests.benchmarks.accuracy.quality_runs import (
    OWN,
    Key,
    Result,
    Results,
    contenders,
    settings_of,
)
from tests.benchmarks.measure import table


@dataclass(frozen=True)
class Best:
    """A learner at its best setting on a stream."""

    setting: str
    results: list[Result]
    """One result per seed, in the order of the seeds."""
    seeds: list[int]

    @property
    def accuracies(self) -> list[float]:
        return [result.accuracy for result in self.results]

    @property
    def losses(self) -> list[float]:
        return [result.log_loss for result in self.results]

    @property
    def errors(self) -> list[float]:
        """Expected calibration errors."""
        return [result.ece for result in self.results]

    @property
    def curves(self) -> list[Curve]:
        return [result.curve for result in self.results]


def best(
    found: Results, stream: Stream, learner: str, seeds: Sequence[int], by_loss: bool = False
) -> Best | None:
    """Return a learner at its best setting over the seeds that all its contenders have run.

    Args:
        found: the results.
        stream: it learned.
        learner: its name.
        seeds: of the stream.
        by_loss: whether the best has the least log loss; otherwise it has the most accuracy.
    """
    names = contenders(found, stream, learner, seeds[0])

    def result(setting: str, seed: int) -> Result | None:
        return found.get(Key(stream.name, learner, setting, seed, stream.examples))

    common = [seed for seed in seeds if all(result(name, seed) for name in names)]
    if not common:
        return None
    choices = [
        Best(n, [found[Key(stream.name, learner, n, s, stream.examples)] for s in common], common)
        for n in names
    ]
    if by_loss:
        return min(choices, key=lambda choice: statistics.mean(choice.losses))
    return max(choices, key=lambda choice: statistics.mean(choice.accuracies))


def is_at_edge(chosen: str, settings: Sequence[str]) -> bool:
    """Return True if the rate of a setting is an extreme of its grid, all else being equal."""
    rates = {}
    for name in settings:
        if match := re.search(r"(?:lr|eta0|-l|SGD|AdaGrad) ([\d.e-]+)", name):
            rates[name] = float(match[1]), name.replace(match[1], "", 1)
    if chosen not in rates:
        return False
    rate, rest = rates[chosen]
    near = [other for other, others_rest in rates.values() if others_rest == rest]
    return len(near) > 1 and rate in (min(near), max(near))


Taken = dict[tuple[str, str], Best]


def grouped(streams: Sequence[Stream]) -> list[list[Stream]]:
    groups = [[s for s in streams if s.name in of] for of in (IMAGE_STREAMS, SYNTHETIC, LABELLED)]
    return [group for group in groups if group]


def title(learner: str) -> str:
    return OWN.get(learner) or PEERS[learner].title


def accuracy_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return prequential accuracies, with the best of each stream in bold."""
    rows = []
    tops = {
        s.name: max(
            (
                statistics.mean(taken[s.name, n].accuracies)
                for n in learners
                if (s.name, n) in taken
            ),
            default=math.nan,
        )
        for s in streams
    }
    most = max(len(choice.seeds) for choice in taken.values())
    for learner in learners:
        cells, means = [], []
        for stream in streams:
            choice = taken.get((stream.name, learner))
            if choice is None:
                cells.append("–")
                continue
            means.append(statistics.mean(choice.accuracies))
            text = shown(choice.accuracies, 4)
            cells.append(f"**{text}**" if means[-1] == tops[stream.name] else text)
            if len(choice.seeds) < most:
                cells[-1] += f" ({len(choice.seeds)})"
        if means:
            mean = f"{statistics.mean(means):.4f}" if len(means) == len(streams) else "–"
            rows.append((title(learner), *cells, mean))
    head = ("accuracy", *(s.name for s in streams), "mean")
    note = f"\n{most} seeds, or as many as in brackets.\n"
    return table(head, rows) + note


def probability_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return log losses and calibration errors, with the least of each stream in bold.

    Args:
        streams: columns.
        learners: rows.
        taken: the setting with the least log loss of each.
    """
    losses = {key: statistics.mean(choice.losses) for key, choice in taken.items()}
    errors = {key: statistics.mean(choice.errors) for key, choice in taken.items()}
    rows = []
    for learner in learners:
        cells = []
        for stream in streams:
            key = stream.name, learner
            if math.isnan(losses.get(key, math.nan)):
                cells.append("–")
                continue
            pair = [
                f"**{own[key]:.3f}**" if own[key] == least(own, stream) else f"{own[key]:.3f}"
                for own in (losses, errors)
            ]
            cells.append(" / ".join(pair))
        if set(cells) != {"–"}:
            rows.append((title(learner), *cells))
    return table(("log loss / ECE", *(s.name for s in streams)), rows)


def least(found: dict[tuple[str, str], float], stream: Stream) -> float:
    """Return the least value of a stream, by name and learner; of those that are known."""
    own = (value for (name, _), value in found.items() if name == stream.name)
    return min((value for value in own if not math.isnan(value)), default=math.nan)


def lead_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return the points by which the first learner leads, over the seeds that both have run."""
    first, *others = learners
    rows = []
    for learner in others:
        cells = []
        for stream in streams:
            mine, other = taken.get((stream.name, first)), taken.get((stream.name, learner))
            if mine is None or other is None:
                cells.append("–")
                continue
            by_seed = dict(zip(mine.seeds, mine.accuracies, strict=True))
            pairs = zip(other.seeds, other.accuracies, strict=True)
            leads = [100 * (by_seed[seed] - value) for seed, value in pairs if seed in by_seed]
            cells.append(lead_shown(leads))
        if set(cells) != {"–"}:
            rows.append((title(learner), *cells))
    head = (f"points {title(first)} is ahead of", *(s.name for s in streams))
    return table(head, rows)


def lead_shown(leads: Sequence[float]) -> str:
    half = interval(leads)
    mean = f"{statistics.mean(leads):+.2f}"
    return mean if math.isnan(half) else f"{mean} ± {half:.2f}"


def recovery_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return the median examples after a shift until a learner has recovered."""
    found: dict[tuple[str, str], list[int | None]] = {}
    for stream in streams:
        shifts = [shift.example for shift in stream.shifts]
        chosen = {n: taken[stream.name, n] for n in learners if (stream.name, n) in taken}
        for seed in {seed for choice in chosen.values() for seed in choice.seeds}:
            curves = {
                name: [choice.curves[choice.seeds.index(seed)]]
                for name, choice in chosen.items()
                if seed in choice.seeds
            }
            recovered = recoveries_of(list(curves.values()), shifts)
            for name, examples in zip(curves, recovered, strict=True):
                found.setdefault((stream.name, name), []).extend(examples)
    rows = []
    for learner in learners:
        medians = [found.get((s.name, learner)) for s in streams]
        cells = ["–" if m is None else examples_shown(median_recovery(m)) for m in medians]
        if set(cells) != {"–"}:
            rows.append((title(learner), *cells))
    return table(("examples to recover", *(s.name for s in streams)), rows)


def settings_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return the best settings; † marks one at the edge of its grid."""
    rows = []
    for learner in learners:
        if len(settings_of(learner)) > 1:
            cells = []
            for stream in streams:
                choice = taken.get((stream.name, learner))
                edge = choice and is_at_edge(choice.setting, settings_of(learner))
                cells.append(f"{choice.setting}{' †' * bool(edge)}" if choice else "–")
            rows.append((title(learner), *cells))
    return table(("best setting; † at the edge of its grid", *(s.name for s in streams)), rows)
