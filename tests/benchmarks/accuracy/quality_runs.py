"""One run of a learner on a stream, and the file of results of `tests.benchmarks.quality`."""

import functools
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from service.commands.comparisons.evaluation import Served, as_inputs, standardized
from service.commands.comparisons.tally import Tally
from service.settings import Settings, load_settings
from streams.batch import Batch
from streams.peers.peers import PEERS
from streams.prequential import Curve, Learner, curve, prequential
from streams.sources.catalog import Stream

AUTO = "auto"
"""The learner of all families."""
OWN = {
    AUTO: "**Funnel, all families**", "pool": "**Funnel, the pool**", "funnel": "**Funnel, one**",
}  # fmt: skip
BATCH = 100
BEHIND = 0.02
"""Points below its learner's best on the first seed from which a setting is not run again."""


class Key(NamedTuple):
    """The key of a run in the results."""

    stream: str
    learner: str
    setting: str
    seed: int
    examples: int


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    accuracy: float
    hits: list[int]
    """Correct answers in each hundred."""
    seconds: float
    """Seconds to learn and answer, on a machine that may have been busy."""
    log_loss: float = math.nan
    """Mean over the stream, in nats; NaN in results of earlier versions."""
    ece: float = math.nan

    @property
    def curve(self) -> Curve:
        """Return the rolling accuracy of `streams.prequential.curve`."""
        return np.array(self.hits) / 100


Results = dict[Key, Result]


def load(path: Path) -> Results:
    """Read the results so far."""
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
    """Return the settings that can still be the best, by their accuracy on the first seed."""
    first = {
        setting: found.get(Key(stream.name, learner, setting, first_seed, stream.examples))
        for setting in settings_of(learner)
    }
    known = {setting: result.accuracy for setting, result in first.items() if result}
    if len(known) < len(first):
        return list(first)
    return [s for s, accuracy in known.items() if accuracy >= max(known.values()) - BEHIND]


class Inputs:
    """The examples of a stream, converted for a learner on the first request."""

    def __init__(self, stream: Stream, seed: int, batch: int = BATCH) -> None:
        self.stream, self.seed, self.batch = stream, seed, batch

    @functools.cached_property
    def batches(self) -> list[Batch]:
        return list(self.stream.batches(self.batch, self.seed))

    @functools.cached_property
    def plain(self) -> list[Batch]:
        return list(as_inputs(self.batches))

    @functools.cached_property
    def standardized(self) -> list[Batch]:
        return list(standardized(self.batches))


def made(learner: str, setting: str, inputs: Inputs) -> tuple[Learner, list[Batch]]:
    """Return a learner with one setting, and the batches in the form that it takes."""
    stream = inputs.stream
    if learner in OWN:
        return Served(own_settings(learner, stream, inputs.batch)), inputs.batches
    peer = PEERS[learner]
    taken = inputs.plain if peer.raw else inputs.standardized
    return peer.settings[setting](stream, inputs.seed), taken


def run(key: Key, inputs: Inputs) -> Result:
    """Evaluate one learner with one setting on one seed of a stream."""
    learner, taken = made(key.learner, key.setting, inputs)
    tally, began = Tally(inputs.stream.classes), time.perf_counter()
    outcomes = prequential(learner, taken, observe=tally.add)
    seconds, scores = time.perf_counter() - began, tally.read()
    hits = np.rint(100 * curve(outcomes)).astype(int).tolist()
    return Result(float(outcomes.mean()), hits, seconds, scores["log_loss"], scores["ece"])


def own_settings(learner: str, stream: Stream, batch: int = BATCH) -> Settings:
    is_auto = learner == AUTO
    return load_settings(
        {
            "model": AUTO if is_auto else "logistic",
            "optimizer": "pool" if is_auto else learner,
            "features": stream.width,
            "classes": stream.classes,
            "batch_size": batch,
            "device": "cpu",
        }
    )
