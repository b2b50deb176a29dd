"""Other learners on the same examples: a part of `tests.benchmarks.service`.

They run in this process, without log and HTTP, and their inputs are converted before the clock
starts. None of them standardizes its inputs or scores its predictions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import numpy as np

from tests.benchmarks.measure import Plan, batches, ratios, show, table
from tests.benchmarks.parts.learning import over_http
from tests.benchmarks.parts.load import BYTES

INSTALL = "not installed: pip install -e '.[bench]'"
POOL = "Funnel, the pool, over HTTP: safetensors, 1,000 per request"
SINGLE = "Funnel, a single one, over HTTP in the same way"
SLICE = 10
"""Batches of 100 to learn repeatedly; few, because dictionaries and text are large."""


@dataclass(frozen=True)
class Peer:
    """A learner and its inputs."""

    learn: Callable[[Any], object]
    inputs: Sequence[Any]
    size: int
    """Examples per input."""

    def rate(self, seconds: float) -> float:
        """Return the examples learned per second."""
        for found in self.inputs[:10]:
            self.learn(found)
        examples, began = 0, time.perf_counter()
        for found in cycle(self.inputs):
            self.learn(found)
            examples += self.size
            if (passed := time.perf_counter() - began) >= seconds:
                break
        return examples / passed


def river() -> Peer:
    """Return softmax regression, which learns one dictionary at a time."""
    from river import linear_model, optim

    model = linear_model.SoftmaxRegression(optim.AdaGrad())
    inputs = [
        (dict(enumerate(row)), label)
        for batch in batches(100)[:SLICE]
        for row, label in zip((batch.features / 255).tolist(), batch.labels.tolist(), strict=True)
    ]
    return Peer(lambda found: model.learn_one(*found), inputs, 1)


def scikit_learn() -> Peer:
    """Return one logistic regression per class, which learns batches of 100."""
    from sklearn.linear_model import SGDClassifier

    model, classes = SGDClassifier(loss="log_loss"), np.arange(10)
    inputs = [(b.features.astype(np.float32) / 255, b.labels) for b in batches(100)[:SLICE]]
    return Peer(lambda found: model.partial_fit(*found, classes), inputs, 100)


def vowpal_wabbit() -> Peer:
    """Return one-against-all; lines of text are the fastest input of its binding."""
    from vowpalwabbit import Workspace

    workspace = Workspace("--oaa 10 --quiet")
    inputs = [
        f"{label + 1} | " + " ".join(f"{j}:{x}" for j, x in enumerate(row) if x)
        for batch in batches(100)[:SLICE]
        for row, label in zip(batch.features.tolist(), batch.labels.tolist(), strict=True)
    ]
    return Peer(workspace.learn, inputs, 1)


PEERS = {
    "river SoftmaxRegression(AdaGrad), learn_one": river,
    "scikit-learn SGDClassifier, partial_fit of 100": scikit_learn,
    "Vowpal Wabbit --oaa 10, learn": vowpal_wabbit,
}


def run(plan: Plan) -> str:
    """Measure Funnel and its peers in turn in each round, and return the table."""
    peers: dict[str, Peer] = {}
    missing = []
    for name, make in PEERS.items():
        try:
            peers[name] = make()
        except ImportError:
            missing.append((name, INSTALL, "", ""))
    pool: list[float] = []
    found: dict[str, list[float]] = {name: [] for name in (SINGLE, *peers)}
    for _ in plan.rounds("peers"):
        pool.append(over_http(1000, BYTES, plan.seconds, optimizer="pool"))
        found[SINGLE].append(over_http(1000, BYTES, plan.seconds, optimizer="funnel"))
        for name, peer in peers.items():
            found[name].append(peer.rate(plan.seconds))
    single = found[SINGLE]
    lines = [(POOL, show(pool, ",.0f"), "1", ratios(pool, single))]
    lines += [
        (name, show(rates, ",.0f"), ratios(pool, rates), ratios(single, rates))
        for name, rates in found.items()
    ]
    head = ("learner", "examples/s learned", "the pool is × as fast", "a single Funnel is")
    return table(head, [*lines, *missing])
