"""Runs of equal labels, of which each further example says less.

Experts that only repeat the latest label are right throughout a run, and wrong where it ends. A run
of hundreds would outweigh that end, though it is one event as much as the end is. So an example
that continues a run counts less as soon as the run is longer than chance explains: with L equal
labels before it, each of which has the share q, by

    w = min(1, CHANCE / (L log 1/q)).

Labels that are drawn independently hardly ever make such runs, so there nothing changes.
"""

import torch
from torch import Tensor

from funnel.families.memory import PRIOR_HALF_LIFE
from funnel.families.outcomes import Outcome

CHANCE = 7.0
"""Nats of surprise up to which a run may be chance: about one in a thousand."""


class Runs:
    """The present run, and the shares of the labels.

    Args:
        outcome: of the labels, which are classes.
    """

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.even = outcome.prior()
        """1 for each class that is open, fp32 [C]."""
        self.counts = torch.zeros_like(self.even)
        """Decayed counts of the labels, fp32 [C]."""
        self.present = torch.tensor([-1, 0], device=outcome.device)
        """The latest label, and how many of it came in a row, int64 [2]."""

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {"counts": self.counts, "present": self.present}

    def learn(self, labels: Tensor, keep: Tensor) -> Tensor:
        """Return how much each example of a batch counts, fp32 [n], and learn its labels, in place.

        Args:
            labels: int64 [n].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        label, length = self.present.unbind()
        places = torch.arange(len(labels), device=labels.device)
        changes = torch.cat([(labels[0] != label)[None], labels[1:] != labels[:-1]])
        begins = torch.where(changes, places, -length).cummax(dim=0).values
        before = places - begins
        known = self.counts + self.even
        surprise = before * -(known / known.sum()).log()[labels]
        present = torch.stack([labels[-1], before[-1] + 1])
        fading = 2.0 ** (-len(labels) / PRIOR_HALF_LIFE)
        counts = self.counts * fading + self.outcome.counted(labels, torch.ones_like(surprise))
        self.present.copy_(torch.where(keep, present, self.present))
        self.counts.copy_(torch.where(keep, counts, self.counts))
        return CHANCE / surprise.clamp(min=CHANCE)
