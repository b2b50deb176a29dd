"""Faults, each caused for real; `service/docs/faults.md` says what must happen."""

import contextlib
import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from redis import Redis

from service.fold.state import State
from service.settings import load_settings
from tests.support.harness import (
    SAFETENSORS,
    RedisProcess,
    ServiceProcess,
    free_port,
    serving,
    wait_for,
)
from tests.support.states import CPU, a_batch, step

SMALL = {
    "model": "logistic",
    "features": 6,
    "classes": 3,
    "batch_size": 20,
    "max_wait_ms": 600_000,
}
LOG = "funnel:{logistic}:log"


@dataclass
class World:
    """A service on a server of its own, with one batch learned."""

    service: ServiceProcess
    server: RedisProcess
    client: httpx.Client
    redis: Redis

    def learn(self, seed: int, wait: str = "?wait=applied", key: str = "") -> httpx.Response:
        headers = SAFETENSORS | ({"Idempotency-Key": key} if key else {})
        return self.client.post(f"/learn{wait}", content=a_batch(seed).to_bytes(), headers=headers)

    def predicts(self) -> bool:
        features = {"features": a_batch(99).features.tolist()}
        return self.client.post("/predict", json=features).status_code == 200

    def learning(self) -> str:
        return str(self.client.get("/health/ready").raise_for_status().json()["learning"])

    def digest(self) -> str:
        return str(self.client.post("/checkpoint").raise_for_status().json()["sha256"])

    def refuses(self, seed: int, code: str) -> bool:
        answer = self.learn(seed, wait="", key=str(seed))
        if answer.status_code == 202:
            return False
        assert answer.status_code == 503
        assert int(answer.headers["Retry-After"]) >= 1
        return bool(answer.json()["error"]["code"] == code)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    server = RedisProcess(tmp_path / "redis").start()
    try:
        with (
            serving(tmp_path, **SMALL, redis_url=server.url, lease_seconds=1.0) as service,
            service.client() as client,
            server.client() as redis,
        ):
            world = World(service, server, client, redis)
            world.learn(0).raise_for_status()
            yield world
    finally:
        server.kill()


def folded(batches: int) -> str:
    """The digest of the first batches, computed without any service."""
    from service.log.position import ORIGIN, Position, Progress
    from service.trainer.checkpoint import Checkpoint

    settings, at = load_settings(SMALL), Position(ORIGIN)
    state = State(settings.spec, settings.hyperparameters, CPU)
    torch.set_num_threads(1)
    for k in range(batches):
        batch = a_batch(k)
        state.drift.note(step(state, batch), len(batch), state.examples, at)
    return Checkpoint.of(state, Progress("", 0, 0, at, 0, 0, 0, 0)).sha256()


def takes(world: World, k: int) -> bool:
    return world.learn(k, key=str(k)).status_code in (200, 202)


def goes_on(world: World, batches: int) -> None:
    """After the fault all is as if it had not been."""
    wait_for(lambda: world.learning() == "learning")
    for k in range(1, batches):
        wait_for(partial(takes, world, k))
    wait_for(lambda: world.client.get("/model").json()["model_version"] == batches)
    assert world.digest() == folded(batches)


def test_a_server_out_of_memory_takes_nothing_and_loses_nothing(world: World) -> None:
    world.redis.config_set("maxmemory", 1)
    wait_for(lambda: world.refuses(1, "log_unavailable"))
    assert world.predicts()
    world.redis.config_set("maxmemory", 0)
    goes_on(world, 4)


def test_a_server_out_of_memory_is_learned_empty(world: World) -> None:
    """Only learning makes room, so it may not wait for room."""
    assert world.service.terminate() == 0
    for k in range(1, 4):
        world.redis.xadd("funnel:{logistic}:log", {"batch": a_batch(k).to_bytes()})
    world.redis.config_set("maxmemory", 1)
    world.service.start()
    wait_for(lambda: world.client.get("/model").json()["model_version"] == 4)
    assert world.refuses(4, "log_unavailable")
    assert world.digest() == folded(4)
    world.redis.config_set("maxmemory", 0)
    assert world.learn(4).status_code == 200
    assert world.digest() == folded(5)


def test_a_server_that_turns_read_only_takes_nothing_and_loses_nothing(world: World) -> None:
    world.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    wait_for(lambda: world.refuses(1, "log_unavailable"))
    assert world.predicts()
    world.redis.execute_command("REPLICAOF", "NO", "ONE")
    goes_on(world, 4)


def test_a_server_that_stands_still_delays_and_loses_nothing(world: World) -> None:
    answers: list[httpx.Response] = []
    os.kill(world.server.process.pid, signal.SIGSTOP)
    asking = threading.Thread(target=lambda: answers.append(world.learn(1, "", "1")))
    asking.start()
    with world.service.client() as other:
        for _ in range(10):
            features = {"features": a_batch(99).features.tolist()}
            assert other.post("/predict", json=features).status_code == 200
    assert answers == []
    os.kill(world.server.process.pid, signal.SIGCONT)
    asking.join(30)
    assert answers[0].status_code == 202
    goes_on(world, 4)


def test_a_server_that_is_killed_and_started_again_loses_nothing(world: World) -> None:
    for k in range(1, 4):
        world.server.kill()
        wait_for(partial(world.refuses, k, "log_unavailable"))
        assert world.predicts()
        world.server.start()
        goes_on(world, k + 1)


def test_a_server_that_begins_to_evict_halts_learning(world: World) -> None:
    world.redis.config_set("maxmemory-policy", "allkeys-lru")
    wait_for(lambda: world.learning() == "halted")
    assert world.refuses(1, "learning_halted")
    assert world.predicts()
    world.service.kill()
    with pytest.raises(Exception, match="noeviction"):
        world.service.start()


def checkpoint_age(world: World) -> float:
    text = world.client.get("/metrics").text
    return float(re.findall(r"^funnel_checkpoint_age_seconds (\S+)", text, re.MULTILINE)[0])


@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_a_full_disk_costs_a_checkpoint_and_nothing_else(world: World) -> None:
    before = resource.prlimit(world.service.process.pid, resource.RLIMIT_FSIZE, (9_000, -1))
    old = checkpoint_age(world)
    refused = world.client.post("/checkpoint")
    assert checkpoint_age(world) > old  # of the one that there is, not of the last try
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "checkpoint_failed")
    assert 'funnel_checkpoints_total{result="failed"} 1.0' in world.client.get("/metrics").text
    assert world.learn(1, key="1").status_code == 200
    resource.prlimit(world.service.process.pid, resource.RLIMIT_FSIZE, before)
    goes_on(world, 3)
    assert not list((world.service.directory / "data").rglob(".writing-*"))


def test_a_clock_that_jumps_ahead_and_back_does_not_stop_learning(world: World) -> None:
    ahead = int(time.time() * 1000) + 86_400_000
    world.redis.xadd(LOG, {"batch": a_batch(1).to_bytes()}, id=f"{ahead}-0")
    wait_for(lambda: world.client.get("/model").json()["model_version"] == 2)
    assert world.learn(2).json()["entry"] == f"{ahead}-1"
    assert "funnel_lag_seconds 0.0" in world.client.get("/metrics").text
    assert world.digest() == folded(3)


def test_a_service_that_never_reached_its_log_ends_in_order(tmp_path: Path) -> None:
    port = free_port()
    options = ["--redis-url", "redis://127.0.0.1:1", "--port", str(port)]
    command = ["serve", "--model", "logistic", *options]
    service = subprocess.Popen(
        [sys.executable, "-m", "service.cli", *command], env=os.environ | {"OMP_NUM_THREADS": "1"}
        | {"FUNNEL_DATA_DIR": str(tmp_path)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def waits() -> bool:
        try:
            found = httpx.get(f"http://127.0.0.1:{port}/health/ready").json()
        except httpx.TransportError:
            return False
        return bool(found.get("learning") == "waiting")

    try:
        wait_for(waits)
        service.terminate()
        assert service.wait(30) == 0
    finally:
        service.kill()
        service.wait()


def test_a_service_that_stood_still_goes_on(world: World) -> None:
    os.kill(world.service.process.pid, signal.SIGSTOP)
    time.sleep(1.5)  # the fault itself: a stop longer than the lease
    os.kill(world.service.process.pid, signal.SIGCONT)
    goes_on(world, 4)


def test_a_device_that_fails_halts_learning_until_a_restart(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    options: dict[str, Any] = SMALL | {"model": "tests.support.states:Fragile"}
    service = ServiceProcess(tmp_path, options, environment={"FRAGILE": str(broken)}).start()
    try:
        with service.client() as client:
            body = a_batch(0).to_bytes()
            client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
            broken.touch()
            client.post("/learn", content=body, headers=SAFETENSORS)
            wait_for(lambda: client.get("/health/ready").json()["learning"] == "halted")
            assert "the device is full" in client.get("/health/ready").json()["reason"]
            assert client.get("/health/ready").json()["role"] == "none"  # it takes over no more
            assert client.get("/model").json()["role"] == "none"
            refused = client.post("/learn", content=body, headers=SAFETENSORS)
            assert refused.json()["error"]["code"] == "learning_halted"
            features = {"features": a_batch(1).features.tolist()}
            assert client.post("/predict", json=features).json()["model_version"] == 1
        broken.unlink()
        service.kill()
        service.start()
        with service.client() as client:
            assert client.get("/model").json()["model_version"] == 2
    finally:
        service.kill()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB for the data of a service at ``tmp_path``."""
    (tmp_path / "data").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", tmp_path / "data"]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path / "data"], check=True)


def test_a_full_disk_under_the_embedded_log_is_called_that_and_loses_nothing(
    small_disk: Path,
) -> None:
    filler = small_disk / "data/filler"
    with serving(small_disk, **SMALL) as service, service.client() as client:

        def taken(k: int) -> bool:
            answer = client.post(
                "/learn",
                content=a_batch(k).to_bytes(),
                headers=SAFETENSORS | {"Idempotency-Key": str(k)},
            )
            return answer.status_code == 202

        assert taken(0)
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 12))
        count = next(k for k in range(1, 100_000) if not taken(k))
        wait_for(lambda: "make room" in service.log)
        ready = client.get("/health/ready").json()
        assert ready["learning"] == "waiting"
        filler.unlink()
        wait_for(partial(taken, count))
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 20 * (count + 1))
        wait_for(lambda: "the embedded server is back" in service.log)
        assert service.log.count("make room") < 5


def test_callers_that_wait_for_a_hung_log_are_answered_at_the_end(world: World) -> None:
    os.kill(world.server.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor(2) as senders:
        sent = [senders.submit(world.learn, 1, "", "one") for _ in range(2)]
        (refused,), (waiting,) = wait(sent, timeout=20, return_when=FIRST_COMPLETED)
        assert refused.result().status_code == 409, "the key's first batch is under way"
        os.kill(world.service.process.pid, signal.SIGTERM)
        answer = waiting.result(20)
    os.kill(world.server.process.pid, signal.SIGCONT)
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "log_unavailable"
    world.service.process.join(40)
    assert world.service.process.exitcode == 0
    assert "Traceback" not in world.service.log


@pytest.mark.slow
def test_huge_entries_are_discarded_and_do_not_cost_the_lease(
    tmp_path: Path, server: RedisProcess
) -> None:
    with server.client() as redis:  # before the service starts, as their fsync stalls the server
        for count in (90 << 20, 10 << 20):
            redis.xadd(LOG, {"json": b'{"features": [[' + b"0," * count + b'0]], "labels": [0]}'})
    with (
        serving(tmp_path, **SMALL, redis_url=server.url) as service,
        service.client() as client,
        server.client() as redis,
    ):
        answer = client.post(
            "/learn?wait=applied", content=a_batch(0).to_bytes(), headers=SAFETENSORS
        )
        assert answer.status_code == 200
        found = [fields[b"reason"] for _, fields in redis.xrange("funnel:{logistic}:dead")]
        assert b"bytes of JSON, more than" in found[0]
        assert b"has 10485761 features, expected 6" in found[1]
        assert len(found) == 2
        assert "is discarded" in service.log
        assert "funnel dead lists all such entries" in service.log
        assert "lease ran out" not in service.log


def test_a_service_can_be_stopped_while_its_log_loads(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        pid = service.server_pid()
        assert pid is not None
        service.kill(server=False)
        os.kill(pid, signal.SIGSTOP)  # as one is that reads a large file
        try:
            again = subprocess.Popen(
                [sys.executable, "-m", "service.cli", "serve", "--features", "6", "--classes", "3",
                 "--port", str(service.port), "--data-dir", str(tmp_path / "data")],
                stderr=subprocess.DEVNULL,
            )  # fmt: skip
            wait_for(partial(is_live, service.url))
            again.terminate()
            assert again.wait(15) == 0
        finally:
            os.kill(pid, signal.SIGCONT)
            service.kill_server()


def is_live(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").status_code == 200
    except httpx.TransportError:
        return False
