"""Drift events: when the served model's error changed, in which direction, and how it recovered.

What is here is part of the fold: it is a function of the reports of the steps, in order, and what
the checkpoint keeps of it brings it back exactly. Only the events' positions, and the times in
them, are of the log and not of the examples; the digest of the state leaves them out.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from service.fold.detectors import MAKERS, MAX_NUMBERS, Detector
from service.fold.report import Report
from service.fold.scores import WINDOW
from service.log.position import Position

MIN_EXAMPLES = 100
"""Batches of fewer are put together: the error rate of a few examples is mostly noise."""
MAX_EVENTS = 100
RECOVERED_WITHIN = 0.02
"""Recovered is what is this close to the accuracy before, or above."""
MAX_PENDING = 1_024
"""Reports of a device that may wait to be read."""
DIRECTIONS = ("worse", "better")
NAMES = tuple(MAKERS)
PREFIX = "drift."
"""Of the names of its tensors."""


@dataclass(frozen=True)
class Event:
    """One detected change."""

    id: int
    """1, 2, …; never used again."""
    detector: str
    direction: str
    """``worse`` or ``better``."""
    examples: int
    """Learned when it was detected."""
    model_version: int
    accuracy_before: float
    accuracy_after: float
    recovery_examples: int | None
    """After a change for worse: examples from the event until the accuracy of the last WINDOW, all
    of them after it, was within RECOVERED_WITHIN of that before; None until then, and for ever if
    the detector sees another change for worse first."""
    position: Position
    """In the log, when it was detected."""

    def __str__(self) -> str:
        return (
            f"{self.detector}: {self.direction}, {self.accuracy_before:.1%} → "
            f"{self.accuracy_after:.1%} after {self.examples} examples"
        )

    @property
    def time(self) -> float:
        """Unix time in seconds at which the entry at the position was added to the log."""
        return self.position.entry.milliseconds / 1000


class Monitor:
    """Watches the error of the served model; used by the thread that learns.

    `events`, `counts` and `last_recovery` may be read in any thread.
    """

    def __init__(self) -> None:
        self._pending: list[tuple[Report, int, int, Position]] = []
        self._reset()

    def _reset(self) -> None:
        self.events: tuple[Event, ...] = ()
        """The newest MAX_EVENTS, in order; never changed in place."""
        self.counts = {(name, direction): 0 for name in NAMES for direction in DIRECTIONS}
        """Of all events that there ever were."""
        self.last_recovery: int | None = None
        self._detectors = {name: Detector(name) for name in NAMES}
        self._correct = self._gathered = 0
        """Of the examples that do not make a number yet."""
        self._recent: deque[tuple[int, int]] = deque()
        """Right ones and examples of the newest batches, just enough for WINDOW examples."""
        self._window = [0, 0]
        """Their sums."""

    def note(self, report: Report, batch: int, examples: int, position: Position) -> None:
        """Take the report of a step; one of a device is kept until `settle`.

        Args:
            report: of the step.
            batch: examples in it.
            examples: learned, with it.
            position: where its cut ends.
        """
        if not isinstance(report.accuracy, Tensor) and not self._pending:
            self._take(float(report.accuracy), float(report.loss), report.version, batch, examples,
                       position)  # fmt: skip
            return
        self._pending.append((report, batch, examples, position))
        if len(self._pending) >= MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Take in what waits; waits for the device if anything does."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        found = torch.stack(
            [torch.as_tensor(x).float() for r, *_ in pending for x in (r.accuracy, r.loss)]
        ).tolist()
        for (report, batch, examples, position), accuracy, loss in zip(
            pending, found[::2], found[1::2], strict=True
        ):
            self._take(accuracy, loss, report.version, batch, examples, position)

    def _take(
        self, accuracy: float, loss: float, version: int, batch: int, examples: int,
        position: Position,
    ) -> None:  # fmt: skip
        if not math.isfinite(loss):
            return  # it was not scored
        correct = round(accuracy * batch)
        self._roll(correct, batch)
        self._measure_recovery(examples)
        self._correct += correct
        self._gathered += batch
        if self._gathered < MIN_EXAMPLES:
            return
        error = 1.0 - self._correct / self._gathered
        self._correct = self._gathered = 0
        for name, detector in self._detectors.items():
            if (change := detector.update(error)) is None:
                continue
            direction = "worse" if change.after > change.before else "better"
            self.counts[name, direction] += 1
            event = Event(
                sum(self.counts.values()), name, direction, examples, version,
                1.0 - change.before, 1.0 - change.after, None, position,
            )  # fmt: skip
            self.events = (*self.events, event)[-MAX_EVENTS:]

    def _roll(self, correct: int, batch: int) -> None:
        self._recent.append((correct, batch))
        self._window[0] += correct
        self._window[1] += batch
        while self._window[1] - self._recent[0][1] >= WINDOW:
            old = self._recent.popleft()
            self._window[0] -= old[0]
            self._window[1] -= old[1]

    def _measure_recovery(self, examples: int) -> None:
        for name in NAMES:
            event = next(
                (e for e in reversed(self.events) if (e.detector, e.direction) == (name, "worse")),
                None,
            )
            if event is None or event.recovery_examples is not None:
                continue
            after = examples - event.examples
            accuracy = self._window[0] / self._window[1]
            if after < self._window[1] or self._window[1] < WINDOW:
                continue
            if accuracy >= event.accuracy_before - RECOVERED_WITHIN:
                recovered = replace(event, recovery_examples=after)
                self.events = tuple(recovered if e is event else e for e in self.events)
                self.last_recovery = after

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of all that is a function of the examples; only when settled."""
        assert not self._pending
        rows = [
            [
                e.id, NAMES.index(e.detector), DIRECTIONS.index(e.direction), e.examples,
                e.model_version, e.accuracy_before, e.accuracy_after,
                -1 if e.recovery_examples is None else e.recovery_examples,
            ]
            for e in self.events
        ]  # fmt: skip
        last = -1 if self.last_recovery is None else self.last_recovery
        whole = [self._correct, self._gathered, last, *self.counts.values()]
        return {
            "drift.events": torch.tensor(rows, dtype=torch.float64).reshape(-1, 8),
            "drift.counts": torch.tensor(whole, dtype=torch.int64),
            "drift.recent": torch.tensor(list(self._recent), dtype=torch.int64).reshape(-1, 2),
        } | {
            f"drift.{name}": torch.tensor(detector.numbers, dtype=torch.float64)
            for name, detector in self._detectors.items()
        }

    def positions(self) -> tuple[Position, ...]:
        """Return where the events are in the log."""
        return tuple(event.position for event in self.events)

    def load(self, tensors: dict[str, Tensor], positions: Sequence[Position]) -> None:
        """Take over what `tensors` and `positions` returned; of nothing, begin anew.

        Raises:
            ValueError: it is something else; nothing is changed then.
        """
        if tensors:
            check(tensors, len(positions))
        self._pending = []
        self._reset()
        if not tensors:
            return
        self._correct, self._gathered, last, *counts = tensors["drift.counts"].tolist()
        self.last_recovery = None if last < 0 else last
        self.counts = dict(zip(self.counts, counts, strict=True))
        for correct, batch in tensors["drift.recent"].tolist():
            self._roll(correct, batch)
        for name in NAMES:
            self._detectors[name] = Detector(name, tensors[f"drift.{name}"].tolist())
        self.events = tuple(
            _event(row, position)
            for row, position in zip(tensors["drift.events"].tolist(), positions, strict=True)
        )


def _event(row: list[float], position: Position) -> Event:
    number, name, direction, examples, version = map(int, row[:5])
    recovery = None if row[7] < 0 else int(row[7])
    return Event(
        number, NAMES[name], DIRECTIONS[direction], examples, version, row[5], row[6], recovery,
        position,
    )  # fmt: skip


def check(tensors: dict[str, Tensor], positions: int) -> None:
    """Check that these can be a monitor's tensors.

    Raises:
        ValueError: they cannot; the message names the first that is wrong.
    """
    wanted = {f"drift.{name}": (torch.float64, 1) for name in NAMES} | {
        "drift.events": (torch.float64, 2),
        "drift.counts": (torch.int64, 1),
        "drift.recent": (torch.int64, 2),
    }
    if tensors.keys() != wanted.keys():
        raise ValueError(f"tensors differ: {sorted(tensors.keys() ^ wanted.keys())[:4]}")
    for name, (dtype, dimensions) in wanted.items():
        tensor = tensors[name]
        if tensor.dtype != dtype or tensor.dim() != dimensions or not tensor.isfinite().all():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, or not finite")
    for name in NAMES:
        numbers = tensors[f"drift.{name}"]
        if len(numbers) > MAX_NUMBERS or ((numbers < 0) | (numbers > 1)).any():
            raise ValueError(f"drift.{name} holds more than {MAX_NUMBERS}, or no error rates")
    events, counts, recent = (tensors[f"drift.{name}"] for name in ("events", "counts", "recent"))
    if events.shape != (positions, 8) or positions > MAX_EVENTS:
        raise ValueError(f"drift.events is {list(events.shape)}, with {positions} positions")
    kinds = torch.tensor([len(NAMES), len(DIRECTIONS)])
    if ((events[:, 1:3] < 0) | (events[:, 1:3] >= kinds)).any():
        raise ValueError("drift.events names a detector or a direction that there is not")
    if len(counts) != 3 + len(NAMES) * len(DIRECTIONS) or (counts[3:] < 0).any():
        raise ValueError(f"drift.counts holds {counts.tolist()}")
    if recent.shape[1] != 2 or (recent[:, 1] < 1).any():
        raise ValueError(f"drift.recent is {list(recent.shape)}, or counts nothing")
