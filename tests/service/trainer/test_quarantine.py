"""Skipped batches are recorded in the log once, and replay skips the same."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from streams.batch import Batch
from tests.support.harness import SAFETENSORS, RedisProcess, serving, wait_for
from tests.support.states import a_batch

OPTIONS = {
    "features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 600_000, "loss_guard": 8.0,
    "checkpoint_every_seconds": 3600.0,
}  # fmt: skip
DEAD = "funnel:{logistic}:dead"


def learn(client: httpx.Client, batch: Batch) -> str:
    answer = client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)
    return str(answer.raise_for_status().json()["entry"])


def digest(client: httpx.Client) -> str:
    return str(client.post("/checkpoint").raise_for_status().json()["sha256"])


def poison(seed: int) -> Batch:
    batch = a_batch(seed)
    return Batch(batch.features, (batch.labels + 1) % 3)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    running = RedisProcess(tmp_path_factory.mktemp("redis")).start()
    yield running
    running.kill()


def test_skipped_ranges_are_recorded_once_and_replay_is_exact(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with redis.client() as direct:
        direct.flushall()
        with serving(tmp_path, **OPTIONS, redis_url=redis.url) as service:
            with service.client() as client:
                for k in range(60):
                    learn(client, a_batch(k))
                before = learn(client, a_batch(60))
                entry = learn(client, poison(0))
                learn(client, a_batch(61))
                wait_for(lambda: direct.xlen(DEAD) == 1)
                counted = "funnel_quarantined_batches_total 1.0"
                wait_for(lambda: counted in client.get("/metrics").text)
                assert "funnel_nonfinite_batches_total 0.0" in client.get("/metrics").text
                scored = client.get("/model").json()["examples_learned"]
            ((_, note),) = direct.xrange(DEAD)
            assert note[b"version"] == b"62"
            assert (note[b"begin"], note[b"end"]) == (before.encode(), entry.encode())
            assert note[b"examples"] == b"20"
            assert b"its loss is" in note[b"reason"]
            service.kill()
            service.start()
            with service.client() as client:
                assert client.get("/model").json()["examples_learned"] == scored
                learn(client, poison(1))
                wait_for(lambda: direct.xlen(DEAD) == 2)
                learn(client, a_batch(62))
                after = digest(client)
            assert [n[b"version"] for _, n in direct.xrange(DEAD)] == [b"62", b"64"]
    with serving(tmp_path / "other", **OPTIONS) as clean, clean.client() as client:
        batches = [a_batch(k) for k in range(61)]
        for batch in (*batches, poison(0), a_batch(61), poison(1), a_batch(62)):
            learn(client, batch)
        assert digest(client) == after


def test_a_batch_on_which_the_model_raises_is_recorded_before_a_checkpoint_is_written_after_it(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = OPTIONS | {"model": "tests.golden.restless:Restless", "max_wait_ms": 50}
    with redis.client() as direct:
        direct.flushall()
        with (
            serving(tmp_path, **options, redis_url=redis.url) as service,
            service.client() as client,
        ):
            learn(client, a_batch(0))
            learn(client, a_batch(1, 1))  # too small for batch normalization
            client.post("/checkpoint").raise_for_status()
            ((_, note),) = direct.xrange("funnel:{tests.golden.restless:Restless}:dead")
            assert (note[b"version"], note[b"examples"]) == (b"2", b"1")
            assert b"its loss is nan" in note[b"reason"]


def test_the_last_skipped_batch_is_recorded_before_an_orderly_end(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with redis.client() as direct:
        direct.flushall()
        with serving(tmp_path, **OPTIONS, redis_url=redis.url) as service:
            with service.client() as client:
                for k in range(40):
                    learn(client, a_batch(k))
                learn(client, poison(0))
            assert service.terminate() == 0
        assert [note[b"version"] for _, note in direct.xrange(DEAD)] == [b"41"]
