"""Prequential accuracy and recovery of the service's learner and its peers, on every stream.

    python -m tests.benchmarks.quality

Batches of 100; logistic regression, but for river's trees. The service's learner runs with its
defaults. The peers are given inputs standardized as the service does (the trees, the inputs as they
are), and every setting of a grid; the best in the mean over the seeds is shown for each stream, an
oracle that no user has. A setting that is 2 points behind its learner's best on the first seed is
out of the running, and not run on the others. Intervals are 95 %, of the mean over seeds.

Each run is a line of --results as soon as it is done, and is not run again: interrupt and go on, or
run parts with --streams, --learners, --seeds, --seconds. To run a learner anew, remove its lines.
"""

import argparse
import functools
import json
import math
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from service.compare import best_ends, examples_shown, interval, median_recovery, shown
from service.evaluation import Served, as_inputs, run_peer, standardized
from service.optimizers import OPTIMIZERS
from service.settings import Settings, load_settings
from streams.batch import Batch
from streams.catalog import EXAMPLES, IMAGE_STREAMS, LABELLED, NAMES, SYNTHETIC, Stream, get
from streams.peers import PEERS
from streams.prequential import Curve, curve, prequential
from tests.benchmarks.measure import table

OWN = {"pool": "**Funnel, the pool**", "funnel": "**Funnel, one**"}
BATCH = 100
BEHIND = 0.02
"""A setting that is this much worse than its learner's best on the first seed is not run again."""


class Key(NamedTuple):
    """What a run is."""

    stream: str
    learner: str
    setting: str
    seed: int
    examples: int


@dataclass(frozen=True)
class Result:
    """How a run went."""

    accuracy: float
    hits: list[int]
    """Right answers in each hundred."""
    seconds: float
    """To learn and answer, on a machine that may have been busy."""

    @property
    def curve(self) -> Curve:
        """See `streams.prequential.curve`."""
        return np.array(self.hits) / 100


Results = dict[Key, Result]


def load(path: Path) -> Results:
    """Read what has been run."""
    found: Results = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = json.loads(line)
        key = Key(*(fields.pop(name) for name in Key._fields))
        found[key] = Result(**fields)
    return found


def settings_of(learner: str) -> list[str]:
    return ["default"] if learner in OWN else list(PEERS[learner].settings)


def contenders(
    found: Mapping[Key, Result], stream: Stream, learner: str, first_seed: int
) -> list[str]:
    """Return the settings that can still be the best: those not BEHIND on the first seed."""
    first = {
        setting: found.get(Key(stream.name, learner, setting, first_seed, stream.examples))
        for setting in settings_of(learner)
    }
    known = {setting: result.accuracy for setting, result in first.items() if result}
    if len(known) < len(first):
        return list(first)
    return [s for s, accuracy in known.items() if accuracy >= max(known.values()) - BEHIND]


def lacking(
    found: Mapping[Key, Result], streams: Sequence[Stream], options: argparse.Namespace
) -> list[Key]:
    """Return what is to be run yet, as far as can be said now."""
    keys = []
    for seed, stream, learner in product(options.seeds, streams, options.learners):
        if learner in OWN or not PEERS[learner].missing(stream):
            settings = settings_of(learner)
            if seed != options.seeds[0]:
                settings = contenders(found, stream, learner, options.seeds[0])
            keys += [Key(stream.name, learner, s, seed, stream.examples) for s in settings]
    return [key for key in keys if key not in found]


class Inputs:
    """The examples of a stream, in the forms that learners take; made when first asked for."""

    def __init__(self, stream: Stream, seed: int) -> None:
        self.stream, self.seed = stream, seed

    @functools.cached_property
    def batches(self) -> list[Batch]:
        return list(self.stream.batches(BATCH, self.seed))

    @functools.cached_property
    def plain(self) -> list[Batch]:
        return list(as_inputs(self.batches))

    @functools.cached_property
    def standardized(self) -> list[Batch]:
        return list(standardized(self.batches))


def run(key: Key, inputs: Inputs) -> Result:
    """Evaluate one learner with one setting on one seed of a stream."""
    stream = inputs.stream
    if key.learner in OWN:
        taken, began = inputs.batches, time.perf_counter()
        outcomes = prequential(Served(own_settings(key.learner, stream)), taken)
    else:
        peer = PEERS[key.learner]
        taken, began = inputs.plain if peer.raw else inputs.standardized, time.perf_counter()
        outcomes = run_peer(peer.settings[key.setting], stream, key.seed, taken)
    hits = np.rint(100 * curve(outcomes)).astype(int).tolist()
    return Result(float(outcomes.mean()), hits, time.perf_counter() - began)


def own_settings(optimizer: str, stream: Stream) -> Settings:
    return load_settings(
        {
            "optimizer": optimizer,
            "features": stream.width,
            "classes": stream.classes,
            "batch_size": BATCH,
            "device": "cpu",
        }
    )


def run_lacking(options: argparse.Namespace) -> int:
    """Run what --results lacks, until --seconds are over; return how many runs are left."""
    began, found = time.monotonic(), load(options.results)
    streams = {name: get(name, options.examples, options.source) for name in options.streams}
    interval = 0.1 if sys.stderr.isatty() else 30.0
    with options.results.open("a") as out, tqdm(unit=" runs", mininterval=interval) as bar:
        while keys := lacking(found, list(streams.values()), options):
            bar.total = bar.n + len(keys)
            inputs = Inputs(streams[keys[0].stream], keys[0].seed)
            for key in keys:
                if (key.stream, key.seed) != (keys[0].stream, keys[0].seed):
                    break
                if time.monotonic() - began > options.seconds:
                    return len(keys)
                bar.set_postfix_str(f"{key.stream} {key.seed} {key.learner}", refresh=False)
                found[key] = run(key, inputs)
                out.write(json.dumps(key._asdict() | asdict(found[key])) + "\n")
                out.flush()
                bar.update()
    return 0


@dataclass(frozen=True)
class Best:
    """A learner at its best setting on a stream."""

    setting: str
    results: list[Result]
    """One a seed, in the order of the seeds."""
    seeds: list[int]

    @property
    def accuracies(self) -> list[float]:
        return [result.accuracy for result in self.results]

    @property
    def curves(self) -> list[Curve]:
        return [result.curve for result in self.results]


def best(found: Results, stream: Stream, learner: str, seeds: Sequence[int]) -> Best | None:
    """Return a learner at the setting that is best over the seeds which all contenders have run."""
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
    return max(choices, key=lambda choice: statistics.mean(choice.accuracies))


def is_at_edge(chosen: str, settings: Sequence[str]) -> bool:
    """Say whether the rate of a setting is the least or largest of those with the same rest."""
    rates = {}
    for name in settings:
        if match := re.search(r"(?:lr|eta0|-l|SGD|AdaGrad) ([\d.e-]+)", name):
            rates[name] = float(match[1]), name.replace(match[1], "", 1)
    if chosen not in rates:
        return False
    rate, rest = rates[chosen]
    near = [other for other, others_rest in rates.values() if others_rest == rest]
    return len(near) > 1 and rate in (min(near), max(near))


def report(options: argparse.Namespace) -> str:
    """Return the tables."""
    found = load(options.results)
    streams = [get(name, options.examples, options.source) for name in options.streams]
    taken = {
        (stream.name, learner): choice
        for stream in streams
        for learner in options.learners
        if (choice := best(found, stream, learner, options.seeds))
    }
    learners = [name for name in options.learners if any(n == name for _, n in taken)]
    parts = [accuracy_table(part, learners, taken) for part in grouped(streams)]
    parts += [lead_table(part, learners, taken) for part in grouped(streams)]
    shifting = [s for s in streams if any(shift.example for shift in s.shifts)]
    parts += [recovery_table(part, learners, taken) for part in grouped(shifting)]
    parts.append(settings_table(streams, learners, taken))
    return "\n".join(parts)


Taken = dict[tuple[str, str], Best]


def grouped(streams: Sequence[Stream]) -> list[list[Stream]]:
    groups = [[s for s in streams if s.name in of] for of in (IMAGE_STREAMS, SYNTHETIC, LABELLED)]
    return [group for group in groups if group]


def title(learner: str) -> str:
    return OWN.get(learner) or PEERS[learner].title


def accuracy_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return prequential accuracies; the best of each stream is bold."""
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


def lead_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return by how many points the first learner is ahead, over the seeds that both have run."""
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
    """Return median examples after a shift: to the learner's own end / to the best's end."""
    rows = []
    shifts = {s.name: [shift.example for shift in s.shifts] for s in streams}
    goals: dict[tuple[str, int], list[float]] = {}
    for stream in streams:
        choices = [taken[stream.name, n] for n in learners if (stream.name, n) in taken]
        for seed in {seed for choice in choices for seed in choice.seeds}:
            curves = [
                [choice.curves[choice.seeds.index(seed)]]
                for choice in choices
                if seed in choice.seeds
            ]
            [goals[stream.name, seed]] = best_ends(curves, shifts[stream.name])
    for learner in learners:
        cells = []
        for stream in streams:
            choice = taken.get((stream.name, learner))
            if choice is None:
                cells.append("–")
                continue
            at = shifts[stream.name]
            wanted = [goals[stream.name, seed] for seed in choice.seeds]
            own = median_recovery(choice.curves, at)
            common = median_recovery(choice.curves, at, wanted)
            cells.append(f"{examples_shown(own)} / {examples_shown(common)}")
        if set(cells) != {"–"}:
            rows.append((title(learner), *cells))
    head = ("recovery, examples: to its own end / to the best end", *(s.name for s in streams))
    return table(head, rows)


def settings_table(streams: Sequence[Stream], learners: Sequence[str], taken: Taken) -> str:
    """Return the settings that were best; † stands at the edge of a grid."""
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [*(name for name in OWN if name in OPTIMIZERS), *PEERS]
    parser.add_argument("--results", type=Path, default=Path("quality.jsonl"), metavar="FILE")
    parser.add_argument("--streams", nargs="+", default=NAMES, choices=NAMES, metavar="NAME")
    parser.add_argument("--learners", nargs="+", default=known, choices=known, metavar="NAME")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], metavar="N")
    parser.add_argument("--examples", type=int, default=EXAMPLES, metavar="N")
    parser.add_argument("--source", default="mnist", help="images: mnist or digits [mnist]")
    parser.add_argument("--seconds", type=float, default=math.inf, help="start no run after these")
    parser.add_argument("--report", action="store_true", help="only print the tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    left = 0 if options.report else run_lacking(options)
    print(f"{left} runs left" if left else report(options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
