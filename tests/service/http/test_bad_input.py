"""Bad input is answered with an error or becomes a dead letter; the model does not change."""

import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from safetensors.numpy import load, save

from tests.service.fuzz import DIMENSIONS, shaped
from tests.support.harness import RedisProcess, ServiceProcess, serving, wait_for
from tests.support.states import a_batch

MODEL = "logistic"
JSON, NDJSON, BYTES = "application/json", "application/x-ndjson", "application/octet-stream"
LIMIT = 1_000_000
F32, I64 = np.float32, np.int64


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    yield process
    process.kill()


@pytest.fixture(scope="module")
def service(
    tmp_path_factory: pytest.TempPathFactory, redis: RedisProcess
) -> Iterator[ServiceProcess]:
    options = {
        "features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 50,
        "max_body_bytes": LIMIT, "redis_url": redis.url,
    }  # fmt: skip
    with serving(tmp_path_factory.mktemp("service"), **options) as running:
        with running.client() as client:
            good = {"Content-Type": BYTES}
            for k in range(5):
                client.post("/learn?wait=applied", content=a_batch(k).to_bytes(), headers=good)
        yield running


@pytest.fixture
def unharmed(service: ServiceProcess) -> Iterator[httpx.Client]:
    """Yield a client; afterwards the service is ready and no bit of its state has changed."""
    with service.client() as client:
        before = client.post("/checkpoint").json()
        yield client
        assert client.post("/checkpoint").json()["sha256"] == before["sha256"]
        assert client.get("/health/ready").json()["learning"] == "learning"


def document(features: Any, labels: Any) -> bytes:
    return json.dumps({"features": features, "labels": labels}).encode()


def tensors(features: Any, labels: Any) -> bytes:
    return save({"features": np.asarray(features), "labels": np.asarray(labels)})


ROW = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
NAN = np.array([ROW, ROW], F32)
NAN[1, 3] = np.nan
LYING = struct.pack("<Q", 1 << 60) + b"{}"
SHAPES = {
    f"shape {shape} {kind}": shaped(shape, [shape[0]], kind)
    for kind in ("F32", "F16", "U8", "I64", "F64")
    for size in DIMENSIONS
    for shape in ([size, 0], [0, size], [size, 6], [size, size], [0, 0, size])
} | {
    "labels of a huge shape": shaped([1, 6], [0, 1 << 63], data=bytes(24)),
    "overlapping tensors": shaped([1, 6], [3], data=bytes(24), labels_at=(0, 24)),
    "tensors beyond the end": shaped(
        [1, 6], [1], data=bytes(24), labels_at=(1 << 63, (1 << 63) + 8)
    ),
}

# type, body, status, field, index
BAD: dict[str, tuple[str, bytes, int, str | None, int | None]] = {
    "wrong width": (JSON, document([ROW[:5]], [0]), 422, "features", 0),
    "wrong width in bytes": (BYTES, tensors(np.zeros((2, 7), F32), [0, 0]), 422, "features", None),
    "ragged rows": (JSON, document([ROW, ROW[:4]], [0, 0]), 422, "features", 1),
    "label too high": (JSON, document([ROW, ROW], [0, 3]), 422, "labels", 1),
    "label below 0": (BYTES, tensors(np.zeros((2, 6), F32), [-1, 0]), 422, "labels", 0),
    "fractional label": (JSON, document([ROW], [1.5]), 422, "labels", 0),
    "boolean label": (JSON, document([ROW, ROW], [1, True]), 422, "labels", 1),
    "text as label": (JSON, document([ROW], ["1"]), 422, "labels", 0),
    "boolean feature": (JSON, document([[*ROW[:5], True]], [1]), 422, "features", 0),
    "text as feature": (JSON, document([[*ROW[:5], "nan"]], [1]), 422, "features", 0),
    "NaN": (JSON, document([[*ROW[:5], float("nan")]], [1]), 422, "features", 0),
    "NaN in bytes": (BYTES, tensors(NAN, [0, 0]), 422, "features", 1),
    "infinity": (BYTES, tensors(np.full((1, 6), np.inf, np.float16), [0]), 422, "features", 0),
    "beyond float32": (JSON, document([ROW, [*ROW[:5], 1e39]], [0, 0]), 422, "features", 1),
    "no examples": (JSON, document([], []), 422, "features", None),
    "no examples in bytes": (
        BYTES, tensors(np.zeros((0, 6), F32), np.zeros(0, I64)), 422, "features", None,
    ),
    "no examples in lines": (NDJSON, b"\n\n", 422, "features", None),
    "a bad line": (
        NDJSON,
        json.dumps({"features": ROW, "label": 1}).encode() + b'\n{"features": [], "label": 1}',
        422,
        "features",
        1,
    ),
    "fewer labels": (JSON, document([ROW, ROW], [0]), 422, "labels", None),
    "no labels": (JSON, json.dumps({"features": [ROW]}).encode(), 422, "labels", None),
    "misspelt field": (JSON, b'{"features": [], "labels": [], "lables": []}', 422, "lables", None),
    "float64 beyond float32": (BYTES, tensors(np.full((1, 6), 1e39), [0]), 422, "features", 0),
    "integers beyond 2^24": (BYTES, tensors(np.full((1, 6), 1 << 25), [0]), 422, "features", 0),
    "float labels": (
        BYTES, tensors(np.zeros((1, 6), F32), np.zeros(1, F32)), 422, "labels", None,
    ),
    "one number as features": (BYTES, tensors(F32(1), [0]), 422, "features", None),
    "one number as labels": (BYTES, tensors(np.zeros((1, 6), F32), I64(0)), 422, "labels", None),
    "truncated file": (BYTES, a_batch(0).to_bytes()[:-1], 422, None, None),
    "lying header": (BYTES, LYING, 422, None, None),
    "lying shape": (BYTES, shaped([1 << 40, 6], [1], data=bytes(32)), 422, None, None),
    "deep JSON": (JSON, b"[" * 50_000, 422, None, None),
    "much from little": (
        JSON, b'{"features": [[]' + b",[]" * 200_000 + b'], "labels": []}', 413, None, None,
    ),
    "not JSON": (JSON, b"features=1", 422, None, None),
    "not UTF-8": (JSON, b'{"features": "\xff"}', 422, None, None),
    "empty": (JSON, b"", 422, None, None),
    "unknown type": ("text/csv", b"1,2,3", 415, None, None),
    "pickle": ("application/x-pickle", b"\x80\x04.", 415, None, None),
    "too many": (
        BYTES, tensors(np.zeros((70_000, 6), np.uint8), np.zeros(70_000, I64)), 413, None, None,
    ),
    "too large": (BYTES, bytes(LIMIT + 1), 413, None, None),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_bad_examples_are_refused_whole(unharmed: httpx.Client, what: str) -> None:
    kind, body, status, field, index = BAD[what]
    answer = unharmed.post("/learn", content=body, headers={"Content-Type": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error.get("field"), error.get("index")) == (status, field, index)
    assert error["message"]
    assert error["code"]


NOT_FOR_PREDICTION = ("label", "lines", "a bad line", "misspelt", "fewer")


@pytest.mark.parametrize("what", [w for w in BAD if not any(n in w for n in NOT_FOR_PREDICTION)])
def test_bad_inputs_are_not_predicted(unharmed: httpx.Client, what: str) -> None:
    kind, body, status, field, index = BAD[what]
    if kind == JSON and b'"labels"' in body:
        body = json.dumps({"features": json.loads(body)["features"]}).encode()
    elif kind == BYTES and not any(n in what for n in ("lying", "truncated", "too large")):
        body = save({"features": load(body)["features"]})
    answer = unharmed.post("/predict", content=body, headers={"Content-Type": kind})
    error = answer.json()["error"]
    assert (answer.status_code, error.get("field"), error.get("index")) == (status, field, index)


def test_200_megabytes_are_refused_without_being_read(unharmed: httpx.Client) -> None:
    read = 0

    def chunks() -> Iterator[bytes]:
        nonlocal read
        for _ in range(200):
            read += 1 << 20
            yield bytes(1 << 20)

    for headers in (
        {"Content-Type": BYTES},
        {"Content-Type": BYTES, "Content-Length": "200000000"},
    ):
        try:
            answer = unharmed.post("/learn", content=chunks(), headers=headers)
        except httpx.TransportError:
            assert read < 100 << 20  # cut off while still sending
        else:
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"
        read = 0


@pytest.mark.parametrize("encoding", ["br", "deflate", "zstd", "gzip, gzip"])
def test_encodings_other_than_gzip_are_refused_by_name(
    unharmed: httpx.Client, encoding: str
) -> None:
    headers = {"Content-Type": JSON, "Content-Encoding": encoding}
    answer = unharmed.post("/learn", content=b"x", headers=headers)
    assert answer.status_code == 415
    assert answer.json()["error"]["code"] == "unsupported_encoding"
    assert f"Content-Encoding '{encoding}': send gzip" in answer.json()["error"]["message"]
    assert answer.headers["Accept-Encoding"] == "gzip"


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_an_idempotency_key_of_a_wrong_length_is_refused(unharmed: httpx.Client, key: str) -> None:
    answer = unharmed.post(
        "/learn",
        content=document([ROW], [0]),
        headers={"Content-Type": JSON, "Idempotency-Key": key},
    )
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "Idempotency-Key"


@pytest.mark.parametrize("path", ["/learn", "/predict"])
def test_tensors_of_any_shape_are_refused(unharmed: httpx.Client, path: str) -> None:
    for what, body in SHAPES.items():
        answer = unharmed.post(path, content=body, headers={"Content-Type": BYTES})
        assert (answer.status_code, answer.json()["error"]["code"]) == (422, "invalid"), what
    for size in DIMENSIONS:
        body = shaped([size, 0], None)
        answer = unharmed.post("/predict", content=body, headers={"Content-Type": BYTES})
        assert answer.status_code == 422, size


def test_a_body_without_a_type_is_refused_with_what_to_send(unharmed: httpx.Client) -> None:
    for path in ("/learn", "/predict"):
        for headers in ({}, {"Content-Type": ""}, {"Content-Type": "; charset=utf-8"}):
            answer = unharmed.post(path, content=document([ROW], [0]), headers=headers)
            assert answer.status_code == 415
            assert answer.json()["error"]["code"] == "unsupported_type"
            assert "Content-Type is missing: send one of application/json" in answer.text


POISON: dict[str, dict[str, bytes]] = {
    "no field": {"x": b"y"},
    "empty batch": {"batch": b""},
    "lying header": {"batch": LYING},
    "NaN": {"batch": tensors(NAN, [0, 0])},
    "wrong width": {"json": document([ROW[:3]], [0])},
    "label too high": {"json": document([ROW], [7])},
    "boolean label": {"json": document([ROW], [True])},
    "deep JSON": {"json": b"[" * 50_000},
    "binary field names": {"\x00\n\u2603": b"\xff" * 10},
    "two megabytes": {"batch": bytes(2 << 20)},
    **{what: {"batch": body} for what, body in SHAPES.items()},
}


def test_poison_entries_become_dead_letters_and_stop_nothing(
    service: ServiceProcess, redis: RedisProcess
) -> None:
    log, dead = (f"funnel:{{{MODEL}}}:{name}" for name in ("log", "dead"))
    with redis.client() as direct, service.client() as client:
        before = client.post("/checkpoint").json()["sha256"]
        sent = [direct.xadd(log, fields) for fields in POISON.values()]
        wait_for(lambda: direct.xlen(dead) == len(POISON))
        letters = [fields for _, fields in direct.xrange(dead)]
        assert [letter[b"entry"] for letter in letters] == sent
        assert all(letter[b"reason"] for letter in letters)
        wait_for(lambda: metric(client, "funnel_dead_entries_total") == len(POISON))
        assert client.post("/checkpoint").json()["sha256"] == before
        assert client.get("/health/ready").json()["learning"] == "learning"
        learned = client.get("/model").json()["examples_learned"]
        direct.xadd(log, {"json": document([ROW, ROW], [0, 2])})
        wait_for(lambda: client.get("/model").json()["examples_learned"] == learned + 2)


def metric(client: httpx.Client, name: str) -> float:
    for line in client.get("/metrics").text.splitlines():
        if line.split("{")[0].split(" ")[0] == name:
            return float(line.rpartition(" ")[2])
    raise AssertionError(f"no {name}")


@pytest.mark.parametrize("size", [1, 10_000])
def test_an_object_in_place_of_an_id_is_refused_at_once(unharmed: httpx.Client, size: int) -> None:
    body = {"ids": [{"a": None}], "labels": [0], "weights": [["x" * size]]}
    answer = unharmed.post("/labels", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "ids")
