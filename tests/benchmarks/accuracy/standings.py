"""How Funnel stands against its peers on each stream, and whether that reaches a target."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tests.benchmarks.accuracy.cells import Found, Scores
from tests.benchmarks.accuracy.plan import (
    ACCURACY,
    CONTENDERS,
    LOSS,
    ONE_BY_ONE,
    SELECTION,
    Contender,
    chosen,
)
from tests.benchmarks.accuracy.study import SOURCES

OWN = "auto"
"""The column that is compared with the peers."""
FIRST, ECE = "first", "ece"
PEERS = {name: one for name, one in CONTENDERS.items() if not one.is_own}


@dataclass(frozen=True)
class Place:
    """A place in a table: a learner at one setting on a stream."""

    setting: str
    scores: dict[int, Scores]
    """By seed; at least one."""

    def values(self, score: str) -> list[float]:
        """Return a score of each seed."""
        return [getattr(own, score) for own in self.scores.values()]

    def mean(self, score: str) -> float:
        """Return the mean of a score over the seeds."""
        return statistics.mean(self.values(score))


def place(
    found: Found, name: str, contender: Contender, batch: int, by: str = ACCURACY
) -> Place | None:
    """Return what has been run of a learner at its setting; None if nothing has.

    Args:
        found: the results, of one length a stream.
        name: of the stream.
        contender: the learner.
        batch: examples a batch.
        by: the score by which its setting was chosen.
    """
    setting = chosen(found, name, contender, batch, by)
    if setting is None:
        return None
    key = name, contender.learner, setting, batch
    run = {
        cell.seed: scores
        for cell, scores in found.items()
        if cell[:4] == key and cell.seed not in SELECTION
    }
    return Place(setting, dict(sorted(run.items()))) if run else None


@dataclass(frozen=True)
class Lead:
    """The lead of Funnel over one peer on one stream, over the seeds that both have run."""

    stream: str
    peer: str
    """Title of its column."""
    own: float
    other: float

    @property
    def margin(self) -> float:
        """Own less other."""
        return self.own - self.other


@dataclass(frozen=True)
class Match:
    """A way to compare: what Funnel waits for, and what its peers wait for."""

    title: str
    own: int
    """Examples in a batch of Funnel."""
    peers: int
    """Examples in a batch of the peers."""

    def batches(self, name: str) -> tuple[int, int]:
        """Return the sizes of batches on a stream; some streams are learned one by one by all."""
        return (1, 1) if name in ONE_BY_ONE else (self.own, self.peers)


EQUAL = (
    Match("all with batches of 100", 100, 100),
    Match("all with batches of 10", 10, 10),
)
AT_ONCE = Match("Funnel with batches of 10, peers one by one", 10, 1)


def leads(found: Found, name: str, match: Match, score: str) -> list[Lead]:
    """Return the leads over each peer that has been run, the smallest first.

    Args:
        found: the results.
        name: of the stream.
        match: what is compared.
        score: a field of `Scores`; of the log loss, the lead is how much less it is.
    """
    own_batch, batch = match.batches(name)
    own = place(found, name, CONTENDERS[OWN], own_batch)
    if own is None:
        return []
    by, sign, taken = (LOSS, -1.0, []) if score == LOSS else (ACCURACY, 1.0, [])
    for peer in PEERS.values():
        other = place(found, name, peer, batch, by)
        seeds = sorted(own.scores.keys() & other.scores.keys()) if other else []
        if other and seeds:
            mine = statistics.mean(sign * getattr(own.scores[seed], score) for seed in seeds)
            theirs = statistics.mean(sign * getattr(other.scores[seed], score) for seed in seeds)
            taken.append(Lead(name, peer.title, mine, theirs))
    return sorted(taken, key=lambda lead: lead.margin)


@dataclass(frozen=True)
class Verdict:
    """Whether a target is reached by what has been run."""

    compared: int
    """Streams."""
    reached: int
    """Streams on which it is reached."""
    worst: Lead | None
    """The smallest lead; None if nothing was compared."""
    word: str
    """``met``, ``missed``, or ``open`` as long as cells that are missing can decide."""


def verdict(
    worst: Sequence[Lead], need: int, level: float = 0.0, floor: float = -math.inf,
    is_strict: bool = False, streams: int = len(SOURCES),
) -> Verdict:  # fmt: skip
    """Return whether a target is reached.

    Args:
        worst: the smallest lead on each stream that was compared.
        need: streams on which the lead has to be at least ``level``.
        level: of the lead.
        floor: below which no lead may be.
        is_strict: whether the lead has to be above the level.
        streams: their number.
    """
    good = [lead.margin > level or (lead.margin == level and not is_strict) for lead in worst]
    least = min(worst, key=lambda lead: lead.margin, default=None)
    failed = len(good) - sum(good)
    if failed > streams - need or (least is not None and least.margin < floor):
        word = "missed"
    elif sum(good) >= need and (len(worst) == streams or floor == -math.inf):
        word = "met"
    else:
        word = "open"
    return Verdict(len(worst), sum(good), least, word)
