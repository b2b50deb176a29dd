"""The status of a trainer: its condition, its progress, its statistics."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from service.fold.drift.events import Event
from service.fold.scoring.classification import ScoreSummary
from service.fold.spec import Hyperparameters
from service.log.backlog import Backlog, Learned
from service.log.cuts import Ordered, pause_of
from service.log.position import Progress
from service.monitoring.statistics import Statistics


class Condition(StrEnum):
    """The condition of a trainer."""

    STARTING = "starting"
    STANDBY = "standby"
    """Another process learns from the log, and this one takes over if that fails."""
    FOLLOWING = "following"
    """Another process learns, and this one only answers."""
    REPLAYING = "replaying"
    LEARNING = "learning"
    WAITING = "waiting"
    """The log cannot be reached, or the checkpoints cannot be read."""
    HALTED = "halted"
    """An operator has to act; the reason says how."""
    PAUSED = "paused"
    """An operator has paused learning; the reason says who and when."""
    STOPPED = "stopped"


class Role(StrEnum):
    """Which part a process plays for a model; the names are those on the wire."""

    LEARNER = "learner"
    STANDBY = "standby"
    PREDICTOR = "predictor"
    """It answers with what the learner publishes, and never learns."""
    INTAKE = "intake"
    """It takes examples for the learner, and neither learns nor answers."""
    NONE = "none"
    """It neither learns nor stands by."""


WITHOUT_ROLE = frozenset({Condition.STARTING, Condition.HALTED, Condition.STOPPED})
"""Conditions in which no process learns, or could take over from one that does."""


@dataclass(frozen=True)
class Checkpointing:
    """The checkpoints that a process has written or loaded."""

    ok: int
    failed: int
    newest_at: float | None
    """Monotonic time of the newest, in seconds; before the first, of when learning began."""


@dataclass(frozen=True)
class Archiving:
    """The archive of the log, as a process has written it."""

    bytes: int
    """Bytes of the archive; 0 before this process has written it."""
    written: int
    """Bytes that this process has written."""
    failed: int
    """Attempts that have failed."""
    newest_at: float
    """Monotonic time at which it was complete up to a checkpoint, in seconds; before that, of the
    start."""


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
class LabelStatus:
    """The questions, and the labels that came later."""

    results: Mapping[str, int]
    """Labels by what became of them (`service.log.labels.Result`)."""
    open_questions: int
    """Questions that wait for their labels."""
    open_bytes: int
    """Bytes of the entries of questions that are not closed."""
    oldest_seconds: float
    """Age of the oldest of these entries; 0 without one."""
    coverage: float | None
    """Share of the questions that are not closed which have a label; None without any."""
    delay_seconds: float | None
    """Median time from a question to its label, of the last 1,000 in this process; None before the
    first."""
    given_accuracy: float | None
    """Share of the answers that were right when they were given; None before the first."""
    rolling_given_accuracy: float | None
    """The same of the last 1,000 that have a label."""
    damaged: int
    """Entries of questions that could not be read, in this process."""
    evicted: int
    """Questions without a label that were closed before their time."""


class Followed(NamedTuple):
    """The place from which a process that only answers reads snapshots."""

    lag: int
    """Cuts from the state that answers to the newest one that is published."""
    read_at: float
    """Monotonic time at which the place was last read, in seconds."""


class Upstream(NamedTuple):
    """How far the learner is for which a process takes examples."""

    condition: Condition
    reason: str
    """Why it does not learn; empty while it does."""
    learned: Learned


@dataclass(frozen=True)
class Status:
    """One trainer at one moment; the trainer replaces it as a whole and never changes it."""

    condition: Condition
    reason: str
    """Why it does not learn; empty while it does."""
    role: Role
    """LEARNER once it has recovered; see `shown_role`."""
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
    archive: Archiving | None
    """None without an archive."""
    drift: Drift
    statistics: Statistics | None
    """About a second old; None before the first."""
    mean_entry: float
    mean_bytes: float
    """Examples and bytes in an entry, on recent average; 0 before the first."""
    damaged_entries: int
    """Entries whose checksum did not match, in this process."""
    labels: LabelStatus
    promoted: str
    """Name of the shadow that was promoted and answers; empty if none does."""
    commands: tuple[Ordered, ...]
    """The newest commands of operators that it has applied."""
    followed: Followed | None = None
    """None for a process that learns, or would."""

    @property
    def shown_role(self) -> Role:
        """The role as users see it, which a process that has halted does not have."""
        return Role.NONE if self.condition in WITHOUT_ROLE else self.role

    @property
    def is_paused(self) -> bool:
        """True if learning is paused, here or where another process learns."""
        return pause_of(self.commands) is not None

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
