"""Bodies are bounded in time and size, whatever their senders say of them."""

import asyncio
from typing import Any

import pytest
from starlette.requests import Request
from starlette.types import Scope

from service.http import body
from service.http.errors import HTTPError


def read(chunk: bytes, chunks: int, headers: dict[bytes, bytes] | None = None) -> bytes:
    """Read a body of so many chunks, of which one comes every 20 ms."""
    left = chunks

    async def receive() -> dict[str, Any]:
        nonlocal left
        await asyncio.sleep(0.02)
        left -= 1
        return {"type": "http.request", "body": chunk, "more_body": left > 0}

    scope = {"type": "http", "headers": list((headers or {}).items())}
    return asyncio.run(body.read_body(Request(scope, receive), most=100))


def test_a_dripping_body_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "BODY_SECONDS", 0.2)
    assert read(b"x", 2) == b"xx"
    with pytest.raises(HTTPError) as caught:
        read(b"x", 50)
    assert (caught.value.status, caught.value.code) == (408, "body_too_slow")
    assert caught.value.answer().headers["Connection"] == "close"


def test_a_length_that_lies_does_not_help() -> None:
    for length in (b"1", b"-1", b"", b"x"):
        with pytest.raises(HTTPError) as caught:
            read(b"x" * 60, 2, {b"content-length": length})
        assert (caught.value.status, caught.value.code) == (413, "body_too_large")


def test_as_many_examples_as_are_allowed_are_taken() -> None:
    body.check_number(body.MAX_EXAMPLES)
    with pytest.raises(HTTPError):
        body.check_number(body.MAX_EXAMPLES + 1)


def test_all_bodies_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "MAX_UNDER_WAY", 0)  # so twice the largest, 200 bytes
    monkeypatch.setattr(body, "_under_way", 0)
    scopes: list[Scope] = [{"type": "http", "headers": []} for _ in range(3)]

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"x" * 90, "more_body": False}

    def read_one(scope: Scope) -> bytes:
        return asyncio.run(body.read_body(Request(scope, receive), most=100))

    for scope in scopes[:2]:
        read_one(scope)
    with pytest.raises(HTTPError) as caught:
        read_one(scopes[2])
    assert (caught.value.status, caught.value.code) == (503, "too_busy")
    assert caught.value.answer().headers["Connection"] == "close"
    body.let_go(scopes[0])
    body.let_go(scopes[0])
    assert len(read_one(scopes[2])) == 90
    for scope in scopes[1:]:
        body.let_go(scope)
    assert body._under_way == 0
