"""The listener: it takes examples for a log, and needs to read nothing else."""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import orjson

from service.fold.schema.schema import Schema
from service.fold.spec import UNSET
from service.fold.state import State
from service.fold.task import AUTO
from service.log.errors import CutError, LogError
from service.log.log import RedisLog
from service.log.position import Progress
from service.monitoring.history import History
from service.monitoring.status import Condition, Role
from service.process import Clock
from service.settings import Settings
from service.trainer.apart.apart import Apart
from service.trainer.choice import check_spec
from service.trainer.identity import Identity
from service.trainer.worker import Worker

TAKES = "this process has the role intake: it takes examples, and another one learns"
"""The reason that a listener gives for not learning."""
NOBODY = "no process learns from the log now; what is sent waits in it"


class Listener(Apart):
    """Reads from a log how its model reads examples, and how far learning is.

    Args:
        state: as built; it stays as it is.
        log: of the model.
        settings: of the service.
        every: seconds between two looks at the log.
        clock: the time.
        workers: makes a worker with a given name.
        history: of the listener whose place it takes; None begins one.
    """

    def __init__(
        self,
        state: State,
        log: RedisLog,
        settings: Settings,
        every: float,
        clock: Clock | None = None,
        workers: Callable[[str], Worker] = Worker,
        history: History | None = None,
    ) -> None:
        super().__init__(state, settings, Role.INTAKE, TAKES, every, clock, workers, history)
        self._log, self._loop = log, asyncio.new_event_loop()
        self._is_led = True
        self._schema_text = ""

    def _shown(self) -> tuple[Condition, str]:
        """Return the condition: learning, as far as it is known, unless the log is away."""
        if self._condition != Condition.FOLLOWING:
            return self._condition, self._reason
        if self._reason != self._usual:
            return Condition.WAITING, self._reason
        return Condition.LEARNING, "" if self._is_led else NOBODY

    def _look(self) -> None:
        """Read how the model reads examples, and the newest cut; nothing before the first one."""
        try:
            heard = self._loop.run_until_complete(self._log.heard())
        except CutError as error:
            message = f"the newest cut of {self._log.keys.cuts} cannot be read: {error}"
            raise LogError(message) from error
        self._is_led, self._read_at = heard.is_led, self._clock.monotonic()
        learner = Identity.from_json(heard.learner)
        if heard.cut is None or learner is None:
            return
        spec = learner.spec
        own = replace(self._state.spec, **{name: getattr(spec, name) for name in UNSET})
        if self._settings.calibrate == AUTO:
            own = replace(own, calibrate=spec.calibrate)
        check_spec(own, spec, f"the learner of {self._log.keys.log}", self.is_open)
        self.is_open, self.knows_schema = False, True
        if heard.schema != self._schema_text:
            self._schema_text = heard.schema
            self.schema = Schema.from_json(orjson.loads(heard.schema))
        number, cut = heard.cut
        if number != self._status.progress.cut:
            progress = Progress("", 0, number, cut.position, cut.entries)
            self._status = self._status_at(progress, number)

    def _close(self) -> None:
        super()._close()
        self._loop.run_until_complete(self._log.close())
        self._loop.close()
