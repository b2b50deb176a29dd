"""Bodies with ``Content-Encoding: gzip`` count as what they decode to, and grow no further."""

import asyncio
import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.requests import Request

from service.http.body import Bodies
from service.http.budget import MEMORY, Budget
from service.http.codecs.gzip import PIECE, Gunzip
from service.http.errors import HTTPError
from streams.batch import Batch, Features
from tests.support.harness import serving

LIMIT = 8 << 20
SHAPE = (2, 2)
BOMB = gzip.compress(bytes(64 * LIMIT))


def request(*parts: bytes, encoding: str = "gzip") -> tuple[Request, list[bytes]]:
    """Return a request whose body comes in these parts, and the parts that are not read yet."""
    left = list(parts)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    headers = {"content-type": "application/octet-stream", "content-encoding": encoding}
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "headers": raw}, receive), left


def read(asked: Request, budget: Budget | None = None) -> Features:
    budget = budget or Budget(MEMORY)
    bodies = Bodies(LIMIT, budget)

    async def inputs() -> Features:
        async with bodies.features(asked, SHAPE, False) as features:
            return features.inputs

    try:
        return asyncio.run(inputs())
    finally:
        assert budget.held == 0
        bodies.close()


def refused(*parts: bytes, budget: Budget | None = None) -> HTTPError:
    with pytest.raises(HTTPError) as caught:
        read(request(*parts)[0], budget)
    assert caught.value.answer().headers["Connection"] == "close"
    return caught.value


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "x-gzip"])
@pytest.mark.parametrize("size", [1, 7, 1 << 20])
@pytest.mark.parametrize("count", [1, 3, 60_000])
def test_a_body_is_the_same_however_it_is_cut(count: int, size: int, encoding: str) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (count, 2)).astype(np.uint8)
    sent = gzip.compress(save({"features": rows}), mtime=0)
    size = max(size, len(sent) // 1_000)
    parts = [sent[k : k + size] for k in range(0, len(sent), size)]
    assert np.array_equal(read(request(*parts, encoding=encoding)[0]), rows)


def test_a_bomb_is_cut_off_at_the_largest_body() -> None:
    assert len(BOMB) < LIMIT / 10
    parts = [BOMB[k : k + 4096] for k in range(0, len(BOMB), 4096)]
    asked, left = request(*parts)
    with pytest.raises(HTTPError) as caught:
        read(asked)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert len(left) > len(parts) * 0.9


def test_a_bomb_in_one_part_never_stands_in_memory_whole() -> None:
    pieces = Gunzip().decode(BOMB)
    assert {len(next(pieces)) for _ in range(LIMIT // PIECE)} == {PIECE}
    assert refused(BOMB).code == "body_too_large"


def test_what_is_decoded_counts_towards_the_budget() -> None:
    error = refused(gzip.compress(bytes(LIMIT // 2)), budget=Budget(LIMIT // 4))
    assert (error.status, error.code) == (503, "too_busy")


def test_bytes_that_decode_to_nothing_are_bounded_too() -> None:
    name = b"\x1f\x8b\x08\x08" + bytes(6)  # a head whose file name does not end
    error = refused(name, *[b"x" * (LIMIT // 16)] * 32)
    assert (error.status, error.code) == (413, "body_too_large")


GOOD = gzip.compress(save({"features": np.zeros((3, 2), np.uint8)}), mtime=0)
BROKEN = {
    "empty": (b"", "ends before"),
    "cut off": (GOOD[:-1], "ends before"),
    "without its checksum": (GOOD[:-8], "ends before"),
    "with a wrong checksum": (GOOD[:-8] + bytes(8), "is not gzip"),
    "with bytes at the end": (GOOD + b"x", "goes on"),
    "of two members": (GOOD + GOOD, "goes on"),
    "plain": (save({"features": np.zeros((3, 2), np.uint8)}), "is not gzip"),
    "zlib": (zlib.compress(b"x"), "is not gzip"),
}


@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("what", BROKEN)
def test_a_body_that_is_not_one_member_of_gzip_is_refused(what: str, is_cut: bool) -> None:
    sent, message = BROKEN[what]
    error = refused(*([sent[:-1], sent[-1:]] if is_cut and sent else [sent]))
    assert (error.status, error.code) == (422, "invalid")
    assert message in str(error)


def test_every_route_of_examples_takes_gzip(tmp_path: Path) -> None:
    features = np.eye(3, dtype=np.float32)
    lines = b'{"features": [1, 0, 0], "label": 1}\n' * 2
    binary = Batch(features, np.array([0, 1, 0])).to_bytes()
    bodies = [
        ("/learn?wait=applied", "application/json", b'{"features": [[1, 0, 0]], "labels": [1]}'),
        ("/learn?wait=applied&wait=applied", "application/x-ndjson", lines),
        ("/learn?wait=applied", "application/octet-stream", binary),
        ("/predict", "application/octet-stream", save({"features": features})),
        ("/predict", "application/json", b'{"features": [[1, 0, 0]], "ids": ["a"]}'),
        ("/labels?wait=applied", "application/json", b'{"ids": ["a"], "labels": [1]}'),
    ]
    with (
        serving(tmp_path, model="logistic", features=3, classes=2) as service,
        service.client() as client,
    ):
        for path, kind, body in bodies:
            headers = {"Content-Type": kind, "Content-Encoding": "gzip"}
            answer = client.post(path, content=gzip.compress(body), headers=headers)
            assert answer.status_code == 200, answer.text
        keyed = {"Content-Type": "application/json", "Idempotency-Key": "once"}
        one = json.dumps({"features": [[0, 0, 1]], "labels": [0]}).encode()
        plain = client.post("/learn?wait=applied", content=one, headers=keyed).json()
        packed = keyed | {"Content-Encoding": "gzip"}
        again = client.post("/learn", content=gzip.compress(one), headers=packed).json()
        assert plain["entry"] == again["entry"]
        learned = client.get("/health/ready").json()["learned"]
    assert learned == 1 + 2 + 3 + 1 + 1
