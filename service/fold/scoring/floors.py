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

from collections.abc import Mapping
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from service.fold.scoring.classification import Scores, arrays_of, loops_for

FLOORS = ("majority", "no_change")
"""Names of the floors, as the label ``learner`` of metrics shows them."""
MAX_BALANCE = 100.0
"""Largest weight of an example of a rare class."""
MAJORITY = 0
"""The number of ``majority`` among them."""
UNKNOWN = -1
"""The last label before the first."""
MOST_EXACT = 1 << 24
"""Labels up to which fp32 adds their counts exactly, in any order."""


class Floors:
    """The counts that the floors predict from, and how well they predicted.

    Args:
        opened: number of classes that are open.
        device: where labels will be.
        room: number of classes that there is room for; None for those that are open.
    """

    def __init__(self, opened: int, device: torch.device, room: int | None = None) -> None:
        self.opened = opened
        room = opened if room is None else room
        self._classes = torch.arange(room, device=device)
        self.counts = (self._classes < opened).long()
        """1 and the labels so far, by open class; 0 for closed classes."""
        self.last = torch.full((), UNKNOWN, dtype=torch.int64, device=device)
        """The last label of the batches so far."""
        self.tries = torch.tensor([1, 2], device=device)
        """1 and the examples whose label was the last one before their batch; 2 and all examples
        that had such a label before them."""
        self._take_arrays()
        self.scores = Scores(opened, device, room, len(FLOORS))
        """The scores of the floors, in the order of FLOORS."""

    def _take_arrays(self) -> None:
        """Take the counts as arrays for compiled loops, and room for what they set."""
        self._arrays = arrays_of(self.counts, self.last, self.tries)
        self._room = Room(len(self.counts), 0)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        scores = {f"scores.{k}": v for k, v in self.scores.tensors().items()}
        return scores | {
            "counts": self.counts,
            "last": self.last,
            "tries": self.tries,
        }

    def resize(self, opened: int, room: int) -> None:
        """Continue with more classes.

        Args:
            opened: number of classes that are open, no smaller than before.
            room: number of classes that there is room for, no smaller than before.
        """
        self.scores.resize(opened, room)
        self.counts = pad(self.counts, (0, room - len(self.counts)))
        self.counts[self.opened : opened] = 1
        self._take_arrays()
        self._classes = torch.arange(room, device=self.counts.device)
        self.opened = opened

    def probabilities(self) -> Tensor:
        """Return what each floor predicts for any example of the next batch.

        Returns:
            fp32 [2, classes] in the order of FLOORS; 0 for classes that are closed.
        """
        counts = self.counts.float()
        majority = counts / counts.sum()
        if self.opened < 2:
            return majority.expand(2, -1)
        is_last = self._classes == self.last
        rate = self.tries[0] / self.tries[1]
        others = majority.masked_fill(is_last, 0.0)
        no_change = torch.where(is_last, rate, others * ((1.0 - rate) / others.sum()))
        no_change = no_change / no_change.sum()  # without a last label, it is the majority's
        return torch.stack([majority, no_change])

    def score(self, labels: Tensor, keep: Tensor) -> Tensor:
        """Score the floors on a batch, before they take its labels.

        Args:
            labels: int64 [n], of open classes.
            keep: bool, 0-dim; where it is False nothing changes.

        Returns:
            Cross-entropy of each floor and example, fp32 [2, n], in nats.
        """
        probabilities = self.probabilities().contiguous()
        losses = losses_of(probabilities, labels)
        each = [
            torch.linalg.vector_norm(probabilities, dim=1, keepdim=True),
            probabilities.amax(dim=1, keepdim=True),
            labels.float()[None],
            probabilities.argmax(dim=1, keepdim=True).float(),
        ]
        outcomes = torch.stack([losses, *(one.expand_as(losses) for one in each)], dim=-1)
        self.scores.add(outcomes, keep)
        return losses

    def observe(self, labels: Tensor, scored: Tensor, learned: Tensor) -> Tensor:
        """Score the floors on a batch, then take its labels.

        Args:
            labels: int64 [n], of open classes.
            scored: bool, 0-dim; where it is False no score changes.
            learned: bool, 0-dim; where it is False no count changes.

        Returns:
            Mean cross-entropy of ``majority``, fp32, 0-dim, in nats.
        """
        if (compiled := loops_for(labels)) is not None:
            return self._observe_compiled(compiled, labels, scored, learned)
        losses = self.score(labels, scored)[MAJORITY]
        self.learn(labels, learned)
        return losses.mean()

    def _observe_compiled(
        self, compiled: ModuleType, labels: Tensor, scored: Tensor, learned: Tensor
    ) -> Tensor:
        """Do the same by compiled loops, bit for bit."""
        own, room = labels.numpy(), self._room
        if len(room.majority) != len(own):
            room = self._room = Room(len(self.counts), len(own))
        shares, found = room.shares, room.found
        is_two = len(found[0]) == 2
        divide = compiled.divide_in_two if is_two else compiled.divide
        total = divide(*self._arrays, found)
        if self.opened < 2 or total > MOST_EXACT:
            shares = self.probabilities().contiguous()
            found = shares.numpy()
        elif not is_two:
            compiled.persist(*self._arrays, found, room.no_change.sum().item())
            compiled.scale_down(found, room.no_change.sum().item())
        torch.log(shares, out=room.logs)
        torch.linalg.vector_norm(shares, dim=1, out=room.norms)
        flags = (bool(scored), bool(learned))
        compiled.observe_floors(
            *self.scores.arrays, *self._arrays, found, own, *flags, *room.for_observe
        )
        return room.majority.mean()

    def balance(self) -> Tensor:
        """Return how much an example of each class counts so that all classes count alike.

        An open class has the weight 1 / (C p) where ``majority`` gives it the probability p, at
        most MAX_BALANCE; so the mean weight of an example is about 1.

        Returns:
            fp32 [classes]; 1 for classes that are closed.
        """
        counts = self.counts.float()
        share = counts * (max(self.opened, 1) / counts.sum())
        return torch.where(share > 0.0, share.reciprocal(), 1.0).clamp(max=MAX_BALANCE)

    def learn(self, labels: Tensor, keep: Tensor) -> None:
        """Take the labels of a batch.

        Args:
            labels: int64 [n], of open classes.
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = len(labels)
        self.counts.index_add_(0, labels, keep.long().expand(n))
        repeated = (labels == self.last).sum()
        more = torch.stack([repeated, (self.last >= 0) * n])
        self.tries.add_(more * keep)
        self.last.copy_(labels[-1].where(keep, self.last))


class Room:
    """Room for what compiled loops set for a batch; a tensor and its array are one memory.

    Args:
        classes: number of classes that there is room for.
        n: number of examples.
    """

    def __init__(self, classes: int, n: int) -> None:
        with torch.inference_mode(mode=False):
            self.shares, self.logs = (torch.zeros(len(FLOORS), classes) for _ in range(2))
            self.norms, losses = torch.zeros(len(FLOORS)), torch.zeros(len(FLOORS), n)
        self.found, self.no_change = self.shares.numpy(), self.shares[1 - MAJORITY]
        self.majority = losses[MAJORITY]
        self.for_observe = (self.logs.numpy(), self.norms.numpy(), losses.numpy())


class Level(NamedTuple):
    """How good predictions are."""

    accuracy: float
    """In [0, 1]."""
    log_loss: float
    """In nats."""
    balanced_accuracy: float
    """Mean recall of the classes, in [0, 1]."""


def below(model: Level, floors: Mapping[str, Level], is_balanced: bool = False) -> list[str]:
    """Return in words where a model is worse than a floor, by accuracy and by log loss.

    Args:
        model: of the model.
        floors: of the floors, on the same examples, by name.
        is_balanced: whether examples count as their class is rare. Then accuracy and log loss say
            nothing, as the model trades them for the rare classes, and balanced accuracy counts.
    """
    found = []
    for name, floor in floors.items():
        worse = []
        if is_balanced:
            if model.balanced_accuracy < floor.balanced_accuracy:
                both = f"{model.balanced_accuracy:.1%} against {floor.balanced_accuracy:.1%}"
                found.append(f"below the floor {name}: balanced accuracy {both}")
            continue
        if model.accuracy < floor.accuracy:
            worse.append(f"accuracy {model.accuracy:.1%} against {floor.accuracy:.1%}")
        if model.log_loss > floor.log_loss:
            worse.append(f"log loss {model.log_loss:.4g} against {floor.log_loss:.4g} nats")
        if worse:
            found.append(f"below the floor {name}: {', '.join(worse)}")
    return found


def losses_of(probabilities: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each floor and example, fp32 [2, n], in nats.

    Args:
        probabilities: as `Floors.probabilities` returned them before the batch.
        labels: int64 [n].
    """
    return -probabilities.log().index_select(1, labels)
