"""One named model: the intake of its log, its trainer and its predictor."""

import asyncio
import logging
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch.jit._trace import TracerWarning

from funnel.families.rehearsal import rehearse as rehearse_families
from service.export import Exported
from service.families import folder_of, misfit
from service.fold import networks
from service.fold.fused.rehearsal import rehearse as rehearse_steps
from service.fold.networks import BUILT_IN, ModelError, find_device
from service.fold.schema.schema import Schema
from service.fold.snapshot import Evaluator
from service.fold.state import State
from service.log.backlog import Backlog, Learned, Load
from service.log.intake import Intake
from service.log.keys import Inputs
from service.log.lease import Lock
from service.log.log import RedisLog
from service.log.server import connect
from service.monitoring.history import History
from service.monitoring.notify import Notice
from service.monitoring.status import Condition, Role, Status, Upstream
from service.predictor import Predictor
from service.process import SystemClock, memory_bytes
from service.rehearsal import rehearse as rehearse_counts
from service.settings import INPUTS, Settings
from service.trainer.apart.apart import Apart
from service.trainer.apart.follower import Follower
from service.trainer.apart.listener import Listener
from service.trainer.apart.places import Places
from service.trainer.apart.publisher import Publisher
from service.trainer.checkpoint import numerics
from service.trainer.trainer import Trainer
from service.trainer.worker import Worker

logger = logging.getLogger("funnel")

SLOW_SECONDS = 2.0
"""A rehearsal that takes longer compiles; the log mentions that meanwhile."""
LISTEN_SECONDS = 0.25
"""Time between two looks of an intake at the log."""
FOLLOW_SECONDS = 0.1
"""Time between two looks at snapshots in a folder."""
DRAIN_SECONDS = 20.0
"""Longest wait for the trainer to finish and write its last checkpoint."""


class Model:
    """A model that has started: it learns from its log and can answer predictions.

    Args:
        settings: of the service; they name the model.
        state: fresh, as `build_state` returns it.
        url: address of the log's server.
        observe: called with the seconds and the examples of each step.
        drifted: called with each new drift event and recovery, in the trainer's thread.
        before: the model whose place it takes; its trainer has ended.
        delayed: called with the seconds from questions to their labels.
        upstream: returns the status of the learner for which this process takes examples, if it
            has the role predict; None if it takes none.

    Raises:
        DamagedError, LogError, UnreadableError, OSError: the checkpoints cannot be used; the
            message says why and what to do.
    """

    def __init__(
        self,
        settings: Settings,
        state: State,
        url: str,
        observe: Callable[[float, int], None],
        drifted: Callable[[Notice], object],
        before: "Model | None" = None,
        delayed: Callable[[Sequence[float]], object] = lambda _: None,
        upstream: Callable[[], Upstream] | None = None,
    ) -> None:
        self._upstream = upstream
        self._lock: Lock | None
        self.trainer: Trainer | Apart
        self.intake: Intake
        self.history: History
        self.settings, self.spec, self.device = settings, state.spec, str(state.device)
        name = settings.called
        folder = folder_of(settings.data_dir, name)
        compiled = state.served.pool.fused is not None
        if compiled and not settings.never_learns:
            rehearse_once("linear models", rehearse_steps)
        places = Places(settings, folder, numerics(state.device, compiled))
        history = before.history if before else None
        if settings.role == "intake":
            self._lock = None
            log = RedisLog(connect(url), name)
            self.trainer = Listener(state, log, settings, LISTEN_SECONDS, history=history)
        elif settings.role == "predict":
            self._lock = None
            stores = places.snapshots(), places.checkpoints()
            every = FOLLOW_SECONDS if not settings.state else settings.publish_seconds or 1.0
            self.trainer = Follower(
                state, stores, settings, every, history=history, upstream=upstream
            )
        else:
            store = places.checkpoints()
            self._lock = lock = (before and before._lock) or Lock(folder / "lock")
            publisher = None
            if settings.publish_seconds:
                worker = Worker("funnel-snapshots")
                every, clock = settings.publish_seconds, SystemClock()
                publisher = Publisher(places.snapshots(), worker, every, clock)
            self.trainer = Trainer(
                state,
                RedisLog(connect(url), name),
                store,
                lock,
                settings,
                observe,
                drifted,
                history=history,
                delayed=delayed,
                publisher=publisher,
                archive=places.archive(),
            )
        self.history, self.newest = self.trainer.history, self.trainer.newest
        may_be_rows = INPUTS in settings.opens
        self._rows_to_come = settings.taking(None, Inputs.ROWS).declared if may_be_rows else None
        if before:
            self.intake = before.intake
            self.intake.backlog.follow(self._learned)
        else:
            most = Load(settings.max_backlog, settings.max_backlog_bytes or memory_bytes() // 4)
            backlog = Backlog(most, self._learned)
            self.intake = Intake(connect(url) if url else None, name, backlog)
        if state.device.type == "cpu":
            rehearse_once("scores, floors and calibration", rehearse_counts)
        if state.served.families is not None:
            rehearse_once("trees and neighbours", rehearse_families, state.spec.predicts.kind)
        self._learner = state.served
        self.predictor = Predictor(
            Evaluator(state.served), lambda: self.trainer.snapshot, settings.predict_ms / 1000
        )
        try:
            self.trainer.start()
        except BaseException:
            if not before:
                self.close()
            raise

    def _learned(self) -> Learned:
        return self.status.learned if self._upstream is None else self._upstream().learned

    @property
    def status(self) -> Status:
        """The trainer's status."""
        return self.trainer.status

    @property
    def schema(self) -> Schema:
        """The schema of rows after the newest cut; of dense features, an empty one."""
        if self.is_open and self._rows_to_come is not None:
            return self._rows_to_come
        return self.trainer.schema

    @property
    def answers(self) -> bool:
        """True if it answers predictions."""
        return self.settings.role != "intake"

    @property
    def is_open(self) -> bool:
        """True while examples may make it another model (see `service.trainer.choice`)."""
        return self.trainer.is_open

    @property
    def classes(self) -> int:
        """Numbers in an answer: the probabilities of the classes, or mean and deviation."""
        shape, task = self.spec.shape, self.spec.predicts
        if task.is_numeric:
            return max(2, len(task.quantiles))
        return len(self.schema.labels) if shape is None else shape[1]

    @property
    def inputs(self) -> str:
        """The field of a request that holds the examples."""
        return Inputs.ROWS if self.spec.shape is None else Inputs.FEATURES

    def exported(self) -> bytes:
        """Return the model that answers now as safetensors (`service.export.Exported`).

        Raises:
            ExportError: the model has families or columns that cannot be exported.
        """
        snapshot = self.trainer.snapshot
        return Exported.of(snapshot, snapshot.learner or self._learner).to_bytes()

    def backlog(self) -> Load:
        """Estimate what is in the log and not learned yet."""
        return self.intake.backlog.waiting()

    async def stop(self) -> bool:
        """Finish the batch at hand and write a checkpoint; return whether it held the lease."""
        status = self.status
        held = status.role == Role.LEARNER or status.condition == Condition.REPLAYING
        if not await asyncio.to_thread(self.trainer.stop, DRAIN_SECONDS):
            logger.error("the trainer did not end within %g s; replay will catch up", DRAIN_SECONDS)
        return held

    async def disconnect(self) -> None:
        """Disconnect from the log."""
        if self.intake.redis is not None:
            await self.intake.redis.aclose()

    def close(self) -> None:
        """Free the checkpoints for another process."""
        if self._lock is not None:
            self._lock.close()


@cache
def rehearse_once(parts: str, rehearse: Callable[..., str], *given: str) -> None:
    """Choose the code of some parts, once in a process, and log which it is.

    Args:
        parts: in words.
        rehearse: returns what it has chosen, in words.
        given: its arguments.
    """
    began = time.monotonic()
    slow = threading.Timer(
        SLOW_SECONDS, logger.info, ("compiling the loops of %s, once on this disk", parts)
    )
    slow.daemon = True
    slow.start()
    try:
        chosen = rehearse(*given)
    finally:
        slow.cancel()
        slow.join()
    logger.info("%s run in %s (%.1f s)", parts, chosen, time.monotonic() - began)


def build_state(settings: Settings) -> State:
    """Return a fresh state; blocks for about a second.

    Raises:
        ModelError: the settings describe no model that can be built here.
        SettingsError: the file of the schema cannot be read.
    """
    _ = settings.declared
    torch.set_num_threads(settings.threads)
    # `funnel.graphs.traced` ignores it too, but another thread may undo what that sets.
    warnings.filterwarnings("ignore", category=TracerWarning)
    spec, device = settings.spec, find_device(settings.device)
    if spec.schema and spec.model not in BUILT_IN:
        raise ModelError(
            f"model {spec.model!r} takes dense features; a model of rows is {' or '.join(BUILT_IN)}"
        )
    if spec.model == networks.AUTO:
        if settings.device == "auto":
            device = torch.device("cpu")
        if reason := misfit(settings, device):
            raise ModelError(reason)
    if spec.task == "binary" and not spec.schema and spec.classes != 2:
        raise ModelError(
            f"FUNNEL_TASK=binary is for two classes: set FUNNEL_CLASSES=2, not {spec.classes}"
        )
    if spec.table_bits and settings.device == "auto":
        device = torch.device("cpu")  # their table is in its memory
    if spec.model not in BUILT_IN:
        logger.info("trying %s as it will be used, which takes some seconds", spec.model)
    return State(spec, settings.hyperparameters, device)
