"""Drift events: when the served model's error changed, in which direction, and how it recovered.

The monitor is part of the fold: it is a function of the reports of the steps, in order, and a
checkpoint restores it exactly. Only the events' positions, and the times in them, depend on the log
and not on the examples; the digest of the state does not cover them.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from service.fold.drift.detectors import MAKERS, Change, Detector
from service.fold.drift.events import DIRECTIONS, Event
from service.fold.drift.excess import NAME as EXCESS
from service.fold.drift.excess import ExcessLoss
from service.fold.report import Report
from service.fold.spec import FOLD_VERSION
from service.log.position import Position
from streams.recovery import WINDOW, goal_so_far, recovery

MIN_EXAMPLES = 100
"""Smaller batches are combined: the error rate of a few examples is mostly noise."""
MAX_EVENTS = 100
MAX_PENDING = 1_024
"""Most reports on a device that may wait to be read."""
NAMES = (*MAKERS, EXCESS)
"""Detectors; a number in a checkpoint names each, so a new one comes last."""
PREFIX = "drift."
"""Prefix of the names of the monitor's tensors."""
COUNTS, EXCESS_TENSOR = PREFIX + "counts", PREFIX + EXCESS
LINEAR = "linear_excess_loss"
LINEAR_TENSOR = PREFIX + LINEAR
"""The same test of the linear experts alone, in the state of a model of all families."""


class Monitor:
    """Detects changes in the error of the served model; used by the thread that learns.

    `events`, `counts` and `last_recovery` may be read in any thread.
    """

    def __init__(self) -> None:
        self.fold_version = FOLD_VERSION
        """Version of the fold that took the steps that are added. Version 1 counted recoveries to
        the end of the window, and did not keep the goal of an earlier dip. Version 2 looked for a
        change only among the newest numbers of a detector. Version 3 did not test the excess
        loss."""
        self._pending: list[tuple[Report, int, int, Position]] = []
        self._reset()

    def _reset(self) -> None:
        self.events: tuple[Event, ...] = ()
        """The newest MAX_EVENTS, in order; never changed in place."""
        self.counts = {(name, direction): 0 for name in NAMES for direction in DIRECTIONS}
        """Counts of all events so far."""
        self.last_recovery: int | None = None
        self._detectors = {name: Detector(name) for name in MAKERS}
        self._excess = ExcessLoss()
        self._linear: ExcessLoss | None = None
        """The same test of the linear experts, where other families answer with them. Memories and
        trees recover from a change in so few examples that their own excess may not show it."""
        self._correct = self._gathered = 0
        """Counts of the examples that do not make a number yet."""
        self._recent: deque[tuple[int, int]] = deque()
        """Correct predictions and examples of the newest batches, just enough for WINDOW."""
        self._window = [0, 0]
        """Their sums."""

    def set_version(self, version: int) -> None:
        """Continue as this version of the fold does; waiting reports are of the version before."""
        if version != self.fold_version:
            self.settle()
            self.fold_version = version

    def note(self, report: Report, batch: int, examples: int, position: Position) -> None:
        """Add the report of a step; a report on a device waits for `settle`.

        Args:
            report: report of the step.
            batch: examples in the batch.
            examples: examples learned, with the batch.
            position: end of the batch's cut.
        """
        if not isinstance(report.accuracy, Tensor) and not self._pending:
            self._take(float(report.accuracy), float(report.loss), float(report.floor),
                       float(report.linear), report.version, batch, examples, position)  # fmt: skip
            return
        self._pending.append((report, batch, examples, position))
        if len(self._pending) >= MAX_PENDING:
            self.settle()

    def settle(self) -> None:
        """Process the waiting reports; this waits for the device if there are any."""
        if not self._pending:
            return
        pending, self._pending = self._pending, []
        found = torch.stack(
            [
                torch.as_tensor(x).float()
                for r, *_ in pending
                for x in (r.accuracy, r.loss, r.floor, r.linear)
            ]
        ).tolist()
        for k, (report, batch, examples, position) in enumerate(pending):
            accuracy, loss, floor, linear = found[4 * k : 4 * k + 4]
            self._take(accuracy, loss, floor, linear, report.version, batch, examples, position)

    def _take(
        self, accuracy: float, loss: float, floor: float, linear: float, version: int, batch: int,
        examples: int, position: Position,
    ) -> None:  # fmt: skip
        if not math.isfinite(loss):
            return  # the batch was not scored
        correct = round(accuracy * batch)
        self._roll(correct, batch)
        self._measure_recovery(examples)
        if self.fold_version >= 4 and math.isfinite(floor):
            change = self._excess.update(loss - floor, correct, batch)
            if math.isfinite(linear):
                self._linear = self._linear or ExcessLoss(LINEAR)
                found = self._linear.update(linear - floor, correct, batch)
                if change or found:
                    self._linear.restart()
                    self._excess.restart()
                change = change or found
            if change is not None:
                self._add(EXCESS, "worse", change, examples, version, position)
        self._correct += correct
        self._gathered += batch
        if self._gathered < MIN_EXAMPLES:
            return
        error = 1.0 - self._correct / self._gathered
        self._correct = self._gathered = 0
        for name, detector in self._detectors.items():
            if (change := detector.update(error, self.fold_version)) is None:
                continue
            direction = "worse" if change.rise > 0 else "better"
            self._add(name, direction, change, examples, version, position)

    def _add(
        self, name: str, direction: str, change: Change, examples: int, version: int,
        position: Position,
    ) -> None:  # fmt: skip
        """Add an event; the change is that of the error rate."""
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
        seen = self._window[1]
        for event in filter(None, map(self._newest_fall, NAMES)):
            if event.recovery_examples is not None or examples - event.examples < seen:
                continue
            point = (examples, self._window[0] / seen)
            is_old = self.fold_version == 1
            goal = event.accuracy_before if is_old else self._goal(event)
            taken = recovery([point], event.examples, examples, goal)
            if taken is not None:
                self.last_recovery = examples - event.examples if is_old else taken
                recovered = replace(event, recovery_examples=self.last_recovery)
                self.events = tuple(recovered if e is event else e for e in self.events)

    def _newest_fall(self, detector: str) -> Event | None:
        falls = (e for e in reversed(self.events) if e.detector == detector and e.is_fall)
        return next(falls, None)

    def _goal(self, event: Event) -> float:
        """Return the accuracy to recover to: before the event, or before the dip it lies in."""
        goal, earlier = event.accuracy_before, None
        for fall in self.events:
            if fall.detector == event.detector and fall.is_fall and fall.id <= event.id:
                since = 0 if earlier is None else fall.examples - earlier.examples
                is_open = earlier is not None and earlier.recovery_examples is None
                goal = goal_so_far(fall.accuracy_before, goal if is_open else None, since)
                earlier = fall
        return goal

    def tensors(self) -> dict[str, Tensor]:
        """Return a copy of all that is a function of the examples; call `settle` first."""
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
        named = {
            "events": torch.tensor(rows, dtype=torch.float64).reshape(-1, 8),
            "counts": torch.tensor(whole, dtype=torch.int64),
            "recent": torch.tensor(list(self._recent), dtype=torch.int64).reshape(-1, 2),
        }
        for name, detector in self._detectors.items():
            named[name] = torch.tensor(detector.numbers, dtype=torch.float64)
        named |= self._excess.tensors()
        if self._linear is not None:
            named |= self._linear.tensors()
        return {PREFIX + k: v for k, v in named.items()}

    def positions(self) -> tuple[Position, ...]:
        """Return the events' positions in the log."""
        return tuple(event.position for event in self.events)

    def load(self, tensors: dict[str, Tensor], positions: Sequence[Position]) -> None:
        """Restore what `tensors` and `positions` returned; if there are no tensors, start afresh.

        If they are of an earlier version, which had no test of the excess loss, that begins now.

        Raises:
            ValueError: they are not those of a monitor; nothing is changed then.
        """
        if tensors:
            check(tensors, len(positions))
        self._pending = []
        self._reset()
        if not tensors:
            return
        self._correct, self._gathered, last, *counts = tensors[COUNTS].tolist()
        self.last_recovery = None if last < 0 else last
        self.counts |= dict(zip(self.counts, counts, strict=False))
        for correct, batch in tensors["drift.recent"].tolist():
            self._roll(correct, batch)
        for name in MAKERS:
            self._detectors[name] = Detector(name, tensors[f"drift.{name}"].tolist())
        if EXCESS_TENSOR in tensors:
            blocks = tensors[f"{EXCESS_TENSOR}.blocks"].tolist()
            self._excess = ExcessLoss.load(tensors[EXCESS_TENSOR].tolist(), blocks)
        if LINEAR_TENSOR in tensors:
            blocks = tensors[f"{LINEAR_TENSOR}.blocks"].tolist()
            self._linear = ExcessLoss.load(tensors[LINEAR_TENSOR].tolist(), blocks, LINEAR)
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
    """Check that these are a monitor's tensors, in form; a checkpoint's digest covers the values.

    Args:
        tensors: by name, as `Monitor.tensors` returns them.
        positions: number of the events' positions.

    Raises:
        ValueError: they are not; the message names the first that is wrong.
    """
    wanted = Monitor().tensors()
    if EXCESS_TENSOR not in tensors:
        wanted = {k: v for k, v in wanted.items() if not k.startswith(EXCESS_TENSOR)}
        wanted[COUNTS] = wanted[COUNTS][: -len(DIRECTIONS)]
    if LINEAR_TENSOR in tensors:
        wanted |= {PREFIX + k: v for k, v in ExcessLoss(LINEAR).tensors().items()}
    if tensors.keys() != wanted.keys():
        raise ValueError(f"tensors differ: {sorted(tensors.keys() ^ wanted.keys())[:4]}")
    for name, own in wanted.items():
        tensor = tensors[name]
        form = (tensor.dtype, tensor.dim(), tensor.shape[1:])
        if form != (own.dtype, own.dim(), own.shape[1:]) or not tensor.isfinite().all():
            raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)}, or not finite")
    counts, events = tensors[COUNTS], tensors["drift.events"]
    if len(counts) != len(wanted[COUNTS]) or len(events) != positions:
        raise ValueError(f"drift.counts holds {counts.tolist()}, with {positions} positions")
    kinds = torch.tensor([len(NAMES), len(DIRECTIONS)])
    if ((events[:, 1:3] < 0) | (events[:, 1:3] >= kinds)).any():
        raise ValueError("drift.events names an unknown detector or direction")
    for name in (EXCESS_TENSOR, LINEAR_TENSOR):
        if name in tensors:
            ExcessLoss.load(tensors[name].tolist(), tensors[f"{name}.blocks"].tolist())
    for name in MAKERS:
        if ((tensors[f"drift.{name}"] < 0) | (tensors[f"drift.{name}"] > 1)).any():
            raise ValueError(f"drift.{name} holds numbers that are not error rates")
