"""The service without its HTTP side: what is started, wired together and stopped in order."""

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import torch

from service.fold.drift import Event
from service.fold.networks import find_device
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.log.embedded import EmbeddedServer
from service.log.intake import Intake
from service.log.lease import Lock
from service.log.log import Log, connect
from service.monitoring.metrics import Metrics
from service.monitoring.webhook import Webhook
from service.predictor import Predictor
from service.settings import Settings, SettingsError
from service.trainer.checkpoint import CheckpointStore, numerics
from service.trainer.pipeline import Cutting
from service.trainer.trainer import Terms, Trainer

logger = logging.getLogger("funnel")

DRAIN_SECONDS = 20.0
"""Longest wait for the learner to finish and write its last checkpoint."""


class StoppedError(RuntimeError):
    """The service was told to stop before it had started."""


class Service:
    """Log, learner, intake and predictor of one model.

    Args:
        settings: all of them.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings, self.metrics = settings, Metrics()
        self.metrics.watch(self)
        self.learner: Trainer | None = None
        self.intake: Intake | None = None
        self.predictor: Predictor | None = None
        self.draining = asyncio.Event()
        """Set when the service begins to stop."""
        self.broken = ""
        """What ended although the service cannot do without; then it stops."""
        self.viewers = 0
        """Open streams of events."""
        self._server: EmbeddedServer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._lock: Lock | None = None
        self._webhook: Webhook | None = None

    @property
    def is_ready(self) -> bool:
        """Whether predictions are served."""
        return self.predictor is not None and not self.draining.is_set()

    @property
    def snapshot(self) -> Snapshot:
        """The newest snapshot; only once the service is ready."""
        assert self.learner is not None
        assert self.learner.snapshot is not None
        return self.learner.snapshot

    def backlog(self) -> int:
        """Estimate the examples in the log that are not learned yet; see `Replica.backlog`."""
        learner, intake = self.learner, self.intake
        if learner is None or intake is None or learner.replica.progress is None:
            return 0
        known = learner.statistics.entries_added if learner.statistics else 0
        return learner.replica.backlog(max(known, intake.added), intake.mean_entry)

    async def start(self) -> None:
        """Start everything; returns when predictions can be served.

        Raises:
            LogError, ServerError, DamagedError, ModelError, SettingsError:
                it cannot be started; the message says why and what to do.
            StoppedError: it was told to stop meanwhile.
        """
        settings = self.settings
        device = find_device(settings.device)
        torch.set_num_threads(settings.threads)
        with _writing(settings.data_dir):
            settings.data_dir.mkdir(parents=True, exist_ok=True)
        building = asyncio.ensure_future(
            asyncio.to_thread(State, settings.spec, settings.hyperparameters, device)
        )
        url = await self._start_server()  # which reads its file meanwhile
        state = await building
        name = settings.model
        loop = asyncio.get_running_loop()
        with _writing(settings.data_dir):
            checkpoints = CheckpointStore(
                settings.data_dir / "checkpoints" / name.replace(":", "-"),
                numerics(device),
                logger.error,
            )
            self._lock = Lock(checkpoints.directory / "lock")
        learner = Trainer(
            state,
            lambda: Log(connect(url), name),
            checkpoints,
            self._lock,
            Cutting(settings.batch_size, settings.max_wait_ms / 1000),
            Terms(
                settings.checkpoint_every_seconds,
                settings.lease_seconds,
                settings.accept_gap,
            ),
            self.metrics.observe_step,
            lambda event: loop.call_soon_threadsafe(self._tell, event),
        )
        if settings.drift_webhook:
            self._webhook = Webhook(settings.drift_webhook, self.metrics.webhook_failures.inc)
            self._keep_up("the webhook", self._webhook.run())
        await asyncio.to_thread(learner.start)
        self.learner = learner
        self.intake = Intake(connect(url), name)
        predictor = Predictor(Evaluator(state.served), lambda: self.snapshot)
        self._keep_up("the way into the log", self.intake.run())
        self._keep_up("prediction", predictor.run())
        self.predictor = predictor

    def _tell(self, event: Event) -> None:
        if self._webhook is not None:
            self._webhook.tell(event.shown())

    async def _start_server(self) -> str:
        """Return the log's address; of a server of the service's own if none is given."""
        settings = self.settings
        if url := settings.redis_url.get_secret_value():
            return url
        with _writing(settings.data_dir):
            self._server = EmbeddedServer(settings.data_dir / "log", settings.appendfsync)
        starting = asyncio.create_task(self._server.start())  # which may read a large file
        draining = asyncio.create_task(self.draining.wait())
        await asyncio.wait({starting, draining}, return_when=asyncio.FIRST_COMPLETED)
        draining.cancel()
        if not starting.done():
            starting.cancel()
            self._server.abandon()
            self._server = None
            raise StoppedError("told to stop while the log was loading")
        with _writing(settings.data_dir):
            await starting
        self._keep_up("the watch over the embedded server", self._server.watch())
        return self._server.url

    def _keep_up(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run what must not end before the service; it stops, and says why, if that does."""

        async def run() -> None:
            try:
                await work
            except Exception as error:
                logger.exception("%s has ended", name)
                self.broken = f"{name} has ended: {error!r}"
                self.draining.set()
                self.give_up()

        self._tasks.append(asyncio.create_task(run()))

    def give_up(self) -> None:
        """Answer those who wait for the log, before the server cuts them off."""
        if self.intake is not None:
            self.intake.give_up()

    async def stop(self) -> None:
        """Finish the batch at hand, write a checkpoint, stop the embedded server."""
        self.draining.set()
        stands_by = self.learner is not None and self.learner.condition == "standby"
        if self.learner is not None and not await asyncio.to_thread(
            self.learner.stop, DRAIN_SECONDS
        ):
            logger.error("the learner did not end within %g s; replay will catch up", DRAIN_SECONDS)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.intake is not None:
            await self.intake.redis.aclose()
        if self._server is not None and not stands_by:
            await self._server.stop()
        if self._lock is not None:
            self._lock.close()
            self._lock = None


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the setting.

    Raises:
        SettingsError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise SettingsError(f"FUNNEL_DATA_DIR: {directory} cannot be used: {error}") from error
