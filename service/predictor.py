"""Gathers concurrent predictions into one forward pass, and divides long ones into several."""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from service.fold.networks import is_of_machine, origin_of
from service.fold.snapshot import Evaluator, Snapshot
from streams.errors import FunnelError
from streams.examples import AnyInputs, joined_inputs, part_of

logger = logging.getLogger("funnel")

GATHER_SECONDS = 0.001
"""Longest time for which the first request waits for others."""
QUIET_TURNS = 2
"""Turns of the event loop without a new request after which none is waited for: a request that has
arrived is read in one turn, and handled in the next."""
GATHER_ROWS = 1024
"""Rows that fill a pass; a larger request is long."""
PART_SECONDS = 0.05
"""Time that a part of a long request should take; other requests wait for no more than one part."""
LEAST_ROWS = 16
"""Rows of the smallest part, unless memory bounds it further."""

Answers = tuple[npt.NDArray[np.int64 | np.float32], npt.NDArray[np.float32]]
"""Labels [n], and answers [n, A] (see `service.fold.snapshot.Evaluator`)."""


class NoPredictionError(FunnelError):
    """The model raises for an example; the message says what.

    Attributes:
        index: the first such example, or None if it raises for none of them alone.
    """

    def __init__(self, message: str, index: int | None) -> None:
        super().__init__(message)
        self.index = index


class PredictionFailed(FunnelError):
    """The machine failed during a prediction, not the model: another try may succeed."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one request."""

    labels: npt.NDArray[np.int64 | np.float32]
    """Classes or numbers, [n]."""
    probabilities: npt.NDArray[np.float32]
    """[n, classes]; where numbers are predicted, their mean and standard deviation, [n, 2], or
    their quantiles, [n, Q]."""
    version: int
    names: tuple[str, ...] | None = None
    """Canonical texts of the classes, in the order of the probabilities; None if labels are their
    numbers."""
    snapshot: Snapshot | None = None
    """The snapshot that has answered."""
    is_fast: bool = False
    """True if the request had waited too long, and the linear experts answered alone."""


@dataclass(frozen=True)
class _Request:
    inputs: AnyInputs
    answer: "asyncio.Future[Prediction]"
    arrived: float
    """Time of the event loop, in seconds."""
    snapshot: Snapshot | None = None
    """The snapshot that is to answer; None for the newest."""

    def fail(self, error: FunnelError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)

    def succeed(self, answers: Answers, snapshot: Snapshot, is_fast: bool = False) -> None:
        if not self.answer.done():
            version, names = snapshot.version, snapshot.names
            self.answer.set_result(Prediction(*answers, version, names, snapshot, is_fast))


@dataclass
class _Long:
    """A long request that is being answered, and the snapshot that answers all of it."""

    request: _Request
    snapshot: Snapshot
    parts: list[Answers] = field(default_factory=list)
    done: int = 0
    """Rows that are answered."""


class Predictor:
    """Answers requests from the newest snapshot, several in one pass.

    While a pass runs, the next requests gather. A long request is answered in parts, and between
    them short ones are answered. A request that is cancelled, or at which the model raises, affects
    no other.

    Args:
        evaluate: computes a pass; a long one runs in another thread.
        newest: returns the newest snapshot.
        budget: seconds that a short request may wait before the linear experts of all families
            answer alone; 0 for any time.
    """

    def __init__(
        self, evaluate: Evaluator, newest: Callable[[], Snapshot], budget: float = 0.0
    ) -> None:
        self._evaluate, self._newest, self._budget = evaluate, newest, budget
        self._waiting: deque[_Request] = deque()
        self._rows = 0
        """Rows of the short requests that wait."""
        self._waiting_long: deque[_Request] = deque()
        self._current: _Long | None = None
        self._part = min(GATHER_ROWS, evaluate.most_rows)
        """Rows of a part, which follow the time that parts take."""
        self._enough = asyncio.Event()
        self._arrived = asyncio.Event()
        self._logged: set[str] = set()

    async def predict(self, inputs: AnyInputs, snapshot: Snapshot | None = None) -> Prediction:
        """Return the prediction for checked inputs.

        Args:
            inputs: the questions.
            snapshot: answers them, in parts; None for the newest.

        Raises:
            NoPredictionError: the model raises for an example.
            PredictionFailed: the machine failed.
        """
        loop = asyncio.get_running_loop()
        request = _Request(inputs, loop.create_future(), loop.time(), snapshot)
        if snapshot is not None or len(inputs) > min(GATHER_ROWS, self._part):
            self._waiting_long.append(request)
        else:
            self._waiting.append(request)
            self._rows += len(inputs)
        self._arrived.set()
        if self._rows >= GATHER_ROWS or self._waiting_long:
            self._enough.set()
        return await request.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        while True:
            await self._arrived.wait()
            await self._gather()
            if requests := self._next():
                await self._answer(requests, self._newest())
            if self._current is None and self._waiting_long:
                request = self._waiting_long.popleft()
                self._current = _Long(request, request.snapshot or self._newest())
            if self._current is not None and await self._finish(self._current):
                self._current = None
            self._note_idle()

    async def _gather(self) -> None:
        """Wait while requests arrive, for a pass of several costs little more than one of one."""
        loop, rows, quiet = asyncio.get_running_loop(), self._rows, 0
        until = loop.time() + GATHER_SECONDS
        while quiet < QUIET_TURNS and not self._enough.is_set() and loop.time() < until:
            await asyncio.sleep(0)
            quiet, rows = (0 if self._rows > rows else quiet + 1), self._rows

    def _next(self) -> list[_Request]:
        """Take short requests that make a pass, in order, without those that are cancelled."""
        taken: list[_Request] = []
        room = min(GATHER_ROWS, self._part)
        while self._waiting and (not taken or len(self._waiting[0].inputs) <= room):
            request = self._waiting.popleft()
            self._rows -= len(request.inputs)
            if not request.answer.done():
                taken.append(request)
                room -= len(request.inputs)
        return taken

    def _note_idle(self) -> None:
        """Wait for requests, or for more of them, unless there are enough for a pass."""
        has_long = bool(self._waiting_long) or self._current is not None
        if self._rows < GATHER_ROWS and not has_long:
            self._enough.clear()
        if not self._waiting and not has_long:
            self._arrived.clear()

    async def _answer(self, requests: list[_Request], snapshot: Snapshot) -> None:
        """Answer requests in one pass; if the model raises, in smaller ones, down to one each."""
        inputs = joined_inputs([request.inputs for request in requests])
        waited = asyncio.get_running_loop().time() - requests[0].arrived
        is_fast = snapshot.families is not None and 0 < self._budget < waited
        if is_fast:
            snapshot = replace(snapshot, families=None)
        try:
            labels, probabilities = await self._pass(snapshot, inputs)
        except Exception as error:  # a user's code may raise anything
            if len(requests) == 1:
                requests[0].fail(await self._reason(error, snapshot, inputs))
                return
            middle = len(requests) // 2
            await self._answer(requests[:middle], snapshot)
            await self._answer(requests[middle:], snapshot)
            return
        start = 0
        for request in requests:
            rows = slice(start, start := start + len(request.inputs))
            request.succeed((labels[rows], probabilities[rows]), snapshot, is_fast)

    async def _finish(self, long: _Long) -> bool:
        """Answer the next part of a long request, and return whether it was the last."""
        request, loop = long.request, asyncio.get_running_loop()
        if request.answer.done():
            return True
        part = part_of(request.inputs, long.done, long.done + self._part)
        began = loop.time()
        try:
            long.parts.append(await self._pass(long.snapshot, part))
        except Exception as error:  # a user's code may raise anything
            request.fail(await self._reason(error, long.snapshot, part, long.done))
            return True
        long.done += len(part)
        if long.done == len(request.inputs):
            labels, probabilities = zip(*long.parts, strict=True)
            joined = np.concatenate(labels), np.concatenate(probabilities)
            request.succeed(joined, long.snapshot)
            return True
        most_rows = self._evaluate.of(long.snapshot).most_rows
        self._adapt(loop.time() - began, most_rows)
        await asyncio.sleep(0)  # a quick pass has run in this thread
        return False

    def _adapt(self, seconds: float, most_rows: int) -> None:
        """Choose the rows of the next part by the time that a whole one has taken."""
        if seconds > 2 * PART_SECONDS:
            self._part = max(min(LEAST_ROWS, self._part), self._part // 2)
        elif seconds < PART_SECONDS / 2:
            self._part = min(most_rows, 2 * self._part)

    async def _pass(self, snapshot: Snapshot, inputs: AnyInputs) -> Answers:
        if self._evaluate.of(snapshot).is_quick(len(inputs)):
            return self._computed(snapshot, inputs)
        return await asyncio.to_thread(self._computed, snapshot, inputs)

    def _computed(self, snapshot: Snapshot, inputs: AnyInputs) -> Answers:
        try:
            labels, probabilities = self._evaluate(snapshot, inputs)
        except SystemExit as error:  # it would end the event loop
            raise RuntimeError(f"the model called sys.exit({error})") from error
        return labels.numpy(), probabilities.numpy()

    async def _reason(
        self, error: Exception, snapshot: Snapshot, inputs: AnyInputs, first: int = 0
    ) -> FunnelError:
        """Return why there is no answer to a request, or to a part of it from ``first`` on."""
        self._log(error)
        if is_of_machine(error):
            return PredictionFailed(f"the machine failed, not the model: {error!r}; try again")
        low, high = 0, len(inputs)
        while high - low > 1:
            middle = (low + high) // 2
            if await self._raises(snapshot, part_of(inputs, low, middle)):
                high = middle
            else:
                low = middle
        alone = len(inputs) == 1 or await self._raises(snapshot, part_of(inputs, low, high))
        return NoPredictionError(
            f"the model raises at {'this example' if alone else 'these examples together'}: "
            f"{error!r}",
            first + low if alone else None,
        )

    async def _raises(self, snapshot: Snapshot, inputs: AnyInputs) -> bool:
        try:
            await self._pass(snapshot, inputs)
        except Exception as error:  # a user's code may raise anything
            self._log(error)
            return True
        return False

    def _log(self, error: Exception) -> None:
        """Log an error once for each line that raises; a client may repeat it at will."""
        if (origin := origin_of(error)) not in self._logged:
            self._logged.add(origin)
            logger.error("a prediction failed: %r", error, exc_info=error)
