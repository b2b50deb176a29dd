"""Floors: what a model of classes must beat, ``majority`` and ``no_change``.

``majority`` gives each class the share of its labels so far, with add-one smoothing: after counts
n_c of C open classes, p_c = (n_c + 1) / (Σ n + C). ``no_change`` gives the last known label the
share r = (h + 1) / (t + 2) of the t examples so far at which it was right h times, and spreads
1 - r over the other classes in the proportions of ``majority``. A. Bifet, J. Read, I. Žliobaitė,
B. Pfahringer, G. Holmes, 'Pitfalls in benchmarking data stream classification and how to avoid
them' (2013) compare streams with persistent labels with it.

They see labels when the learner does: every example of a batch is predicted from the batches
before. Weights of examples do not count. All is on the device, and nothing is read back.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

FLOORS = ("majority", "no_change")
"""Names of the floors, as the label ``learner`` of metrics shows them."""
MAJORITY = 0
"""The number of ``majority`` among them."""
UNKNOWN = -1
"""The last label before the first."""


class Floors:
    """The counts that the floors predict from.

    Args:
        opened: number of classes that are open.
        device: where labels will be.
        room: number of classes that there is room for; None for those that are open.
    """

    def __init__(self, opened: int, device: torch.device, room: int | None = None) -> None:
        self.opened = opened
        room = opened if room is None else room
        self.counts = torch.zeros(room, dtype=torch.int64, device=device)
        """Labels so far, by class."""
        self.last = torch.full((), UNKNOWN, dtype=torch.int64, device=device)
        """The last label of the batches so far."""
        self.predicted = torch.zeros((), dtype=torch.int64, device=device)
        """Examples that had a last label before them."""
        self.repeated = torch.zeros((), dtype=torch.int64, device=device)
        """Those of them that had the same label."""
        self._classes = torch.arange(room, device=device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        return {
            "counts": self.counts,
            "last": self.last,
            "predicted": self.predicted,
            "repeated": self.repeated,
        }

    def resize(self, opened: int, room: int) -> None:
        """Continue with more classes.

        Args:
            opened: number of classes that are open, no smaller than before.
            room: number of classes that there is room for, no smaller than before.
        """
        self.opened, device = opened, self.counts.device
        if room > len(self.counts):
            self.counts = pad(self.counts, (0, room - len(self.counts)))
            self._classes = torch.arange(room, device=device)

    def probabilities(self) -> Tensor:
        """Return what each floor predicts for any example of the next batch.

        Returns:
            fp32 [2, classes] in the order of FLOORS; 0 for classes that are closed.
        """
        smoothed = (self.counts + (self._classes < self.opened)).double()
        majority = smoothed / smoothed.sum()
        if self.opened < 2:
            return majority.float().expand(2, -1)
        is_last = self._classes == self.last
        rate = (self.repeated + 1) / (self.predicted + 2)
        others = torch.where(is_last, 0.0, majority)
        spread = others * ((1.0 - rate) / others.sum())
        no_change = torch.where(self.last < 0, majority, torch.where(is_last, rate, spread))
        return torch.stack([majority, no_change]).float()

    def learn(self, labels: Tensor, keep: Tensor) -> None:
        """Take the labels of a batch.

        Args:
            labels: int64 [n], of open classes.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        self.counts.index_add_(0, labels, keep.long().expand(len(labels)))
        knows = keep & (self.last >= 0)
        self.predicted.add_(len(labels) * knows)
        self.repeated.add_((labels == self.last).sum() * knows)
        self.last.copy_(torch.where(keep, labels[-1], self.last))


def losses_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each floor and example, fp32 [2, n], in nats.

    Args:
        probabilities: as `Floors.probabilities` returned them before the batch.
        labels: int64 [n].
    """
    return -probabilities.log().index_select(1, labels)
