"""The status of a trainer: its condition, its progress, its statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from service.fold.drift.events import Event
from service.fold.scoring.classification import ScoreSummary
from service.fold.spec import Hyperparameters
from service.log.backlog import Backlog, Learned
from service.log.position import Progress
from service.monitoring.statistics import Statistics


class Condition(StrEnum):
    """The condition of a trainer."""

    STARTING = "starting"
    STANDBY = "standby"
    """Another process learns from the log."""
    REPLAYING = "replaying"
    LEARNING = "learning"
    WAITING = "waiting"
    """The log cannot be reached, or the checkpoints cannot be read."""
    HALTED = "halted"
    """An operator has to act; the reason says how."""
    STOPPED = "stopped"


class Role(StrEnum):
    """Which part a process plays for a model; the names are those on the wire."""

    LEARNER = "learner"
    STANDBY = "standby"


@dataclass(frozen=True)
class Checkpointing:
    """The checkpoints that a process has written or loaded."""

    ok: int
    failed: int
    newest_at: float | None
    """Monotonic time of the newest, in seconds; before the first, of when learning began."""


@dataclass(frozen=True)
class Drift:
    """The drift events in the served learner's error."""

    events: tuple[Event, ...]
    """The newest, in order."""
    counts: Mapping[tuple[str, str], int]
    """Counts of all events so far, by detector and direction."""
    last_recovery: int | None
    """Examples from the last event that the learner recovered from to its recovery."""


@dataclass(frozen=True)
class Status:
    """One trainer at one moment; the trainer replaces it as a whole and never changes it."""

    condition: Condition
    reason: str
    """Why it does not learn; empty while it does."""
    role: Role
    version: int
    """Batches folded into the model."""
    examples: int
    """Examples folded into the model."""
    expects_bytes: bool
    """True if it has learned examples, and all of them with uint8 features."""
    scores: ScoreSummary | None
    """Scores of the served learner: on a CPU after the same batches, otherwise about a second old;
    None before the first."""
    progress: Progress
    hyperparameters: Hyperparameters
    optimizer: Mapping[str, object]
    """Hyperparameters of the served learner's optimizer, as JSON shows them."""
    snapshot_at: float
    """Monotonic time at which the newest snapshot was made, in seconds."""
    checkpoints: Checkpointing
    drift: Drift
    statistics: Statistics | None
    """About a second old; None before the first."""
    mean_entry: float
    mean_bytes: float
    """Examples and bytes in an entry, on recent average; 0 before the first."""
    damaged_entries: int
    """Entries whose checksum did not match, in this process."""

    @property
    def learned(self) -> Learned:
        """The part that an intake needs."""
        progress = self.progress
        added = self.statistics.entries_added if self.statistics else 0
        means = self.mean_entry, self.mean_bytes
        return Learned(progress.position, progress.entries, added, *means)

    def backlog(self) -> int:
        """Estimate the examples in the log that are not learned yet.

        The count of entries is exact, as of the statistics; an entry that is not learned counts as
        ``mean_entry`` examples, or as one before the first was read.
        """
        return Backlog(learned=lambda: self.learned).waiting().examples
