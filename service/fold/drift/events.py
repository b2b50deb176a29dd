"""A drift event: one detected change in the predictions of the served model."""

from dataclasses import asdict, dataclass
from typing import Any

from service.log.position import Position

DIRECTIONS = ("worse", "better")
OF_LOSS = ("excess_loss", "linear_excess_loss")
"""Detectors that watch the loss, against that of a floor; the others watch the accuracy."""


@dataclass(frozen=True)
class Event:
    """One detected change."""

    id: int
    """1, 2, …; each is used once."""
    detector: str
    direction: str
    """``worse`` or ``better``."""
    examples: int
    """Examples learned when it was detected."""
    model_version: int
    accuracy_before: float
    accuracy_after: float
    recovery_examples: int | None
    """After a change for the worse, the examples to recover from the event (`streams.recovery`).
    The goal is the accuracy before the event, or before the dip in which it lies. None until then;
    it stays None if the detector finds another change for the worse first."""
    position: Position
    """Position in the log when it was detected."""

    def __str__(self) -> str:
        return (
            f"{self.detector}: {self.direction}, {self.seen}{self.accuracy_before:.1%} → "
            f"{self.accuracy_after:.1%} after {self.examples} examples"
        )

    @property
    def seen(self) -> str:
        """The words before the accuracies in a message: the detector may have watched the loss, and
        the accuracy may even have risen."""
        if self.detector not in OF_LOSS:
            return "accuracy "
        return f"loss {'higher' if self.is_fall else 'lower'} against the floor's, accuracy "

    def shown(self) -> dict[str, Any]:
        """Return the event as JSON shows it."""
        return asdict(self) | {"position": str(self.position), "time": self.time}

    @property
    def is_fall(self) -> bool:
        """True if the error grew."""
        return self.direction == "worse"

    @property
    def time(self) -> float:
        """Unix time in seconds at which the entry at the position was added to the log."""
        return self.position.entry.milliseconds / 1000
