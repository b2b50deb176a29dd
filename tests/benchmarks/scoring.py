"""The cost of scores, floors, calibration and the expert `no_change`: CPU time of a step with and
without each.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.scoring [--rounds 90] [--batch 100]

A step is all that the service does with a batch, by the default pool with calibration, on one
thread of a CPU. All contenders take turns in each round, and the table gives the median over the
rounds of the share of the whole step that a part takes, with its quartiles. CPU time counts, so
that other load on the machine matters less. Where a part is calls of its own, as it is with
compiled loops, the last column gives the median CPU time inside them, which other load moves least.

What bounds the figures. The parts are some dozens of operators and loops on a few numbers each,
which cost their calls, not their numbers: as much with ten inputs as with 784.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle

import numpy as np
import torch
from torch import Tensor

from service.fold.scoring.classification import Scores
from service.fold.scoring.floors import Floors
from service.fold.scoring.regression import NumberFloors, RegressionScores
from service.fold.spec import Spec
from service.fold.state import State
from service.process import keep_freed_memory
from service.settings import Settings
from streams.batch import Batch
from tests.benchmarks.measure import progress, table
from tests.support.states import CPU, step

TURNS = 10
"""Batches per turn: few, so that other load falls on all contenders alike."""
STEPS = 300
"""Steps in which calls are timed."""
SHAPES = {
    "784 inputs, 10 classes": (784, 10, "multiclass"),
    "10 inputs, 2 classes": (10, 2, "multiclass"),
    "10 inputs, regression": (10, 0, "regression"),
    "10 inputs, three quantiles": (10, 0, "quantile:0.1,0.5,0.9"),
}
"""Inputs, classes and task."""


class NoScores(Scores):
    """Scores that take nothing."""

    def add(self, outcomes: Tensor, keep: Tensor) -> None:
        """Do nothing."""

    def update(
        self, probabilities: Tensor, predicted: Tensor, labels: Tensor, losses: Tensor,
        keep: Tensor, known: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Do nothing."""


class NoFloors(Floors):
    """Floors that are not scored and learn nothing."""

    def observe(self, labels: Tensor, scored: Tensor, learned: Tensor) -> Tensor:
        """Return a loss of 0."""
        return torch.zeros(())


class NoNumberScores(RegressionScores):
    """Scores of numbers that take nothing."""

    def update(
        self, predictions: Tensor, std: Tensor | None, targets: Tensor, losses: Tensor, keep: Tensor
    ) -> None:
        """Do nothing."""


class NoNumberFloors(NumberFloors):
    """Floors of numbers that are not scored and learn nothing."""

    def observe(
        self, targets: Tensor, scored: Tensor, learned: Tensor, bounded: Tensor | None = None
    ) -> None:
        """Do nothing."""


def whole(spec: Spec) -> State:
    return State(spec, Settings.model_construct(model="logistic").hyperparameters, CPU)


def without_scores(spec: Spec) -> State:
    state = whole(spec)
    state.served.scores = NoScores(max(1, spec.classes), CPU)
    if state.served.numbers is not None:
        state.served.numbers = NoNumberScores(CPU)
    return state


def without_floors(spec: Spec) -> State:
    state = whole(spec)
    if state.number_floors is None:
        state.floors = NoFloors(spec.classes, CPU)
    else:
        state.number_floors = NoNumberFloors(CPU)
    return state


def without_calibration(spec: Spec) -> State:
    return whole(replace(spec, calibrate=False))


def without_no_change(spec: Spec) -> State:
    return whole(replace(spec, no_change=False))


PARTS: dict[str, Callable[[Spec], State]] = {
    "scores of the model": without_scores,
    "both floors and their scores": without_floors,
    "calibration and its scores": without_calibration,
    "the expert `no_change`": without_no_change,
}


def parts_of(spec: Spec) -> dict[str, Callable[[Spec], State]]:
    """Return the parts that a step has: numbers are not calibrated, and always have the expert."""
    return dict(list(PARTS.items())[:2]) if spec.predicts.is_numeric else PARTS


def batches(features: int, classes: int, size: int) -> list[Batch]:
    """Return batches of a linear relation, of numbers without classes."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(features, max(1, classes)))
    inputs = rng.normal(size=(TURNS, size, features)).astype(np.float32)
    if not classes:
        noise = rng.normal(size=(TURNS, size))
        pairs = zip(inputs, noise, strict=True)
        return [Batch(x, ((x @ weights)[:, 0] + e).astype(np.float32)) for x, e in pairs]
    return [Batch(own, (own @ weights).argmax(axis=1)) for own in inputs]


def microseconds(state: State, found: list[Batch]) -> float:
    """Return the CPU time of a step."""
    turns = cycle(found)
    began = time.thread_time()
    for _ in range(TURNS):
        step(state, next(turns))
    return (time.thread_time() - began) / TURNS * 1e6


class Clock:
    """The CPU time inside calls, by part.

    Args:
        state: whose calls are timed from here on.
    """

    def __init__(self, state: State) -> None:
        self.spent = dict.fromkeys(PARTS, 0)
        """Nanoseconds since the last step, by part."""
        scores, floors, calibration, _ = PARTS
        self._times(state.served.scores, "update", scores)
        if state.number_floors is not None:
            self._times(state.served.numbers, "update", scores)
            self._times(state.number_floors, "observe", floors)
        if state.calibration is None:
            return
        self._times(state.floors, "observe", floors)
        self._times(state.calibration, "learn", calibration)

    def _times(self, owner: object, name: str, part: str) -> None:
        call: Callable[..., object] = getattr(owner, name)

        def timed(*args: object, **more: object) -> object:
            began = time.thread_time_ns()
            found = call(*args, **more)
            self.spent[part] += time.thread_time_ns() - began
            return found

        setattr(owner, name, timed)


def inside(spec: Spec, found: list[Batch]) -> dict[str, str]:
    """Return the median CPU time of a step inside the calls of each part, by part."""
    state = whole(spec)
    clock, spent = Clock(state), []
    for turn in range(4 * TURNS + STEPS):
        clock.spent = dict.fromkeys(PARTS, 0)
        step(state, found[turn % len(found)])
        spent.append(clock.spent)
    each = {part: [one[part] / 1e3 for one in spent[4 * TURNS :]] for part in parts_of(spec)}
    return {
        part: f"{statistics.median(own):,.0f}" if any(own) else "" for part, own in each.items()
    }


def rows_of(name: str, size: int, rounds: int) -> list[tuple[str, ...]]:
    """Return the rows of the table for one of SHAPES."""
    features, classes, task = SHAPES[name]
    spec = replace(
        Settings.model_construct(model="logistic", task=task).spec,
        features=features,
        classes=classes,
    )
    parts = parts_of(spec)
    states = {"": whole(spec)} | {part: make(spec) for part, make in parts.items()}
    found = batches(features, classes, size)
    for state in states.values():
        microseconds(state, found)
    times: dict[str, list[float]] = {part: [] for part in states}
    for number in range(rounds):
        progress(f"{name}: round {number + 1} of {rounds}")
        for part, state in states.items():
            times[part].append(microseconds(state, found))
    progress("")
    rows, calls = [], inside(spec, found)
    for part in parts:
        pairs = list(zip(times[""], times[part], strict=True))
        cost = statistics.median(all_ - rest for all_, rest in pairs)
        low, middle, high = statistics.quantiles((1 - rest / all_ for all_, rest in pairs), n=4)
        step_ = f"{statistics.median(times['']):,.0f}"
        share = f"{middle:.1%} ({low:.1%} to {high:.1%})"
        rows.append((name, step_, part, f"{cost:,.0f}", share, calls[part]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=90)
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    rows = [row for name in SHAPES for row in rows_of(name, args.batch, args.rounds)]
    print(f"torch {torch.__version__}; {args.rounds} rounds\n")
    head = (
        "pool of logistic regressions",
        "step, µs of CPU",
        "part",
        "µs",
        "share of a step",
        "inside, µs",
    )
    print(table((*head,), rows))


if __name__ == "__main__":
    main()
