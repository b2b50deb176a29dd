"""Bodies are bounded in time and size, whatever their headers claim."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.requests import Request

from service.fold.spec import Spec
from service.http import body
from service.http.body import Bodies
from service.http.codecs.codec import MAX_EXAMPLES
from service.http.codecs.safetensors import MEDIA_TYPE
from service.http.errors import HTTPError
from streams.batch import Features

SPEC = Spec("logistic", 2, 2, (), "sgd", False, 0, 0)


@pytest.fixture
def bodies() -> Iterator[Bodies]:
    bodies = Bodies(max_bytes=200)
    yield bodies
    assert bodies.held == 0
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
    async with bodies.features(asked, SPEC) as features:
        return features


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
    bodies = Bodies(max_bytes=1 << 20)
    assert len(asyncio.run(read(bodies, request(rows(MAX_EXAMPLES))))) == MAX_EXAMPLES
    with pytest.raises(HTTPError) as caught:
        asyncio.run(read(bodies, request(rows(MAX_EXAMPLES + 1))))
    assert (caught.value.status, caught.value.code) == (413, "too_many_examples")
    bodies.close()


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_HELD", 0)  # so twice the largest body
    size = len(rows(3))
    bodies = Bodies(max_bytes=size)

    async def use() -> None:
        async with AsyncExitStack() as handled:
            for _ in range(2):
                await handled.enter_async_context(bodies.features(request(rows(3)), SPEC))
            assert bodies.held == 2 * size
            with pytest.raises(HTTPError) as caught:
                await read(bodies, request(rows(3)))
            assert (caught.value.status, caught.value.code) == (503, "too_busy")
            assert caught.value.answer().headers["Connection"] == "close"
            assert bodies.held == 2 * size
        assert bodies.held == 0
        assert len(await read(bodies, request(rows(3)))) == 3

    asyncio.run(use())
    assert bodies.held == 0
    bodies.close()


def test_the_budget_of_a_refused_body_is_free_again(bodies: Bodies) -> None:
    for sent in (b"", b"x" * 150, rows(0)):
        with pytest.raises(HTTPError):
            asyncio.run(read(bodies, request(sent or b"x")))
        assert bodies.held == 0
