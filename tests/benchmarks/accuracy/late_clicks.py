"""Clicks that come late: negatives that wait, against negatives that are weighted.

    python -m tests.benchmarks.accuracy.late_clicks --examples 40000 --delay exp:2000

Each display of an advertisement is asked before it is learned; its click comes after a delay that
is drawn, and no label comes of the others. A time-out learns what was not clicked in time as a
negative, and so also each click that is later. ``weighted`` learns each display as a negative at
once and its click when that comes, with the weights of `service.trainer.joining.importance`.
"""

import argparse
import heapq
import sys
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from service.log.labels import Result
from service.log.questions import Questions
from service.offline import Offline
from service.settings import load_settings
from service.trainer.joining.examples import Rules
from service.trainer.joining.importance import importance
from streams.delays.delay import Delay
from streams.made.clicks import known
from streams.made.known import NO, YES, Known
from streams.rows.rows import Chunk, Rows, join, merged

BATCH = 100
Probabilities = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """How good the answers were after the first half."""

    log_loss: float
    """Mean, in nats, by the labels that came or come."""
    bias: float
    """Sum of the probabilities of a click divided by the number of clicks."""


@dataclass
class Learning:
    """A model that learns what comes by its rule.

    Args:
        rule: ``true`` learns each label at once, ``weighted`` as above, and a number is a time-out
            after so many examples.
    """

    rule: str
    model: Offline = field(init=False)
    due: list[tuple[float, int, str, float]] = field(default_factory=list)
    """When each example is learned, its number, the label and its weight."""
    rows: list[Rows] = field(default_factory=list)
    given: list[float] = field(default_factory=list)
    """Probabilities of a click."""

    def __post_init__(self) -> None:
        settings = load_settings(
            {"model": "logistic", "schema": "auto", "task": "binary", "table_bits": 12}
        )
        self.model = Offline(settings.spec, settings.hyperparameters)

    def ask(self, batch: Known, delays: Probabilities) -> None:
        """Answer, and note when each example is to be learned."""
        rows, begun = Rows(tuple(Chunk(c.own) for c in batch.rows.chunks)), len(self.given)
        labels = self.model.labels
        answers = np.full((len(batch), 2), 0.5)
        if len(labels) == 2:
            answers = self.model.answer(rows)[1].astype(np.float64)
        no = labels.index(NO) if NO in labels else 0
        questions = Questions(rows, b"", np.zeros(0), answers.astype(np.float16), 1)
        rules = Rules(None, lambda _: None, labels)
        for k, delay in enumerate(delays.tolist()):
            number = begun + k
            self.rows.append(batch.rows.part(k, k + 1))
            self.given.append(1 - float(answers[k, no]))
            is_click = bool(batch.answers[k])
            if self.rule == "true":
                self._add(number, number, YES if is_click else NO)
            elif self.rule == "weighted":
                weight = importance(Result.ASSUMED, questions, k, NO, rules)
                self._add(number, number, NO, weight)
                if is_click:
                    weight = importance(Result.CORRECTED, questions, k, NO, rules)
                    self._add(number + delay, number, YES, weight)
            elif is_click and delay < float(self.rule):
                self._add(number + delay, number, YES)
            else:
                self._add(number + float(self.rule), number, NO)

    def _add(self, at: float, number: int, label: str, weight: float = 1.0) -> None:
        heapq.heappush(self.due, (at, number, label, weight))

    def learn(self) -> None:
        """Learn whole batches of what has come."""
        ready: list[tuple[float, int, str, float]] = []
        while self.due and self.due[0][0] < len(self.given):
            ready.append(heapq.heappop(self.due))
        whole = len(ready) - len(ready) % BATCH
        for one in ready[whole:]:
            heapq.heappush(self.due, one)
        for start in range(0, whole, BATCH):
            part = ready[start : start + BATCH]
            rows = merged(join([self.rows[number] for _, number, *_ in part]))
            labels = pa.array([label for *_, label, _ in part], pa.string())
            weights = np.array([weight for *_, weight in part], np.float32)
            self.model.learn(Rows((Chunk(rows.chunks[0].own, labels, weights),)))


def compare(rules: tuple[str, ...], delay: str, examples: int, seed: int = 0) -> list[Outcome]:
    """Return the outcome of each rule on one stream.

    Args:
        rules: see `Learning`.
        delay: of clicks, in examples, as ``--delay`` gives it.
        examples: of the stream.
        seed: of the stream and of the delays.
    """
    learning, draws = [Learning(rule) for rule in rules], Delay.parse(delay).draws(seed)
    clicked: list[bool] = []
    for batch in known(BATCH, seed, examples):
        clicked += batch.answers.tolist()
        delays = draws.next([YES if own else NO for own in batch.answers])
        for one in learning:
            one.ask(batch, delays)
            one.learn()
    half = examples // 2
    right = np.array(clicked)[half:]
    found = []
    for one in learning:
        p = np.clip(np.array(one.given)[half:], 1e-7, 1 - 1e-7)
        losses = -np.log(np.where(right, p, 1 - p))
        found.append(Outcome(float(losses.mean()), float(p.sum() / right.sum())))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=40_000)
    parser.add_argument("--delay", default="exp:2000")
    parser.add_argument("--rules", default="true,1000,2000,10000,weighted")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rules = tuple(options.rules.split(","))
    outcomes = compare(rules, options.delay, options.examples, options.seed)
    print("| negatives | log loss | predicted / true clicks |\n|---|---|---|")
    for rule, one in zip(rules, outcomes, strict=True):
        print(f"| {rule} | {one.log_loss:.4f} | {one.bias:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
