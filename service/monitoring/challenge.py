"""An anytime-valid test of whether a shadow is better than the learner that answers.

The stream is divided into blocks. The null hypothesis is that, whatever came before, the shadow has
the lower mean loss in the next block with a probability of at most one half. A gambler bets on each
block that it has, a part of the wealth that the blocks before decide (Krichevsky and Trofimov 1981,
'The performance of universal encoding'). Under the null hypothesis the wealth is a nonnegative
supermartingale that begins at 1, so it ever reaches 1/α with a probability of at most α (Ville's
inequality; Ramdas, Grünwald, Vovk and Shafer 2023, 'Game-theoretic statistics and safe
anytime-valid inference'). The test may be looked at after each block, and no number of examples is
chosen before.
"""

from dataclasses import dataclass

from service.fold.state import SERVED
from service.monitoring.statistics import LearnerStatistics, Statistics

LEVEL = 0.05
"""α: the most likely share of promotions of shadows that are no better; divided by their number."""
BLOCK = 1_000
"""Least examples of a block."""


@dataclass
class _Evidence:
    """The bets on one shadow."""

    wealth: float = 1.0
    blocks: int = 0
    lead: int = 0
    """Blocks that it has won less those that it has lost."""
    difference: float = 0.0
    """Sum of its losses less that of the learner that answers."""

    def note(self, difference: float) -> None:
        """Settle the bet on a block whose losses differ by so much in sum."""
        won = (difference < 0) - (difference > 0)
        share = max(0.0, self.lead / (self.blocks + 1))
        self.wealth *= 1.0 + share * won
        self.blocks += 1
        self.lead += won
        self.difference += difference


class Challenge:
    """Compares shadows with the learner that answers, one block of examples after another.

    The evidence is that of this process and of the present roles: it starts from nothing after a
    restart and after a promotion, which delays a promotion, and makes none likelier.
    """

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, float]] = {}
        self._evidence: dict[str, _Evidence] = {}

    def note(self, statistics: Statistics) -> str | None:
        """Return the shadow to promote now; None if none is better beyond doubt.

        A shadow must have won its bets, and have the lower mean loss over all blocks, too: one that
        is a little better most of the time may be much worse now and then.

        Args:
            statistics: newer than those before.
        """
        now = {name: _total(own) for name, own in statistics.learners.items()}
        scored = now[SERVED][0]
        is_other = now.keys() != self._before.keys() or scored < self._before[SERVED][0]
        if is_other:
            self.begin(now)
            return None
        if scored - self._before[SERVED][0] < BLOCK:
            return None
        losses = {name: loss - self._before[name][1] for name, (_, loss) in now.items()}
        self._before = now
        for name, evidence in self._evidence.items():
            evidence.note(losses[name] - losses[SERVED])
        enough = len(self._evidence) / LEVEL
        better = {
            name: own.difference
            for name, own in self._evidence.items()
            if own.wealth >= enough and own.difference < 0
        }
        return min(better, key=better.__getitem__, default=None)

    def begin(self, now: dict[str, tuple[int, float]] | None = None) -> None:
        """Forget the evidence.

        Args:
            now: examples and sum of losses by learner; None to take those of the next statistics.
        """
        self._before = now or {}
        self._evidence = {name: _Evidence() for name in self._before if name != SERVED}


def _total(own: LearnerStatistics) -> tuple[int, float]:
    """Return how many examples a learner was scored on, and the sum of its losses."""
    scores = own.scores
    return scores.scored, scores.loss * scores.scored if scores.scored else 0.0
