"""Services that share a log and a bucket, and no folder, as those on two machines do."""

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from service.log.errors import LogError
from service.trainer.objects.bucket import open_bucket
from service.trainer.objects.latest import Latest
from service.trainer.store import UnreadableError
from tests.support.harness import (
    SAFETENSORS,
    RedisProcess,
    ServiceProcess,
    free_port,
    relay,
    serving,
    wait_for,
)
from tests.support.objects import S3Process
from tests.support.states import a_batch

SMALL = {
    "features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 600_000, "lease_seconds": 1.0,
    "checkpoint_every_seconds": 0.2,
}  # fmt: skip


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis").start()
    yield process
    process.kill()


@pytest.fixture(params=["s3", "file"])
def state(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str]]:
    """An address, and the variables with which it is reached."""
    if request.param == "file":
        return f"file://{tmp_path}/state", {}
    server: S3Process = request.getfixturevalue("s3")
    return f"s3://bucket/{tmp_path.name}", server.environment


Machine = Callable[..., ServiceProcess]


@pytest.fixture
def machine(tmp_path: Path, redis: RedisProcess) -> Iterator[Machine]:
    """Make a service with a folder of its own, at an address with its variables."""
    made: list[ServiceProcess] = []

    def make(name: str, state: tuple[str, dict[str, str]], **options: object) -> ServiceProcess:
        url, environment = state
        chosen = SMALL | {"redis_url": redis.url, "state": url} | options
        service = ServiceProcess(tmp_path / name, chosen, free_port(), environment=environment)
        made.append(service)
        return service

    yield make
    for service in made:
        if service.process is not None and service.process.is_alive():
            service.kill(server=False)


def learn(client: httpx.Client, seed: int) -> None:
    body = a_batch(seed).to_bytes()
    client.post("/learn?wait=applied", content=body, headers=SAFETENSORS).raise_for_status()


def digest(service: ServiceProcess) -> str:
    with service.client() as client:
        return str(client.post("/checkpoint").raise_for_status().json()["sha256"])


def latest(state: tuple[str, dict[str, str]], patch: pytest.MonkeyPatch) -> Latest:
    for name, value in state[1].items():
        patch.setenv(name, value)
    found = open_bucket(state[0]).read("logistic/latest.json")
    assert found is not None
    return Latest.from_json(found.raw)


def uninterrupted(directory: Path, batches: int) -> str:
    with serving(directory, **SMALL) as alone:
        with alone.client() as client:
            for k in range(batches):
                learn(client, k)
        return digest(alone)


def test_a_standby_without_the_learners_folder_takes_over_bit_for_bit(
    tmp_path: Path,
    machine: Machine,
    state: tuple[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = machine("first", state).start()
    other = machine("other", state).start()
    with first.client() as client:
        for k in range(4):
            learn(client, k)
    before = digest(first)
    with other.client() as client:
        wait_for(lambda: client.get("/model").json()["model_version"] == 4)
        assert client.get("/model").json()["role"] == "standby"
    claimed = latest(state, monkeypatch)
    assert (claimed.epoch, claimed.version) == (1, 4)
    with first.client() as client:
        learn(client, 4)
    first.kill(server=False)
    shutil.rmtree(tmp_path / "first/data")
    with other.client() as client:
        wait_for(lambda: client.get("/model").json()["role"] == "learner")
        assert client.get("/model").json()["model_version"] == 5
        learn(client, 5)
    after = digest(other)
    assert before != after == uninterrupted(tmp_path / "alone", 6)
    now = latest(state, monkeypatch)
    assert now.epoch > claimed.epoch
    assert now.version == 6
    assert not list((tmp_path / "other/data").rglob("*.safetensors"))
    assert other.terminate() == 0


def test_a_stream_survives_kills_of_the_learner_bit_for_bit(
    tmp_path: Path, machine: Machine, state: tuple[str, dict[str, str]]
) -> None:
    batches = [a_batch(k) for k in range(150)]
    services = machine("first", state), machine("other", state)
    ended = relay(services, batches, kills=3)
    assert (ended.examples, ended.version) == (sum(map(len, batches)), 150)
    assert ended.sha256 == uninterrupted(tmp_path / "alone", 150)


@pytest.fixture
def own(tmp_path: Path, s3: S3Process) -> Iterator[S3Process]:
    """A server that the test may stop."""
    server = S3Process(tmp_path / "own").start()
    yield server
    server.kill()


def test_learning_goes_on_while_the_store_is_away(
    tmp_path: Path,
    machine: Machine,
    redis: RedisProcess,
    own: S3Process,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state = "s3://bucket/away", own.environment
    service = machine("first", state).start()
    with service.client() as client:
        learn(client, 0)
        assert client.post("/checkpoint").status_code == 201
        own.kill()
        for k in range(1, 4):
            learn(client, k)
        failed = client.post("/checkpoint")
        assert failed.status_code >= 500
        assert "s3://bucket/away cannot be used now" in service.log
        with redis.client() as log:
            assert log.xlen("funnel:{logistic}:log") >= 3, "nothing is trimmed meanwhile"
        own.start()

        def is_written() -> bool:
            with contextlib.suppress(OSError):  # the server is not ready at once
                return latest(state, monkeypatch).version == 4
            return False

        wait_for(is_written)
    with service.client() as client:
        learn(client, 4)
    assert digest(service) == uninterrupted(tmp_path / "alone", 5)


def test_a_start_is_refused_while_the_store_is_away(
    machine: Machine, redis: RedisProcess, s3: S3Process
) -> None:
    away = s3.environment | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}"}
    service = machine("first", ("s3://bucket/refused", away))
    with pytest.raises(UnreadableError, match=r"s3://bucket/refused cannot be used now.*AWS_"):
        service.start()


def test_a_standby_of_another_place_is_refused_by_name(
    machine: Machine, redis: RedisProcess, s3: S3Process
) -> None:
    first = machine("first", ("s3://bucket/here", s3.environment)).start()
    with first.client() as client:
        for k in range(5):
            learn(client, k)
            client.post("/checkpoint").raise_for_status()
        with redis.client() as log:
            wait_for(lambda: log.xlen("funnel:{logistic}:log") < 5)
    other = machine("other", ("s3://bucket/there", s3.environment))
    with pytest.raises(LogError, match=r"Use the learner's --state, .* s3://bucket/here/logistic"):
        other.start()


def test_a_store_names_the_model_that_it_has(
    machine: Machine, redis: RedisProcess, s3: S3Process
) -> None:
    state = "s3://bucket/named", s3.environment
    with_model = machine("first", state).start()
    with with_model.client() as client:
        learn(client, 0)
    assert with_model.terminate() == 0
    with redis.client() as log:
        log.flushall()
    without = machine("other", state, model=None, accept_gap=True).start()
    with without.client() as client:
        assert client.get("/model").json()["model_version"] == 1
    assert "s3://bucket/named has its checkpoints" in without.log


def test_half_of_a_key_is_an_error_of_the_setting(
    machine: Machine, redis: RedisProcess, s3: S3Process
) -> None:
    environment = {k: v for k, v in s3.environment.items() if k != "AWS_ACCESS_KEY_ID"}
    service = machine("first", ("s3://bucket/half", environment))
    with pytest.raises((LogError, ValueError), match="FUNNEL_STATE: s3://bucket/half"):
        service.start()
