"""Predictions gather into one pass, and come from one snapshot."""

import asyncio
import threading
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
from torch import Tensor

from service.fold.snapshot import Evaluator, Snapshot
from service.predictor import GATHER_ROWS, Predictor
from streams.batch import Features
from tests.support.states import a_batch, a_state, step


class Watched(Evaluator):
    """An evaluator that counts the rows of its passes, and waits until `go` is set."""

    def __init__(self) -> None:
        self.state = a_state()
        for k in range(5):
            step(self.state, a_batch(k))
        super().__init__(self.state.served)
        self.passes: list[int] = []
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def is_quick(self, rows: int) -> bool:
        return self.go.is_set() and super().is_quick(rows)

    def __call__(self, snapshot: Snapshot, features: Features) -> tuple[Tensor, Tensor]:
        self.entered.set()
        self.go.wait(20)
        self.passes.append(len(features))
        return super().__call__(snapshot, features)


def predicting(use: Callable[[Predictor, Watched], Awaitable[None]]) -> None:
    async def run() -> None:
        evaluate = Watched()
        snapshot = Snapshot.of(evaluate.state)
        predictor = Predictor(evaluate, lambda: snapshot)
        running = asyncio.create_task(predictor.run())
        try:
            await use(predictor, evaluate)
        finally:
            evaluate.go.set()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    asyncio.run(run())


def rows(seed: int, n: int = 1) -> Features:
    return a_batch(seed, n).features


def test_each_request_gets_its_own_answer_out_of_one_pass() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        requests = [rows(k, k % 4 + 1) for k in range(40)]
        together = await asyncio.gather(*(predictor.predict(r) for r in requests))
        assert len(evaluate.passes) == 1
        for request, answer in zip(requests, together, strict=True):
            alone = await predictor.predict(request)
            np.testing.assert_array_equal(answer.labels, alone.labels)
            np.testing.assert_allclose(answer.probabilities, alone.probabilities, rtol=1e-5)
            np.testing.assert_allclose(answer.probabilities.sum(1), 1, rtol=1e-5)
            assert answer.version == 5

    predicting(use)


def test_a_pass_is_bounded_in_rows_not_in_requests() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        sizes = [GATHER_ROWS // 2, GATHER_ROWS // 2, 10, GATHER_ROWS * 3, 1]
        await asyncio.gather(*(predictor.predict(rows(0, n)) for n in sizes))
        assert evaluate.passes == [GATHER_ROWS, 10, GATHER_ROWS * 3, 1]

    predicting(use)


def test_a_cancelled_request_harms_no_other() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        evaluate.go.clear()
        under_way = asyncio.create_task(predictor.predict(rows(0)))
        assert await asyncio.to_thread(evaluate.entered.wait, 20)
        waiting = [asyncio.create_task(predictor.predict(rows(k))) for k in range(1, 6)]
        await asyncio.sleep(0)
        for task in (under_way, waiting[0], waiting[3]):
            task.cancel()
        evaluate.go.set()
        results = await asyncio.gather(under_way, *waiting, return_exceptions=True)
        cancelled = [isinstance(r, asyncio.CancelledError) for r in results]
        assert cancelled == [True, True, False, False, True, False]
        assert evaluate.passes == [1, 3]
        assert len((await predictor.predict(rows(9, 4))).labels) == 4

    predicting(use)


def test_a_failed_pass_fails_its_own_requests_alone() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        with pytest.raises(RuntimeError):
            await predictor.predict(np.zeros((1, 99), np.float32))
        assert len((await predictor.predict(rows(0))).labels) == 1

    predicting(use)


def test_uint8_and_float_requests_gather_too() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        pixels = np.full((1, 6), 51, np.uint8)
        both = await asyncio.gather(
            predictor.predict(pixels), predictor.predict(np.full((1, 6), 0.2, np.float32))
        )
        np.testing.assert_allclose(both[0].probabilities, both[1].probabilities, rtol=1e-5)
        assert evaluate.passes == [2]

    predicting(use)


def test_a_snapshot_stays_as_it_was_while_the_state_learns_on() -> None:
    state = a_state()
    step(state, a_batch(0))
    evaluate, snapshot = Evaluator(state.served), Snapshot.of(state)
    before = evaluate(snapshot, rows(1, 8))[1]
    tensors = {k: v.clone() for k, v in state.tensors().items()}
    assert all((v == state.tensors()[k]).all() for k, v in tensors.items())
    for k in range(1, 10):
        step(state, a_batch(k))
    assert (evaluate(snapshot, rows(1, 8))[1] == before).all()
    assert snapshot.version == 1
    assert (evaluate(Snapshot.of(state), rows(1, 8))[1] != before).any()
