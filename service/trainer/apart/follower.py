"""The follower: it answers with what a trainer publishes, and learns nothing."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from service.fold.snapshot import Snapshot
from service.fold.state import State
from service.fold.task import AUTO
from service.log.extent import Extent
from service.monitoring.history import History
from service.monitoring.statistics import read_statistics
from service.monitoring.status import Condition, Role, Upstream
from service.process import Clock
from service.settings import Settings
from service.trainer.apart.apart import Apart
from service.trainer.replica import Replica
from service.trainer.store import CheckpointStore, UnreadableError, cut_of
from service.trainer.worker import Worker

FOLLOWS = "this process has the role predict: it answers, and another one learns"
"""The reason that a follower gives for not learning."""


class Follower(Apart):
    """Loads the newest of what a trainer writes.

    It never goes back to an earlier state of the same log. While the place cannot be read, it keeps
    what it has.

    Args:
        state: as built; the newest checkpoint is loaded into it.
        stores: where a trainer publishes, and where it keeps its checkpoints; the newest counts.
        settings: of the service.
        every: seconds between two looks at the stores.
        clock: the time.
        workers: makes a worker with a given name.
        history: of the follower whose place it takes; None begins one.
        upstream: returns the status of the learner for which this process takes examples; None if
            it takes none.
    """

    def __init__(
        self,
        state: State,
        stores: Sequence[CheckpointStore],
        settings: Settings,
        every: float,
        clock: Clock | None = None,
        workers: Callable[[str], Worker] = Worker,
        history: History | None = None,
        upstream: Callable[[], Upstream] | None = None,
    ) -> None:
        more = clock, workers, history
        super().__init__(state, settings, Role.PREDICTOR, FOLLOWS, every, *more)
        self._stores, self._upstream = stores, upstream
        choices = settings.declared, settings.declared_policies, settings.opens
        is_recorded = settings.calibrate == AUTO
        self._replica = Replica(state, lambda *_: None, self._clock, *choices, is_recorded)
        self._name = ""
        """Name of the newest state that was read."""

    def _shown(self) -> tuple[Condition, str]:
        if self._upstream is None or self._reason != self._usual:
            return self._condition, self._reason
        condition, reason, _ = self._upstream()
        return condition, reason

    def _look(self) -> None:
        """Load the newest state if it is another one, and publish it."""
        found, failures = list[tuple[str, CheckpointStore]](), list[UnreadableError]()
        for store in self._stores:
            try:
                found.append((store.newest_name(), store))
            except UnreadableError as error:
                failures.append(error)
        if failures and not any(name for name, _ in found):
            raise failures[0]
        name, store = max(found, key=lambda one: one[0])
        replica = self._replica
        if name and name != self._name and (newest := store.newest()) is not None:
            own, self._name = replica.progress, name
            is_ahead = newest.progress.cut > own.cut or newest.progress.log != own.log
            if is_ahead and replica.follow(newest, store.place):
                self._publish()
        self._lag = max(0, cut_of(name) - replica.progress.cut)
        self._read_at = self._clock.monotonic()

    def _publish(self) -> None:
        """Publish a snapshot of the state, and then the status that names its version."""
        state, progress = self._state, self._replica.progress
        self.schema, self.is_open = self._replica.schema, self._replica.is_open
        self.knows_schema = progress.cut > 0
        self._published_at = self._clock.monotonic()
        self.snapshot = Snapshot.of(state)
        self.columns.note(state)
        extent = Extent(progress.log, 0, progress.entries, progress.position.entry, None)
        self._statistics = read_statistics(state, progress, extent)
        status = self._status_at(progress, state.version)
        self._status = replace(status, commands=self._replica.commands)
        self.history.add_point(self._statistics, 0, None)
