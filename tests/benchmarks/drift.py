"""The events that the drift detectors report on the streams, and the cost of an update.

python -m tests.benchmarks.drift --streams abrupt recurring gradual stationary --seeds 3
"""

import argparse
import time

import numpy as np
import torch

from service.fold.drift.monitor import Monitor
from service.fold.report import Report
from service.fold.state import State
from service.log.position import ORIGIN, Position
from service.settings import Settings
from streams.sources.catalog import get
from tests.support.states import step

HERE = Position(ORIGIN)


def watched(name: str, seed: int, examples: int, source: str) -> tuple[list[str], list[int]]:
    """Return the events of a stream as text, and the examples at which it shifts."""
    defaults = Settings.model_construct()
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", nargs="*", default=["abrupt", "recurring", "stationary"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=60_000)
    parser.add_argument("--source", default="mnist", choices=["mnist", "digits"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{microseconds():.1f} µs per update")
    for name in options.streams:
        for seed in range(options.seeds):
            events, shifts = watched(name, seed, options.examples, options.source)
            print(name, seed, "shifts", shifts[1:], *events, sep="\n  ")


if __name__ == "__main__":
    main()
