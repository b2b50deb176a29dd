"""Prequential scores of classes: every prediction is scored before its label is learned.

A. P. Dawid, 'Statistical theory: the prequential approach' (1984); J. Gama, R. Sebastião,
P. P. Rodrigues, 'On evaluating stream learning algorithms' (2013). `service.fold.scoring.measures`
defines what is measured. Sums, counts and a ring of the newest outcomes are on the device; a step
only adds to them, and `read` and `measure` bring them to the host.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import ModuleType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import pad, softsign

from funnel.compiled import loops
from funnel.graphs.traced import is_tracing
from service.fold.scoring.measures import (
    BINS,
    MAX_CONFUSED,
    SPREAD,
    ByClass,
    Measures,
    measures_of,
    ratio,
)
from streams.recovery import WINDOW

RING = 10_000
"""Outcomes that are kept."""
WINDOWS = (WINDOW, RING)
TOTAL = "total"
EVEN = 1e-5
"""Log odds of two classes that are 0: rounding would tell the classes of even odds apart."""
MOST_PENDING = 8_000
"""Most outcomes that may be in the ring alone; counting many together costs less."""
LOSS, NORM, CONFIDENCE, LABEL, PREDICTED = range(5)
"""Fields of an outcome in the ring: the cross-entropy in nats, the length of the vector of
probabilities, the largest of them, and two numbers of classes."""
UNKNOWN = -1
"""The predicted class of a prediction that was wrong if no more is known of it."""
SURE = 100.0
"""The logit of a probability of 1, and its negative that of 0; fp32 has none farther out."""
LOOPS = "service.fold.scoring.loops"


@dataclass(frozen=True)
class ScoreSummary:
    """Scores on the host; NaN where nothing has been scored yet."""

    scored: int
    correct: int
    accuracy: float
    """Accuracy over all examples, in [0, 1]."""
    loss: float
    """Mean cross-entropy over all examples, in nats."""
    rolling_accuracy: float
    """Accuracy over the last WINDOW examples."""
    rolling_loss: float
    class_recall: tuple[float, ...]
    """Recall over the last WINDOW examples, by class; NaN for a class that is not among them."""
    windows: Mapping[str, Measures] = field(default_factory=dict)
    """By window: ``total``, and the last ``1000`` and ``10000`` examples; `Scores.measure` alone
    computes them."""


class Counts(NamedTuple):
    """Counts of outcomes of K learners."""

    correct: Tensor
    """int64 [K]."""
    sums: Tensor
    """Sums of losses and of Brier scores, fp64 [K, 2]."""
    histogram: Tensor
    """Examples by hit and by bin of the logit, int64 [K, 2, BINS]."""
    by_class: Tensor
    """Examples by class, int64: [K, room, room] by label and predicted class up to MAX_CONFUSED
    classes; with more, [K, 3, room] by label, by predicted class, and by label if right."""


class Scores:
    """Counts of outcomes and a ring of the last RING, of K learners on the same examples.

    A step writes outcomes into the ring. Call `settle` before more than MOST_PENDING examples have
    come since the last call, so that they are counted before others take their places.

    Args:
        classes: number of classes that are open.
        device: where probabilities will be.
        room: number of classes that there is room for; None for those that are open.
        learners: K.
    """

    def __init__(
        self, classes: int, device: torch.device, room: int | None = None, learners: int = 1
    ) -> None:
        self.classes, self.room = classes, classes if room is None else room
        self.scored = torch.zeros((), dtype=torch.int64, device=device)
        self.settled = torch.zeros((), dtype=torch.int64, device=device)
        """Examples in the counts; those after them are in the ring alone."""
        self.counts = Counts(
            torch.zeros(learners, dtype=torch.int64, device=device),
            torch.zeros(learners, 2, dtype=torch.float64, device=device),
            torch.zeros(learners, 2, BINS, dtype=torch.int64, device=device),
            self._blank(learners, device),
        )
        self.ring = torch.zeros(learners, RING, 5, device=device)
        """Outcomes at example index modulo RING. For examples that an earlier version scored, NORM
        and CONFIDENCE are NaN, and all fields are if that version no longer held the outcome."""
        self._slots = torch.arange(RING, device=device)
        self.arrays = arrays_of(self.ring, self.scored)
        """The ring and the number of outcomes as arrays, for compiled loops on a CPU."""

    def _blank(self, learners: int, device: torch.device) -> Tensor:
        rows = self.room if self.has_confusion else 3
        return torch.zeros(learners, rows, self.room, dtype=torch.int64, device=device)

    @property
    def has_confusion(self) -> bool:
        """True if there is a confusion matrix."""
        return self.room <= MAX_CONFUSED

    @property
    def is_binary(self) -> bool:
        """True if exactly two classes are open."""
        return self.classes == 2

    def tensors(self) -> dict[str, Tensor]:
        """Return the state by name, the tensors themselves."""
        own = {"scored": self.scored, "settled": self.settled, "ring": self.ring}
        return own | self.counts._asdict()

    @torch.no_grad()
    def resize(self, classes: int, room: int) -> None:
        """Continue with more classes; what a logit and a hit are changes with their number.

        Args:
            classes: number of classes that are open, no smaller than before.
            room: number of classes that there is room for, no smaller than before.
        """
        self.settle()
        before, self.classes = self.classes, classes
        histogram = self.counts.histogram
        if before == 2 < classes:
            low, high = histogram[..., : BINS // 2].flip(-1), histogram[..., BINS // 2 :]
            confident = high + low.flip(-2)  # a label of 0 is a hit of the lower half
            histogram.copy_(pad(confident, (BINS // 2, 0)))
        elif before < 2 == classes:
            mirrored = histogram.sum(dim=-2).flip(-1)
            histogram.copy_(torch.stack([mirrored, torch.zeros_like(mirrored)], dim=-2))
        if room > self.room:
            self._make_room(room)

    def _make_room(self, room: int) -> None:
        old, had_confusion = self.counts.by_class, self.has_confusion
        self.room = room
        if had_confusion and not self.has_confusion:
            old = torch.stack([old.sum(dim=2), old.sum(dim=1), old.diagonal(dim1=1, dim2=2)], dim=1)
        new = self._blank(len(old), old.device)
        new[:, : old.shape[1], : old.shape[2]] = old
        self.counts = self.counts._replace(by_class=new)

    def update(
        self,
        probabilities: Tensor,
        predicted: Tensor,
        labels: Tensor,
        losses: Tensor,
        keep: Tensor,
        known: Tensor | None = None,
    ) -> None:
        """Add the outcomes of a batch of one learner, in order.

        Args:
            probabilities: fp32 [n, C], 0 for closed classes.
            predicted: predicted labels, int64 [n].
            labels: int64 [n].
            losses: cross-entropy of each example, fp32 [n].
            keep: bool, 0-dim; where it is False nothing changes.
            known: where it is False, an example counts as predicted wrong with certainty; bool [n].
        """
        norms = torch.linalg.vector_norm(probabilities, dim=1)
        if known is None and (compiled := loops_for(labels)) is not None:
            if keep:
                batch = (probabilities.contiguous(), norms, predicted, labels, losses)
                compiled.score(*self.arrays, *(t.numpy() for t in batch))
            return
        confidence = probabilities.amax(dim=1)
        if known is not None:
            norms, confidence = torch.where(known, torch.stack([norms, confidence]), 1.0).unbind()
            predicted = torch.where(known, predicted, UNKNOWN)
        outcomes = torch.stack([losses, norms, confidence, labels.float(), predicted.float()], -1)
        self.add(outcomes[None], keep)

    def add(self, outcomes: Tensor, keep: Tensor) -> None:
        """Add outcomes, in order.

        Args:
            outcomes: fp32 [K, n, 5].
            keep: bool, 0-dim; where it is False nothing changes.
        """
        n = outcomes.shape[1]
        if n <= RING - MOST_PENDING:
            self._write(outcomes, keep)
            return
        self.settle()
        for some in outcomes.split(MOST_PENDING, dim=1):
            self._write(some, keep)
            self.settle()

    def _write(self, outcomes: Tensor, keep: Tensor) -> None:
        n = outcomes.shape[1]
        at = (self.scored + self._slots[:n]).remainder_(RING)
        self.ring.index_copy_(1, at, outcomes.where(keep, self.ring.index_select(1, at)))
        self.scored.add_(keep, alpha=n)

    def settle(self) -> None:
        """Count the outcomes that are in the ring alone."""
        age = (self.scored - 1 - self._slots) % RING
        found = self._count(self.ring, age < self.scored - self.settled)
        for mine, more in zip(self.counts, found, strict=True):
            mine.add_(more)
        self.settled.copy_(self.scored)

    def _count(self, outcomes: Tensor, which: Tensor) -> Counts:
        """Count outcomes.

        Args:
            outcomes: fp32 [K, m, 5].
            which: of them are counted, bool [m]; the others may be NaN.
        """
        fields = outcomes.movedim(2, 0).contiguous()  # logarithms take five times as long otherwise
        losses, norms, confidence, label, guess = torch.where(which, fields, 0.0)
        labels, predicted = label.long(), guess.long()
        predicted = torch.where(predicted < 0, (labels + 1) % max(self.classes, 1), predicted)
        right = (label == guess) & which
        miss = -torch.expm1(-losses.clamp(min=0.0))
        """1 - p of the label."""
        if self.is_binary:
            brier = 2.0 * miss.square()
            own = -losses - miss.log()
            own = torch.where(own.abs() < EVEN, 0.0, own)
            logits, hits = torch.where(labels == 1, own, -own), labels
        else:
            brier = norms.square() - 2.0 * (1.0 - miss) + 1.0
            confidence = confidence.clamp(max=1.0)
            logits, hits = confidence.log() - torch.log1p(-confidence), right.long()
        bins = bins_of(logits.clamp(-SURE, SURE))
        weights = which.long().expand_as(labels)
        by_class = self._blank(len(outcomes), outcomes.device)
        if self.has_confusion:
            _add(by_class, labels * self.room + predicted, weights)
        else:
            places = [labels, predicted + self.room, labels + 2 * self.room]
            _add(by_class, torch.cat(places, 1), torch.cat([weights, weights, right.long()], 1))
        histogram = by_class.new_zeros(len(outcomes), 2, BINS)
        _add(histogram, bins + BINS * hits, weights)
        sums = torch.where(which, torch.stack([losses, brier], dim=1), 0.0)
        return Counts(right.sum(dim=1), sums.double().sum(dim=2), histogram, by_class)

    def read(self, learner: int = 0) -> ScoreSummary:
        """Bring what is cheap to compute to the host; this waits for the device.

        Weights of experts sum to 1 only up to rounding, so the sums of losses may be below 0.

        Args:
            learner: its number.
        """
        return self._brief(learner, int(self.scored))

    def _brief(self, learner: int, scored: int) -> ScoreSummary:
        rows = self._newest(learner, scored, scored - int(self.settled)).numpy()
        correct = int(self.counts.correct[learner]) + int(
            (rows[:, LABEL] == rows[:, PREDICTED]).sum()
        )
        loss = float(self.counts.sums[learner, 0]) + float(rows[:, LOSS].sum(dtype=np.float64))
        rows = self._newest(learner, scored, WINDOW).numpy()
        labels, right = rows[:, LABEL].astype(np.int64), rows[:, LABEL] == rows[:, PREDICTED]
        support = np.bincount(labels, minlength=self.classes)
        hit = np.bincount(labels, weights=right, minlength=self.classes)
        return ScoreSummary(
            scored=scored,
            correct=correct,
            accuracy=correct / scored if scored else math.nan,
            loss=max(loss / scored, 0.0) if scored else math.nan,
            rolling_accuracy=float(right.mean()) if len(rows) else math.nan,
            rolling_loss=max(float(rows[:, LOSS].mean(dtype=np.float64)), 0.0)
            if len(rows)
            else math.nan,
            class_recall=tuple(ratio(hit, support).tolist()),
        )

    def measure(self, learner: int = 0) -> ScoreSummary:
        """Bring all scores to the host, which takes some milliseconds; this waits for the device.

        Args:
            learner: its number.
        """
        scored = int(self.scored)
        brief = self._brief(learner, scored)
        pending = self._counted(self._newest(learner, scored, scored - int(self.settled)))
        counts = (own[learner].cpu() for own in self.counts)
        total = Counts(*(own + more for own, more in zip(counts, pending, strict=True)))
        windows = {TOTAL: self._measures(total, brief.accuracy, brief.loss)}
        newest = self._newest(learner, scored, RING)
        newest = newest[~newest[:, LABEL].isnan()]
        for window in WINDOWS:
            rows = newest[-window:]
            right = (rows[:, LABEL] == rows[:, PREDICTED]).double().mean()
            loss = max(float(rows[:, LOSS].double().mean()), 0.0) if len(rows) else math.nan
            windows[str(window)] = self._measures(self._counted(rows), float(right), loss)
        return replace(brief, windows=windows)

    def _newest(self, learner: int, scored: int, window: int) -> Tensor:
        """Return the newest outcomes, fp32 [at most window, 5], oldest first, on the host."""
        assert window <= RING, "outcomes were not settled in time"
        at = torch.arange(max(0, scored - window), scored) % RING
        return self.ring[learner].cpu()[at]

    def _counted(self, outcomes: Tensor) -> Counts:
        """Return the counts of one learner's outcomes, fp32 [m, 5], as far as all is known."""
        found = self._count(outcomes[None], ~outcomes[:, NORM].isnan())
        return Counts(*(one[0] for one in found))

    def _measures(self, counts: Counts, accuracy: float, loss: float) -> Measures:
        """Return the measures of counts; accuracy and loss may be those of more examples."""
        n, own = int(counts.histogram.sum()), counts.by_class.numpy()[:, : self.classes]
        confusion = own[: self.classes] if self.has_confusion else None
        return measures_of(
            examples=n,
            accuracy=accuracy,
            log_loss=loss,
            brier=max(float(counts.sums[1]) / n, 0.0) if n else math.nan,
            histogram=counts.histogram.numpy(),
            by_class=ByClass(*own) if confusion is None else ByClass.of(confusion),
            confusion=confusion,
            is_binary=self.is_binary,
        )


def bins_of(logits: Tensor) -> Tensor:
    """Return the bins of finite logits, int64; `service.fold.scoring.measures` has their bounds."""
    return ((softsign(logits / SPREAD) + 1.0) * (BINS / 2)).long().clamp_(max=BINS - 1)


def arrays_of(*tensors: Tensor) -> list[npt.NDArray[np.generic]]:
    """Return tensors on a CPU as arrays in the same memory, without those of a GPU."""
    return [tensor.numpy() for tensor in tensors if tensor.is_cpu]


def loops_for(labels: Tensor) -> ModuleType | None:
    """Return the compiled loops for a batch; None where torch operators run instead: on a GPU, in a
    trace, without numba, and for more examples than a ring takes at once.

    Args:
        labels: of the batch, [n].
    """
    if not labels.is_cpu or is_tracing() or len(labels) > RING - MOST_PENDING:
        return None
    return loops(LOOPS)


def _add(counts: Tensor, places: Tensor, weights: Tensor) -> None:
    """Add weights at places of each learner's counts.

    Args:
        counts: int64 [K, …].
        places: in what is a learner's, int64 [K, m].
        weights: int64 [K, m].
    """
    starts = torch.arange(0, counts.numel(), counts[0].numel(), device=counts.device)
    places = places + starts[:, None]
    counts.view(-1).index_add_(0, places.flatten(), weights.flatten())
