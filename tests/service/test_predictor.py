"""Predictions gather into one pass, and come from one snapshot."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import service.predictor as predictor_module
from service.fold.snapshot import Evaluator, Snapshot
from service.fold.state import State
from service.predictor import (
    GATHER_ROWS,
    NoPredictionError,
    Prediction,
    PredictionFailed,
    Predictor,
)
from streams.batch import Features
from tests.support.states import CPU, HYPERPARAMETERS, a_batch, a_spec, a_state, step


class Watched(Evaluator):
    """An evaluator that counts the rows of its passes, and waits until `go` is set."""

    def __init__(self, state: State | None) -> None:
        self.state = state or a_state()
        for k in range(0 if state else 5):
            step(self.state, a_batch(k))
        super().__init__(self.state.served)
        self.passes: list[int] = []
        self.versions: set[int] = set()
        self.error: BaseException | None = None
        self.row_seconds = 0.0
        self.after: Callable[[Watched], None] | None = None
        self.entered = threading.Event()
        self.go = threading.Event()
        self.go.set()

    def is_quick(self, rows: int) -> bool:
        return self.go.is_set() and not self.row_seconds and super().is_quick(rows)

    def __call__(self, snapshot: Snapshot, features: Features) -> tuple[Tensor, Tensor]:
        self.entered.set()
        self.go.wait(20)
        self.passes.append(len(features))
        self.versions.add(snapshot.version)
        if self.row_seconds:
            time.sleep(self.row_seconds * len(features))
        if self.error is not None:
            raise self.error
        if self.after is not None:
            self.after(self)
        return super().__call__(snapshot, features)


def predicting(
    use: Callable[[Predictor, Watched], Awaitable[None]],
    state: State | None = None,
    between: Callable[[Watched], None] | None = None,
    budget: float = 0.0,
) -> None:
    """Run ``use`` while a predictor runs; ``between`` is called in each pass."""

    async def run() -> None:
        evaluate = Watched(state)
        evaluate.after = between
        predictor = Predictor(evaluate, lambda: Snapshot.of(evaluate.state), budget)
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


def test_a_lone_request_waits_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor_module, "GATHER_SECONDS", 1e9)

    async def use(predictor: Predictor, evaluate: Watched) -> None:
        async with asyncio.timeout(20):
            await predictor.predict(rows(0))
        assert evaluate.passes == [1]

    predicting(use)


def test_requests_of_following_turns_of_the_loop_share_a_pass() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        requests = []
        for k in range(5):
            requests.append(asyncio.create_task(predictor.predict(rows(k))))
            await asyncio.sleep(0)
        await asyncio.gather(*requests)
        assert evaluate.passes == [5]

    predicting(use)


def test_requests_that_keep_arriving_delay_a_pass_for_no_more_than_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(predictor_module, "GATHER_SECONDS", 0.0)

    async def use(predictor: Predictor, evaluate: Watched) -> None:
        later: list[asyncio.Task[Prediction]] = []
        first = asyncio.create_task(predictor.predict(rows(0)))
        while not first.done():
            later.append(asyncio.create_task(predictor.predict(rows(1))))
            await asyncio.sleep(0)
        assert sum(evaluate.passes) <= len(later) + 1
        assert len(later) < 10
        await asyncio.gather(*later)

    predicting(use)


def test_a_pass_is_bounded_in_rows_not_in_requests() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        sizes = [GATHER_ROWS // 2, GATHER_ROWS // 2, 10, 1]
        await asyncio.gather(*(predictor.predict(rows(0, n)) for n in sizes))
        assert evaluate.passes == [GATHER_ROWS, 11]

    predicting(use)


def test_a_long_request_is_answered_in_parts_and_from_one_snapshot() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        long, snapshot = rows(0, 9 * evaluate.most_rows + 7), Snapshot.of(evaluate.state)
        answer = await predictor.predict(long)
        assert len(evaluate.passes) > 9
        assert max(evaluate.passes) <= evaluate.most_rows
        assert sum(evaluate.passes) == len(long)
        whole = Evaluator(evaluate.state.served)(snapshot, long)
        np.testing.assert_array_equal(answer.labels, whole[0].numpy())
        np.testing.assert_allclose(answer.probabilities, whole[1].numpy(), rtol=1e-5)
        assert evaluate.versions == {5}

    def learn(evaluate: Watched) -> None:
        step(evaluate.state, a_batch(9))

    predicting(use, between=learn)


def test_short_requests_are_answered_between_the_parts_of_a_long_one() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        evaluate.go.clear()
        long = asyncio.create_task(predictor.predict(rows(0, 50 * GATHER_ROWS)))
        assert await asyncio.to_thread(evaluate.entered.wait, 20)
        short = [asyncio.create_task(predictor.predict(rows(k))) for k in range(3)]
        await asyncio.sleep(0)
        evaluate.go.set()
        await asyncio.gather(*short)
        assert not long.done()
        assert evaluate.passes[1] == 3
        long.cancel()
        passes = len(evaluate.passes)
        await predictor.predict(rows(5))
        assert len(evaluate.passes) <= passes + 2, "nothing of a cancelled request is computed"

    predicting(use)


def test_parts_become_shorter_where_a_row_takes_long() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        evaluate.row_seconds = 1e-3
        await predictor.predict(rows(0, 3 * GATHER_ROWS))
        assert evaluate.passes[0] == GATHER_ROWS
        assert evaluate.passes[-2] <= GATHER_ROWS / 4

    predicting(use)


def test_the_memory_of_a_pass_does_not_grow_with_the_classes() -> None:
    spec = replace(a_spec(optimizer="pool"), classes=1_000)
    assert Evaluator(State(spec, HYPERPARAMETERS, CPU).served).most_rows == (4 << 20) // 6_000


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


def poison(n: int, *where: int) -> Features:
    features = np.ones((n, 6), np.float32)
    features[list(where), 2] = 99.0
    return features


def embedding() -> State:
    """A model that raises at 99."""
    spec = a_spec("tests.service.fold.own_models:Embedded", standardize=False)
    return State(spec, HYPERPARAMETERS, CPU)


def test_an_example_at_which_the_model_raises_fails_its_own_request_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        requests = [poison(3) for _ in range(20)]
        requests[7], requests[13] = poison(3, 1), poison(1, 0)
        answers = await asyncio.gather(
            *(predictor.predict(request) for request in requests), return_exceptions=True
        )
        assert evaluate.passes[0] == 58
        for k, answer in enumerate(answers):
            if k in (7, 13):
                assert isinstance(answer, NoPredictionError)
                assert answer.index == (1 if k == 7 else 0)
                assert "IndexError('index out of range in self')" in str(answer)
            else:
                assert isinstance(answer, Prediction)
                assert len(answer.labels) == 3
        for _ in range(3):
            with pytest.raises(NoPredictionError):
                await predictor.predict(poison(1, 0))

    predicting(use, state=embedding())
    [logged] = caplog.records
    assert logged.exc_info is not None


def test_the_first_culprit_of_a_long_request_is_named() -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        with pytest.raises(NoPredictionError) as error:
            await predictor.predict(poison(5 * GATHER_ROWS, 2_500, 2_501, 4_000))
        assert error.value.index == 2_500
        assert len((await predictor.predict(poison(2))).labels) == 2

    predicting(use, state=embedding())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("full"), PredictionFailed),
        (MemoryError(), PredictionFailed),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), PredictionFailed),
        (RuntimeError("CUDA error: device-side assert triggered"), PredictionFailed),
        (SystemExit(3), NoPredictionError),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), NoPredictionError),
    ],
    ids=repr,
)  # fmt: skip
def test_a_machine_that_fails_is_not_the_clients_fault(
    error: BaseException, expected: type[Exception]
) -> None:
    async def use(predictor: Predictor, evaluate: Watched) -> None:
        evaluate.error = error
        with pytest.raises(expected):
            await predictor.predict(rows(0))
        evaluate.error = None
        assert len((await predictor.predict(rows(0))).labels) == 1

    predicting(use)


def test_a_users_module_never_runs_on_the_event_loop() -> None:
    """It may take any time, which other requests would wait for."""
    assert Evaluator(a_state().served).is_quick(1)
    assert not Evaluator(embedding().served).is_quick(1)


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


@pytest.mark.parametrize("budget", [1e-9, 0.0, 3600.0])
def test_a_question_that_waits_too_long_is_answered_by_the_linear_experts(budget: float) -> None:
    spec = replace(a_spec(), model="auto", hidden=(8,), optimizer="pool", experts=6)
    state = State(spec, HYPERPARAMETERS, CPU)
    for k in range(5):
        step(state, a_batch(k))
    snapshot, question = Snapshot.of(state), rows(9, 3)
    assert snapshot.families is not None
    answering, waits_too_long = Evaluator(state.served), budget == 1e-9
    of_all = answering(snapshot, question)[1].numpy()
    of_linear = answering(replace(snapshot, families=None), question)[1].numpy()
    assert not np.allclose(of_all, of_linear, atol=0.01)

    async def use(predictor: Predictor, evaluate: Watched) -> None:
        answer = await predictor.predict(question)
        assert answer.is_fast == waits_too_long
        expected = of_linear if waits_too_long else of_all
        np.testing.assert_allclose(answer.probabilities, expected, rtol=1e-5)

    predicting(use, state, budget=budget)
