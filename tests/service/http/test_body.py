"""Bodies are bounded in time and size, whatever their headers claim."""

import asyncio
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.requests import Request

from service.http import body
from service.http.body import Bodies
from service.http.budget import MEMORY, Budget
from service.http.codecs.codec import MAX_EXAMPLES, Codec
from service.http.codecs.safetensors import MEDIA_TYPE
from service.http.errors import HTTPError
from streams.batch import Features

SHAPE = (2, 2)


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    budget = Budget(400)
    bodies = Bodies(200, budget)
    yield bodies
    assert budget.held == 0
    bodies.close()


def request(sent: bytes, chunks: int = 1, **headers: str) -> Request:
    """Return a request whose body comes in so many chunks, one every 20 ms."""
    size = -(-len(sent) // chunks)
    left = [sent[k : k + size] for k in range(0, len(sent), size)]

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    headers = {"content-type": MEDIA_TYPE} | {k.replace("_", "-"): v for k, v in headers.items()}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw}, receive)


def rows(n: int) -> bytes:
    return save({"features": np.zeros((n, 2), np.uint8)})


async def read(bodies: Bodies, asked: Request) -> Features:
    async with bodies.features(asked, SHAPE, False) as features:
        return features.inputs


def test_a_dripping_body_is_cut_off(monkeypatch: pytest.MonkeyPatch, bodies: Bodies) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    assert asyncio.run(read(bodies, request(rows(3), chunks=2))).shape == (3, 2)
    with pytest.raises(HTTPError) as caught:
        asyncio.run(read(bodies, request(rows(3), chunks=50)))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")
    assert caught.value.answer().headers["Connection"] == "close"


@pytest.mark.parametrize("length", ["1", "-1", "", "x"])
def test_a_wrong_length_does_not_help(bodies: Bodies, length: str) -> None:
    with pytest.raises(HTTPError) as caught:
        asyncio.run(read(bodies, request(rows(100), chunks=2, content_length=length)))
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")


def test_the_largest_allowed_number_of_examples_is_accepted() -> None:
    bodies = Bodies(1 << 20, Budget(MEMORY))
    assert len(asyncio.run(read(bodies, request(rows(MAX_EXAMPLES))))) == MAX_EXAMPLES
    with pytest.raises(HTTPError) as caught:
        asyncio.run(read(bodies, request(rows(MAX_EXAMPLES + 1))))
    assert (caught.value.status, caught.value.code) == (413, "too_many_examples")
    bodies.close()


def test_all_bodies_together_are_bounded() -> None:
    size = len(rows(3))
    budget = Budget(2 * size)
    bodies = Bodies(size, budget)
    with budget.reserve(size + 1):
        with pytest.raises(HTTPError) as caught:
            asyncio.run(read(bodies, request(rows(3))))
        assert (caught.value.status, caught.value.code) == (503, "too_busy")
        assert caught.value.answer().headers["Connection"] == "close"
        assert budget.held == size + 1
    assert len(asyncio.run(read(bodies, request(rows(3))))) == 3
    assert budget.held == 0
    bodies.close()


def test_what_a_body_holds_counts_while_it_is_handled() -> None:
    budget = Budget(MEMORY)
    bodies = Bodies(MEMORY, budget)

    async def use() -> None:
        async with bodies.features(request(rows(3)), SHAPE, False) as features:
            assert budget.held == features.inputs.nbytes

    asyncio.run(use())
    assert budget.held == 0
    bodies.close()


@pytest.mark.parametrize("sent", [b"x", b"x" * 150, rows(0)])
def test_the_budget_of_a_refused_body_is_free_again(bodies: Bodies, sent: bytes) -> None:
    with pytest.raises(HTTPError):
        asyncio.run(read(bodies, request(sent)))  # the fixture looks at the budget


def large_request(size: int, pause: float, part: int = 1 << 18) -> Request:
    """Return a request whose body comes in parts, with a pause before each."""
    sent = 0

    async def receive() -> dict[str, Any]:
        nonlocal sent
        await asyncio.sleep(pause)
        sent += part
        return {"type": "http.request", "body": bytes(part), "more_body": sent < size}

    headers = [(b"content-type", MEDIA_TYPE.encode())]
    return Request({"type": "http", "headers": headers}, receive)


def test_a_long_body_that_stalls_is_cut_off_long_before_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "PATIENCE_SECONDS", 0.3)
    budget = Budget(MEMORY)
    bodies = Bodies(32 << 20, budget)
    asked = large_request(32 << 20, 0)
    at_once = asked.receive

    async def receive() -> Any:
        if budget.held > 4 << 20:
            await asyncio.sleep(60)
        return await at_once()

    with pytest.raises(HTTPError) as caught:
        asyncio.run(read(bodies, Request(asked.scope, receive)))
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")
    assert budget.held == 0
    bodies.close()


def test_a_long_body_may_take_longer_than_a_short_one_if_it_comes_steadily(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 1.0)
    monkeypatch.setattr(body, "MIN_RATE", 1 << 20)
    bodies = Bodies(32 << 20, Budget(MEMORY))
    with pytest.raises(HTTPError) as caught:  # all of it has arrived, and is no safetensors file
        asyncio.run(read(bodies, large_request(6 << 20, 0.06)))
    assert caught.value.status == 422
    bodies.close()


def test_a_body_does_not_wait_for_larger_ones_that_are_decoded() -> None:
    bodies, go_on = Bodies(32 << 20, Budget(MEMORY)), threading.Event()
    stuck = [bodies._lanes[math.inf].submit(go_on.wait) for _ in range(8)]
    try:
        sizes = (5_000, 200_000)  # the bytes of a body in each of the other lanes
        for size in sizes:
            document = b'{"features": [[0, 1]]' + b" " * size + b"}"
            asked = request(document, content_type="application/json")
            assert asyncio.run(read(bodies, asked)).tolist() == [[0, 1]]
        assert not any(one.done() for one in stuck)
    finally:
        go_on.set()
        bodies.close()


def failing(error: Exception) -> Codec[Features]:
    def decode(*_: object) -> Features:
        raise error

    return Codec("x/y", decode, {})


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ValueError("defect"), 422, "invalid"),
        (RecursionError("defect"), 422, "invalid"),
        (StopIteration("defect"), 422, "invalid"),
        (MemoryError(), 503, "too_busy"),
        (OSError(24, "Too many open files"), 503, "too_busy"),
    ],
)
def test_whatever_a_decoder_raises_is_no_500(
    bodies: Bodies, error: Exception, status: int, code: str
) -> None:
    for size in (1, 1 << 16):  # at once, and in a thread
        with pytest.raises(HTTPError) as caught:
            asyncio.run(
                asyncio.wait_for(bodies._decode(failing(error), b"x" * size, SHAPE, b""), 5)
            )
        assert (caught.value.status, caught.value.code) == (status, code)
