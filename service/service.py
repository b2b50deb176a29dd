"""The service without its HTTP side: it starts and stops the model and all that the model needs."""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from service.families import NothingPublishedError, as_begun, as_found, as_published
from service.fold.state import State
from service.log.backlog import Load
from service.log.embedded import EmbeddedServer
from service.log.errors import LogUnavailable, Stopped
from service.model import DRAIN_SECONDS, Model, build_state
from service.monitoring.metrics import Metrics, Reading
from service.monitoring.notify import Notice, Webhook
from service.monitoring.status import Upstream
from service.process import lacks_descriptors
from service.settings import Settings, SettingsError
from service.trainer.choice import AnotherModelError
from service.trainer.store import UnreadableError
from streams.errors import FunnelError

logger = logging.getLogger("funnel")

T = TypeVar("T")

RETRY_SECONDS = 0.5
REPLAY_SECONDS = 5.0
"""Longest wait of a request for the end of a replay, after which the schema is known."""


class Service:
    """The model, and what models will share: the embedded server, metrics, notification.

    Args:
        settings: all of them.
        upstream: returns the status of the learner for which this process takes examples, if it
            has the role predict; None if it takes none.
    """

    def __init__(self, settings: Settings, upstream: Callable[[], Upstream] | None = None) -> None:
        self.settings, self._upstream = settings, upstream
        self.metrics = Metrics(self._read)
        self.url = ""
        """Address of the log's server, once it is known; empty without a log."""
        self.model: Model | None = None
        """None until it has started."""
        self.draining = asyncio.Event()
        """Set when the service begins to stop."""
        self.broken = ""
        """The essential task that failed, and how; the service then stops."""
        self._informing: asyncio.Task[bool] | None = None
        """Waits until the model's schema is known, for all requests that do."""
        self.waits = ""
        """A colon and the reason why the start waits; empty if it does not."""
        self.viewers = 0
        """Open streams of events."""
        self._replaced = asyncio.Event()
        """Set once another model has taken the first one's place, which can happen once."""
        self._following: asyncio.Task[None] | None = None
        """Waits for that."""
        self._server: EmbeddedServer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def _read(self) -> Reading:
        """Return the values for a scrape of the metrics."""
        model = self.model
        is_ready = model is not None and not self.draining.is_set()
        backlog = model.backlog() if model else Load(0, 0)
        name = model.settings.called if model else ""
        return Reading(name, is_ready, model.status if model else None, backlog)

    async def unless_stopped(self, work: Awaitable[T]) -> T:
        """Return the result of ``work``, which is cancelled if the service begins to stop.

        Raises:
            Stopped: the service began to stop first.
        """
        task = asyncio.ensure_future(work)
        draining = asyncio.ensure_future(self.draining.wait())
        try:
            await asyncio.wait({task, draining}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Stopped("the service is stopping")
            return task.result()
        finally:
            task.cancel()
            draining.cancel()

    async def start(self) -> Model:
        """Start everything and return the model, which can answer predictions then.

        Raises:
            LogError, ServerError, DamagedError, ModelError, SettingsError:
                the service cannot be started; the message says why and what to do.
            Stopped: the service began to stop first.
        """
        if not self.settings.never_learns:
            with _writing(self.settings.data_dir):
                self.settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        url = self.url = await self._start_server()
        settings = await self._as_found(url)
        building = asyncio.to_thread(build_state, settings)
        state, notify = await self.unless_stopped(building), self._notify(settings.called)

        def make(settings: Settings, state: State, before: Model | None = None) -> Model:
            observe, delayed = self.metrics.observe_step, self.metrics.observe_delays
            more = before, delayed, self._upstream
            return Model(settings, state, url, observe, notify, *more)

        def start() -> Model:
            try:
                return make(settings, state)
            except AnotherModelError as error:
                taken = settings.taking(error.spec, error.claimed)
                return make(taken, build_state(taken))

        def replace(before: Model, taken: Settings) -> Model:
            state = build_state(taken)
            before.trainer.stop(DRAIN_SECONDS)
            return make(taken, state, before)

        model = self.model = await self._begun(start)
        self.keep_up("the intake", model.intake.run())
        following = self._follow(model, replace)
        self._following = self.keep_up("the watch over the model", following)
        return model

    async def _begun(self, begin: Callable[[], Model]) -> Model:
        """Return a model that a function starts, which can answer predictions then."""

        async def start() -> Model:
            with _writing(self.settings.data_dir):
                return await asyncio.to_thread(begin)

        model = await self._with_descriptors(start)
        self.keep_up("prediction", model.predictor.run())
        return model

    async def _follow(self, model: Model, replace: Callable[[Model, Settings], Model]) -> None:
        """Replace the model by another one if the log is of that."""
        taken = await asyncio.wrap_future(model.trainer.ended)
        if taken is None or self.draining.is_set():
            return
        with contextlib.suppress(Stopped):
            self.model = await self._begun(partial(replace, model, taken))
            self._replaced.set()

    async def newest(self, model: Model) -> Model:
        """Return the model that takes another's place, once it has started; itself if none does.

        Raises:
            Stopped: the service began to stop first.
        """
        ended = model.trainer.ended
        if not ended.done() or ended.result() is None:
            return model
        await self.unless_stopped(self._replaced.wait())
        return self.model or model

    async def informed(self, model: Model) -> Model:
        """Return the model, or the one that takes its place, once it has replayed its log.

        It waits for `REPLAY_SECONDS` at most.

        Raises:
            Stopped: the service began to stop first.
        """
        if self._informing is None or self._informing.done():
            replayed = asyncio.to_thread(model.trainer.replayed.wait, REPLAY_SECONDS)
            self._informing = asyncio.create_task(replayed)
        await self.unless_stopped(asyncio.shield(self._informing))
        return await self.newest(model)

    async def caught_up(self, model: Model) -> Model:
        """Return the model, or the one that takes its place, once it has caught up with its log.

        Raises:
            Stopped: the service began to stop first.
        """
        while True:
            await self.unless_stopped(asyncio.to_thread(model.trainer.caught_up.wait))
            if (newest := await self.newest(model)) is model:
                return model
            model = newest

    async def _with_descriptors(self, start: Callable[[], Awaitable[T]]) -> T:
        """Start a part; while clients hold all descriptors of the process, wait and try again.

        Raises:
            Stopped: the service began to stop first.
        """
        waits = False
        while True:
            try:
                return await start()
            except FunnelError as error:
                if not lacks_descriptors(error):
                    raise
                if not waits:
                    logger.warning("%s; the start waits", error)
                waits = True
            await self.unless_stopped(asyncio.sleep(RETRY_SECONDS))

    async def _as_found(self, url: str) -> Settings:
        """Return the settings with the model that the data folder or the log has, if none is set.

        Raises:
            Stopped: the service began to stop first.
        """
        while True:
            try:
                if self.settings.role == "predict":
                    published = asyncio.to_thread(as_published, self.settings)
                    found = await self.unless_stopped(published)
                elif self.settings.role == "intake":
                    found = await self.unless_stopped(as_begun(self.settings, url))
                else:
                    found = await self.unless_stopped(as_found(self.settings, url))
            except LogUnavailable as error:
                why = "" if self.settings.never_learns else ", since FUNNEL_MODEL is not set"
                if not self.waits:
                    logger.warning("%s; the start waits%s", error, why)
                self.waits = f": {error}"
            except (NothingPublishedError, UnreadableError) as error:
                if not self.settings.never_learns:
                    raise
                if self.waits != f": {error}":
                    logger.warning("%s; the start waits", error)
                self.waits = f": {error}"
            else:
                self.waits = ""
                return found
            await self.unless_stopped(asyncio.sleep(RETRY_SECONDS))

    def _notify(self, model: str) -> Callable[[Notice], object]:
        """Return the function that notifies of a model's drift; any thread may call it."""
        settings = self.settings
        if not settings.drift_webhook:
            return lambda notice: None
        webhook = Webhook(
            settings.drift_webhook,
            self.metrics.webhook_failures.inc,
            model,
            settings.drift_webhook_secret,
            settings.drift_webhook_form,
        )
        self.keep_up("the webhook", webhook.run())
        loop = asyncio.get_running_loop()
        return lambda notice: loop.call_soon_threadsafe(webhook.post, notice)

    async def _start_server(self) -> str:
        """Return the log's address; start a server for it if the settings name none.

        It is empty for a process that only answers, and has no log.
        """
        settings = self.settings
        if (url := settings.redis_url.get_secret_value()) or settings.never_learns:
            return url
        with _writing(settings.data_dir):
            server = EmbeddedServer(settings.data_dir / "log", settings.appendfsync)

        async def start() -> None:
            with _writing(settings.data_dir):
                await self.unless_stopped(server.start())  # it may read a large file

        try:
            await self._with_descriptors(start)
        except BaseException:
            server.abandon()
            raise
        self._server = server
        self.keep_up("the watch over the embedded server", server.watch())
        return server.url

    def keep_up(self, name: str, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Run an essential task until the end; the service stops if it fails before."""
        task = asyncio.create_task(work, name=name)
        task.add_done_callback(self._check)
        self._tasks.append(task)
        return task

    def _check(self, task: "asyncio.Task[None]") -> None:
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.error("%s has ended", task.get_name(), exc_info=error)
        self.broken = f"{task.get_name()} has ended: {error!r}"
        self.draining.set()
        self.give_up()

    def give_up(self) -> None:
        """Answer the requests that wait for the log, before the server cuts them off."""
        if self.model is not None:
            self.model.intake.give_up()

    async def stop(self) -> None:
        """Finish the batch at hand, write a checkpoint, stop the embedded server.

        Another service may use the server. So the service that holds the lease stops it, or the one
        that started it if no other is connected.
        """
        self.draining.set()
        ended = self.model is not None and self.model.trainer.ended.done()
        if ended and self._following is not None:  # another model may be about to start
            await asyncio.wait({self._following})
        model, server = self.model, self._server
        held = model is not None and await model.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if model is not None:
            await model.disconnect()
        if server is not None and (held or await server.is_ours_alone()):
            await server.stop()
        if model is not None:
            model.close()


@contextlib.contextmanager
def _writing(directory: Path) -> Iterator[None]:
    """Turn an error of the file system into one that names the setting.

    Raises:
        SettingsError: there was one.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, FunnelError):
            raise
        raise SettingsError(f"FUNNEL_DATA_DIR: {directory} cannot be used: {error}") from error
