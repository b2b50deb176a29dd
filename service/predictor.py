"""Gathers concurrent predictions into one forward pass."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from service.fold.snapshot import Evaluator, Snapshot
from streams.batch import Features, join_features

GATHER_SECONDS = 0.001
"""How long the first request waits for others."""
GATHER_ROWS = 1024
"""Rows that fill a pass; a larger request has one of its own."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one request."""

    labels: npt.NDArray[np.int64]
    """[n]."""
    probabilities: npt.NDArray[np.float32]
    """[n, classes]."""
    version: int


@dataclass(frozen=True)
class _Request:
    features: Features
    answer: "asyncio.Future[Prediction]"


class Predictor:
    """Answers requests from the newest snapshot, several in one pass.

    While a pass runs, the next requests gather. A cancelled request affects no other.

    Args:
        evaluate: computes a pass; a long one runs in another thread.
        newest: returns the newest snapshot.
    """

    def __init__(self, evaluate: Evaluator, newest: Callable[[], Snapshot]) -> None:
        self._evaluate, self._newest = evaluate, newest
        self._waiting: deque[_Request] = deque()
        self._rows = 0
        self._enough = asyncio.Event()
        self._arrived = asyncio.Event()

    async def predict(self, features: Features) -> Prediction:
        """Return the prediction for checked features [n, d]."""
        request = _Request(features, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._rows += len(features)
        self._arrived.set()
        if self._rows >= GATHER_ROWS:
            self._enough.set()
        return await request.answer

    async def run(self) -> None:
        """Answer requests until cancelled."""
        while True:
            await self._arrived.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(GATHER_SECONDS):
                    await self._enough.wait()
            if not (requests := self._next()):
                continue
            snapshot = self._newest()
            joined = join_features([r.features for r in requests])
            try:
                if self._evaluate.is_quick(len(joined)):
                    answers = self._evaluate(snapshot, joined)
                else:
                    answers = await asyncio.to_thread(self._evaluate, snapshot, joined)
            except Exception as error:
                for request in requests:
                    if not request.answer.done():
                        request.answer.set_exception(error)
            else:
                _share(requests, answers, snapshot.version)

    def _next(self) -> list[_Request]:
        """Take requests of up to GATHER_ROWS rows, in order; at least one that is not cancelled."""
        taken: list[_Request] = []
        room = GATHER_ROWS
        while self._waiting and (not taken or len(self._waiting[0].features) <= room):
            request = self._waiting.popleft()
            self._rows -= len(request.features)
            if not request.answer.done():
                taken.append(request)
                room -= len(request.features)
        if self._rows < GATHER_ROWS:
            self._enough.clear()
        if not self._waiting:
            self._arrived.clear()
        return taken


def _share(requests: list[_Request], answers: tuple[Tensor, Tensor], version: int) -> None:
    labels, probabilities = (answer.numpy() for answer in answers)
    start = 0
    for request in requests:
        end = start + len(request.features)
        if not request.answer.done():
            request.answer.set_result(
                Prediction(labels[start:end], probabilities[start:end], version)
            )
        start = end
