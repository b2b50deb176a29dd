"""A service that has learned uint8 features alone refuses integers, and replay agrees."""

from pathlib import Path

import numpy as np
import orjson
import pytest
from safetensors.numpy import save

from service.trainer.checkpoint import Checkpoint, decode, encode
from streams.batch import Batch
from tests.support.checkpoints import NUMERICS, PROGRESS, kept
from tests.support.harness import serving
from tests.support.memory_log import MemoryLog, MemoryServer
from tests.support.replicas import a_replica, keep_lease, learn
from tests.support.states import a_batch, a_state, same_tensors, step

BYTES = {"Content-Type": "application/octet-stream"}
WHOLE = {"features": [[0, 7, 0, 255, 1, 1]], "labels": [0]}


def pixels(n: int = 20) -> Batch:
    rng = np.random.default_rng(0)
    features = rng.integers(0, 256, (n, 6)).astype(np.uint8)
    return Batch(features, rng.integers(0, 3, n))


def test_integers_are_refused_by_name_where_bytes_alone_were_learned(tmp_path: Path) -> None:
    lines = orjson.dumps({"features": WHOLE["features"][0], "label": 0})
    integers = save({"features": np.array([[0, 7, 0, 255, 1, 1]]), "labels": np.array([0])})
    asked = save({"features": np.array([[0, 7, 0, 255, 1, 1]])})
    floats = Batch(np.array([[0, 7, 0, 2, 1, 1]], np.float32), np.array([0])).to_bytes()
    options = {"features": 6, "classes": 3, "max_wait_ms": 20}
    with serving(tmp_path, **options) as service, service.client() as client:
        assert client.post("/predict", json={"features": WHOLE["features"]}).status_code == 200
        client.post("/learn?wait=applied", content=pixels().to_bytes(), headers=BYTES)
        refused = [
            client.post("/learn", json=WHOLE),
            client.post("/learn", json={"features": 20_000 * WHOLE["features"],
                                        "labels": 20_000 * [0]}),
            client.post("/predict", json={"features": WHOLE["features"]}),
            client.post(
                "/learn", content=lines, headers={"Content-Type": "application/x-ndjson"}
            ),
            client.post("/learn", content=integers, headers=BYTES),
            client.post("/predict", content=asked, headers=BYTES),
        ]  # fmt: skip
        for answer in refused:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (422, "invalid")
            assert (error["field"], error["index"]) == ("features", 0)
            assert "Divide them by 255, or send uint8" in error["message"]
        scaled = [[0.0, 7 / 255, 0.0, 1.0, 1.0, 0.0]]
        for fine in ({"features": scaled}, {"features": [[0, 1, 1, 0, 0, 1]]}):
            assert client.post("/predict", json=fine).status_code == 200
        answer = client.post("/learn?wait=applied", content=floats, headers=BYTES)
        assert answer.status_code == 200
        assert client.post("/learn", json=WHOLE).status_code == 202


@pytest.mark.anyio
async def test_a_producers_integers_are_a_dead_letter_and_replay_repeats_that(
    memory: MemoryServer, log: MemoryLog, tmp_path: Path
) -> None:
    replica, store = a_replica(), kept(tmp_path)[0]
    pending = await replica.recover(log, False, keep_lease)
    memory.add({b"batch": pixels().to_bytes()})
    await learn(replica, log, pending, 20)
    store.write(Checkpoint.of(replica.state, replica.progress))
    dead = memory.add({b"json": orjson.dumps(WHOLE)})
    memory.add({b"batch": a_batch(1).to_bytes()})
    while pending.examples < 20:
        await replica.read(log, pending, None, is_new=True)
    cut, batch = pending.take(20)
    assert "Divide them by 255" in cut.dead[dead]
    await replica.record(log, [cut])
    replica.apply(cut, batch)
    memory.add({b"json": orjson.dumps(WHOLE)})  # floats have been learned meanwhile
    await learn(replica, log, pending, 1)
    assert (replica.state.examples, replica.state.byte_examples) == (41, 20)
    for again in (a_replica(), a_replica()):
        again.load(store)
        await again.recover(log, False, keep_lease)
        assert same_tensors(again.state.tensors(), replica.state.tensors())
        assert again.state.byte_examples == 20
    blank = a_replica()
    await blank.recover(log, False, keep_lease)
    assert (blank.state.byte_examples, blank.progress.dead) == (20, 1)


def test_a_checkpoint_keeps_the_count_outside_its_digest_and_an_older_one_has_none() -> None:
    state = a_state()
    assert not state.expects_bytes
    step(state, pixels())
    assert state.expects_bytes
    copy = Checkpoint.of(state, PROGRESS)
    raw = encode(copy, copy.sha256(), NUMERICS)
    assert decode(raw).copy.byte_examples == 20
    other = a_state()
    other.load(copy.tensors, copy.version, copy.examples, copy.drifts)  # as one of before
    assert not other.expects_bytes
    older = Checkpoint.of(other, PROGRESS)
    assert older.sha256() == copy.sha256()
    assert decode(encode(older, older.sha256(), NUMERICS)).copy.byte_examples is None
    step(other, pixels())
    assert not other.expects_bytes
