"""The events that the drift detectors report on the streams, and the cost of an update.

    python -m tests.benchmarks.drift --streams abrupt recurring gradual stationary --seeds 3
    python -m tests.benchmarks.drift --alarms --recorded FOLDER

The second counts the alarms of the test of the excess loss, and of the charts of columns, where
nothing changes: on noise of several kinds, and on what `tests.benchmarks.calibration` recorded. On
streams of the name churn, half of which is reversed, it shows how many examples after the reversal
it was seen.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from scipy.signal import lfilter

from service.fold.drift.excess import BLOCK, ExcessLoss
from service.fold.drift.monitor import Monitor
from service.fold.report import Report
from service.fold.state import State
from service.log.position import ORIGIN, Position
from service.settings import Settings
from streams.sources.catalog import get
from tests.benchmarks.parts.recorded import Recorded
from tests.support.charts import false_alarms
from tests.support.states import step

HERE = Position(ORIGIN)
Numbers = npt.NDArray[np.float64]


def watched(name: str, seed: int, examples: int, source: str) -> tuple[list[str], list[int]]:
    """Return the events of a stream as text, and the examples at which it shifts."""
    defaults = Settings.model_construct(model="logistic")
    state, stream = (
        State(defaults.spec, defaults.hyperparameters, torch.device("cpu")),
        get(name, examples, source),
    )
    for batch in stream.batches(defaults.batch_size, seed):
        state.drift.note(step(state, batch), len(batch), state.examples, HERE)
    shown = [
        f"{e.detector} {e.direction} {e.examples} (recovered {e.recovery_examples})"
        for e in state.drift.events
    ]
    return shown, [s.example for s in stream.shifts]


def microseconds(steps: int = 9_000) -> float:
    """Return the microseconds per call of `Monitor.note` on a steady error."""
    rates = np.random.default_rng(0).binomial(100, 0.9, steps) / 100
    monitor = Monitor()
    began = time.perf_counter()
    for k, rate in enumerate(rates):
        monitor.note(Report(k, float(rate), 0.5, True), 100, 100 * k, HERE)
    return 1e6 * (time.perf_counter() - began) / steps


NOISES: dict[str, Callable[[np.random.Generator, int], Numbers]] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Student's t, 2.1 degrees of freedom": lambda rng, n: rng.standard_t(2.1, n),
    "log-normal, σ = 1.5": lambda rng, n: np.exp(1.5 * rng.normal(size=n)),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "AR(1), 0.3": lambda rng, n: lfilter([1.0], [1.0, -0.3], rng.normal(size=n)),
    "AR(1), 0.5": lambda rng, n: lfilter([1.0], [1.0, -0.5], rng.normal(size=n)),
    "AR(1), 0.8": lambda rng, n: lfilter([1.0], [1.0, -0.8], rng.normal(size=n)),
}
"""Mean excess losses of blocks, in any unit."""


def alarms(excess: Numbers, size: int) -> list[int]:
    """Return the examples after which batches with this mean excess loss raise an alarm."""
    test = ExcessLoss()
    return [
        size * (k + 1)
        for k, x in enumerate(excess.tolist())
        if test.update(x, size, size) is not None
    ]


def excess_of(found: Recorded) -> Numbers:
    """Return the mean excess loss of each whole batch."""
    whole = len(found.labels) // found.size * found.size
    excess = (found.losses - found.floor)[:whole]
    return np.asarray(excess.reshape(-1, found.size).mean(axis=1))


def count_alarms(folder: Path | None, runs: int = 30) -> None:
    """Print alarms where nothing changes, and after reversals."""
    blocks, rng = 100_000 // BLOCK, np.random.default_rng(0)
    for name, noise in NOISES.items():
        found = sum(len(alarms(noise(rng, blocks), BLOCK)) for _ in range(runs))
        print(f"excess loss, {name}: {found} in {runs * blocks * BLOCK:,} examples", flush=True)
    for columns in (1, 10, 100):
        found = [false_alarms(columns, 10_000, correlation=c) for c in (0.0, 0.3, 0.5)]
        print(f"{columns} columns, 10,000 blocks, correlations 0, 0.3, 0.5: {found}", flush=True)
    for path in sorted(folder.glob("*.npz")) if folder else ():
        recorded = Recorded.load(path)
        found = alarms(excess_of(recorded), recorded.size)
        if "stationary" in recorded.name:
            settled = excess_of(recorded)[2_000 // recorded.size :]
            drawn = (rng.choice(settled, 100_000 // recorded.size) for _ in range(runs))
            again = sum(len(alarms(each, recorded.size)) for each in drawn)
            print(f"{path.stem}, drawn from {len(settled)} batches: {again} in {runs * 100_000:,}")
        if recorded.name == "churn":
            found = [at - len(recorded.labels) // 2 for at in found]
        print(f"{path.stem}, {len(recorded.labels):,} examples: {found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", nargs="*", default=["abrupt", "recurring", "stationary"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--source", default="mnist", choices=["mnist", "digits"])
    parser.add_argument("--alarms", action="store_true", help="count false alarms")
    parser.add_argument("--recorded", type=Path, metavar="FOLDER")
    options = parser.parse_args()
    if options.alarms:
        count_alarms(options.recorded)
        return
    torch.set_num_threads(1)
    print(f"{microseconds():.1f} µs per update")
    for name in options.streams:
        for seed in range(options.seeds):
            events, shifts = watched(name, seed, options.examples, options.source)
            print(name, seed, "shifts", shifts[1:], *events, sep="\n  ")


if __name__ == "__main__":
    main()
