"""Drift events of a running service are shown, posted, and survive kill -9."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import orjson
import pytest

from streams.sources.catalog import get
from tests.support.harness import SAFETENSORS, RedisProcess, ServiceProcess, serving, wait_for
from tests.support.servers import answering


def drifts(bodies: list[bytes]) -> int:
    """Return how many drift events were posted, each of them once; recoveries are posted, too."""
    found = [orjson.loads(body) for body in bodies]
    notices = [(notice["kind"], notice["id"]) for notice in found]
    assert len(set(notices)) == len(notices)
    return sum(kind == "drift" for kind, _ in notices)


def test_a_drift_is_shown_and_posted_and_survives_a_kill(tmp_path: Path) -> None:
    stream = get("abrupt", 6_000, source="digits")
    with (
        answering(200) as (url, bodies),
        serving(tmp_path, checkpoint_every_seconds=0.2, drift_webhook=url) as service,
        service.client() as client,
    ):
        for batch in stream.batches(500):
            client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)
        before = client.get("/drift").raise_for_status().json()["events"]
        falls = [e["examples"] for e in before if e["direction"] == "worse"]
        assert any(2_000 < n <= 2_500 for n in falls)
        assert any(4_000 < n <= 4_500 for n in falls)
        wait_for(lambda: drifts(bodies) == len(before))
        assert client.get("/drift?since=1").json()["events"] == before[1:]
        digest = client.post("/checkpoint").json()["sha256"]
        service.kill()
        service.start()
        assert client.get("/drift").json()["events"] == before
        assert client.post("/checkpoint").json()["sha256"] == digest
        assert drifts(bodies) == len(before)


def test_no_drift_is_posted_twice_when_the_log_comes_late(tmp_path: Path) -> None:
    stream = get("abrupt", 6_000, source="digits")
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with (
            answering(200) as (url, bodies),
            serving(tmp_path, drift_webhook=url, redis_url=redis.url) as service,
            service.client() as client,
        ):
            for batch in stream.batches(500):
                client.post("/learn?wait=applied", content=batch.to_bytes(), headers=SAFETENSORS)
            before = client.get("/drift").raise_for_status().json()["events"]
            wait_for(lambda: drifts(bodies) == len(before) > 0)
            service.kill()
            redis.kill()
            late = ServiceProcess(service.directory, service.options, service.port)
            with ThreadPoolExecutor(1) as starting:
                started = starting.submit(late.start)
                wait_for(lambda: '{condition="waiting"} 1.0' in metrics(late))
                redis.start()
                started.result()
            wait_for(lambda: client.get("/health/ready").json()["learning"] == "learning")
            assert client.get("/drift").json()["events"] == before
            assert drifts(bodies) == len(before)
            late.kill()
    finally:
        redis.kill()


@pytest.mark.slow
def test_no_drift_is_posted_twice_when_the_log_is_lost_during_a_replay(tmp_path: Path) -> None:
    stream = get("abrupt", 12_000, source="digits")
    redis = RedisProcess(tmp_path / "redis").start()
    options = {
        "model": "mlp", "hidden": "128", "redis_url": redis.url, "checkpoint_every_seconds": 600.0,
    }  # fmt: skip
    try:
        with answering(200) as (url, bodies):
            service = ServiceProcess(tmp_path, options | {"drift_webhook": url}).start()
            with service.client() as client:
                for batch in stream.batches(40):  # more entries than one read takes
                    client.post("/learn", content=batch.to_bytes(), headers=SAFETENSORS)
                wait_for(lambda: client.get("/model").json()["examples_learned"] == 12_000)
                wait_for(lambda: len(client.get("/drift").json()["events"]) == drifts(bodies) > 0)
                before = client.get("/drift").json()["events"]
                service.kill()
                with ThreadPoolExecutor(1) as starting:
                    started = starting.submit(service.start)
                    wait_for(lambda: '{condition="replaying"} 1.0' in metrics(service))
                    redis.kill()
                    wait_for(lambda: '{condition="waiting"} 1.0' in metrics(service))
                    redis.start()
                    started.result()
                assert client.get("/health/ready").json()["learning"] == "learning"
                assert client.get("/drift").json()["events"] == before
                assert drifts(bodies) == len(before)
            service.kill()
    finally:
        redis.kill()


def metrics(service: ServiceProcess) -> str:
    try:
        return httpx.get(f"{service.url}/metrics").text
    except httpx.TransportError:
        return ""
