"""A cell of `tests.benchmarks.results`: one learner with one setting on one seed of a stream."""

import hashlib
import json
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import river
import torch

from service.commands.comparisons.tally import Tally
from streams.batch import Labels
from streams.prequential import Probabilities, prequential
from tests.benchmarks.accuracy.quality_runs import Inputs, made

ROOT = Path(__file__).parents[3]
RESULTS = Path(__file__).with_name("results.jsonl")
FIRST = 1_000
"""Examples at the beginning of a stream that are scored on their own."""
SCORED = 100
"""Examples that are scored at once, after the run."""


class Cell(NamedTuple):
    """The key of a result."""

    stream: str
    learner: str
    setting: str
    batch: int
    """Examples that are predicted before their labels are known, and then learned."""
    seed: int
    examples: int


@dataclass(frozen=True)
class Scores:
    """The scores of a cell."""

    accuracy: float
    first: float
    """Accuracy of the first FIRST examples."""
    log_loss: float
    """Nats."""
    ece: float
    """Expected calibration error."""
    seconds: float
    """CPU seconds of the process to answer and to learn."""
    river: str
    """Version, as that of torch."""
    torch: str
    code: str
    """Fingerprint of Funnel's learner."""


Found = dict[Cell, Scores]


def load(path: Path) -> Found:
    """Return the results of a file; empty if there is none."""
    found: Found = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        fields = json.loads(line)
        cell = Cell(*(fields.pop(name) for name in Cell._fields))
        found[cell] = Scores(**fields)
    return found


def run(cell: Cell, inputs: Inputs) -> Scores:
    """Evaluate one learner; what it answers is scored afterwards, and costs it no time."""
    learner, taken = made(cell.learner, cell.setting, inputs)
    answers: list[tuple[Labels, Probabilities | None, Labels]] = []
    began = time.process_time()
    outcomes = prequential(learner, taken, observe=lambda *answer: answers.append(answer))
    seconds, tally = time.process_time() - began, Tally(inputs.stream.classes)
    predicted = np.concatenate([own for own, _, _ in answers])
    chances = np.concatenate([own for _, own, _ in answers if own is not None])
    labels = np.concatenate([own for _, _, own in answers])
    for k in range(0, len(labels), SCORED):
        part = slice(k, k + SCORED)
        tally.add(predicted[part], chances[part], labels[part])
    scores = tally.read()
    return Scores(
        accuracy=round(float(outcomes.mean()), 6),
        first=round(float(outcomes[:FIRST].mean()), 6),
        log_loss=round(scores["log_loss"], 6),
        ece=round(scores["ece"], 6),
        seconds=round(seconds, 2),
        river=river.__version__,
        torch=torch.__version__,
        code=fingerprint(),
    )


@cache
def fingerprint() -> str:
    """Return eight hexadecimal digits of the sources on which Funnel's answers depend."""
    digest = hashlib.sha256()
    for folder in ("funnel", "service/fold"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:8]
