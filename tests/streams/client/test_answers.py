"""A client goes by the answers of a service: which tries follow, and what comes of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import orjson
import pytest

from funnel import (
    BacklogFull,
    Client,
    InvalidExamples,
    LearningHalted,
    ServiceError,
    TooManyRequests,
    Unavailable,
)
from streams.client.answers import Learned
from streams.client.calls import Call, Calls, Try
from streams.client.keys import Keys
from streams.client.transport import NO_ANSWER, Answer
from tests.support.harness import ServiceProcess, serving, wait_for

T = TypeVar("T")
X, LABELS = np.eye(3), [0, 1, 1]
LEARNED = Answer(202, b'{"accepted": 3, "entry": "1-0"}')


def refusal(status: int, code: str, after: float | None = None) -> Answer:
    return Answer(status, orjson.dumps({"error": {"code": code, "message": code}}), after)


def answered(call: Call[T], *answers: Answer) -> tuple[list[Try], T]:
    """Return the tries of a call that gets these answers, and what it returns."""
    tries = [next(call)]
    for answer in answers[:-1]:
        tries.append(call.send(answer))
    with pytest.raises(StopIteration) as end:
        call.send(answers[-1])
    found: T = end.value.value
    return tries, found


def learning(timeout: float = 1e9) -> Call[Learned]:
    return Calls("http://127.0.0.1:1", timeout, Keys()).learn(X, LABELS, None, False)


@pytest.mark.parametrize(
    "first",
    [
        refusal(409, "key_in_flight", 1.0),
        refusal(429, "backlog_full", 1.0),
        refusal(503, "log_unavailable", 1.0),
        Answer(502, b"<html>", 1.0),
        Answer(NO_ANSWER, fault="reset"),
    ],
)
def test_what_may_succeed_later_is_tried_again_as_the_same_request(first: Answer) -> None:
    (one, two), found = answered(learning(), first, LEARNED)
    assert one.request == two.request, "its key is the same, too, so it is learned once"
    assert "Idempotency-Key" in one.request.headers
    assert one.wait == 0.0
    assert two.wait == first.after or (first.after is None and two.wait > 0)
    assert found.accepted == 3


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(503, "learning_halted", 1.0), LearningHalted),
        (refusal(422, "key_reused"), InvalidExamples),
    ],
)
def test_what_cannot_succeed_is_not_tried_again(answer: Answer, kind: type[ServiceError]) -> None:
    call = learning()
    next(call)
    with pytest.raises(kind):
        call.send(answer)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refusal(409, "key_in_flight", 1.0), Unavailable),
        (refusal(429, "too_many", 1.0), TooManyRequests),
        (refusal(503, "draining", 1.0), Unavailable),
    ],
)
def test_an_error_is_raised_where_no_time_is_left(answer: Answer, kind: type[ServiceError]) -> None:
    call = learning(timeout=0.5)
    next(call)
    with pytest.raises(kind) as caught:
        call.send(answer)
    assert caught.value.status == answer.status


def test_an_error_amid_the_parts_of_a_call_counts_what_is_in_the_log() -> None:
    n = 70_000
    call = Calls("http://127.0.0.1:1", 1.0, Keys()).learn(
        np.zeros((n, 3), np.float32), np.zeros(n, np.int64), None, False
    )
    next(call)
    call.send(Answer(202, b'{"accepted": 65536, "entry": "1-0"}'))
    with pytest.raises(LearningHalted) as caught:
        call.send(refusal(503, "learning_halted"))
    assert caught.value.accepted == 65_536


@pytest.fixture(scope="module")
def of_numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"model": "logistic", "task": "regression", "schema": "auto", "max_wait_ms": 20}
    with serving(tmp_path_factory.mktemp("numbers"), **options) as service:
        yield service


ROWS = [{"plan": "basic", "age": 41}, {"plan": "vip", "age": 7}]


def test_numbers_come_with_their_deviations(of_numbers: ServiceProcess) -> None:
    with Client(of_numbers.url) as client:
        client.learn(ROWS * 100, [1.5, -2.5] * 100, wait=True)
        found = client.predict(ROWS)
    assert (found.labels, found.probabilities, len(found)) == (None, None, 2)
    assert found.values is not None
    assert found.std is not None
    assert found.values[0] > found.values[1]
    assert (found.std > 0).all()


def test_explanations_come_in_the_order_of_the_rows(of_numbers: ServiceProcess) -> None:
    with Client(of_numbers.url) as client:
        client.learn(ROWS * 100, [1.5, -2.5] * 100, wait=True)
        found = client.predict(ROWS, explain=2)
    assert found.explanations is not None
    up, down = ({part.feature: part.nats for part in parts} for parts in found.explanations)
    assert all(len(parts) == 2 for parts in found.explanations)
    assert up.keys() | down.keys() >= {"age"}


def test_a_full_backlog_is_an_error_of_its_own(tmp_path: Path) -> None:
    with serving(tmp_path, features=3, classes=2, max_backlog=3) as service:
        with service.client() as http:
            http.post("/pause", json={}).raise_for_status()
        with Client(service.url, timeout=0.1) as client:
            wait_for(lambda: client.ready().learning == "paused")
            client.learn(X, LABELS)
            with pytest.raises(BacklogFull) as caught:
                client.learn(X, LABELS)
    assert (caught.value.code, caught.value.status) == ("backlog_full", 429)
