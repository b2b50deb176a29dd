"""Two services on one log: one learns, the other stands by and takes over."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from service.log.errors import LogError
from service.trainer.trainer import ANOTHER_LEARNS
from tests.support.harness import (
    SAFETENSORS,
    RedisProcess,
    ServiceProcess,
    free_port,
    relay,
    serving,
    wait_for,
)
from tests.support.states import CLASSES, a_batch
from tests.support.tasks import TASKS, of_task, settings_of

SMALL = {
    "features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 600_000, "lease_seconds": 1.0,
    "checkpoint_every_seconds": 0.2,
}  # fmt: skip


def learn(client: httpx.Client, seed: int, task: str = TASKS[0]) -> None:
    body = of_task(task, a_batch(seed)).to_bytes()
    client.post("/learn?wait=applied", content=body, headers=SAFETENSORS).raise_for_status()


def role(service: ServiceProcess) -> str:
    with service.client() as client:
        return str(client.get("/model").json()["role"])


def digest(service: ServiceProcess) -> str:
    with service.client() as client:
        return str(client.post("/checkpoint").raise_for_status().json()["sha256"])


def second(first: ServiceProcess) -> ServiceProcess:
    """One more service on the same directory and log."""
    return ServiceProcess(first.directory, first.options, free_port())


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis").start()
    yield process
    process.kill()


@pytest.fixture
def task(request: pytest.FixtureRequest) -> str:
    """What the services learn; tests may choose it."""
    return str(getattr(request, "param", TASKS[0]))


@pytest.fixture
def pair(
    tmp_path: Path, redis: RedisProcess, task: str
) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    """A learner that has learned some batches, and a standby."""
    with serving(tmp_path, **options_of(task), redis_url=redis.url) as first:
        with first.client() as client:
            for k in range(3):
                learn(client, k, task)
        other = second(first).start()
        yield first, other
        if other.process.is_alive():
            other.kill(server=False)


def options_of(task: str) -> dict[str, object]:
    return SMALL | settings_of(task, CLASSES)


def uninterrupted(directory: Path, batches: int, task: str = TASKS[0]) -> str:
    with serving(directory, **options_of(task)) as alone:
        with alone.client() as client:
            for k in range(batches):
                learn(client, k, task)
        return digest(alone)


def test_a_standby_predicts_and_forwards_nothing(
    pair: tuple[ServiceProcess, ServiceProcess],
) -> None:
    first, other = pair
    before = digest(first)
    with other.client() as client:
        ready = client.get("/health/ready")
        assert (ready.status_code, ready.json()["role"]) == (200, "standby")
        assert client.get("/model").json()["role"] == "standby"
        wait_for(lambda: client.get("/model").json()["model_version"] == 3)
        features = {"features": a_batch(9).features.tolist()}
        with first.client() as learner:
            theirs = learner.post("/predict", json=features).json()
        assert client.post("/predict", json=features).json() == theirs
        for path, body in (("/learn", a_batch(4).to_bytes()), ("/checkpoint", b"")):
            refused = client.post(path, content=body, headers=SAFETENSORS)
            assert refused.status_code == 503
            assert refused.json()["error"]["code"] == "standby"
            assert "Retry-After" in refused.headers
        assert "funnel_ready 1.0" in client.get("/metrics").text
    assert (role(first), digest(first)) == ("learner", before)


def test_a_twin_of_another_model_is_refused_before_the_first_checkpoint(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url, "checkpoint_every_seconds": 600.0}
    with serving(tmp_path, **options) as first, first.client() as client:
        learn(client, 0)
        twin = ServiceProcess(tmp_path, options | {"classes": 4}, free_port())
        with pytest.raises(LogError, match="FUNNEL_CLASSES is 3 there and 4 here"):
            twin.start()
        learn(client, 1)
        assert role(first) == "learner"


def test_another_application_on_one_server_is_refused_at_its_start_with_each_difference(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url}
    with serving(tmp_path / "first", **options) as first, first.client() as client:
        others = options | {"features": 5, "classes": 4, "seed": 1}
        other = ServiceProcess(tmp_path / "other", others, free_port())
        with pytest.raises(LogError) as refusal:  # before anything is learned
            other.start()
        message = str(refusal.value)
        assert "learns from funnel:{logistic}:log" in message
        for difference in ("FEATURES is 6 there and 5", "CLASSES is 3 there and 4", "SEED is 0"):
            assert f"FUNNEL_{difference}" in message
        assert "another --name for another application" in message
        named = ServiceProcess(tmp_path / "other", others | {"name": "churn"}, free_port()).start()
        with named.client() as theirs:
            body = a_batch(0).features[:, :5].tolist()
            sent = {"features": body, "labels": [k % 4 for k in range(len(body))]}
            theirs.post("/learn?wait=applied", json=sent).raise_for_status()
            learn(client, 0)
            assert [role(service) for service in (first, named)] == ["learner", "learner"]
            ready = theirs.get("/health/ready").json()
            assert (ready["model"], ready["learned"]) == ("churn", len(body))
            assert theirs.get("/model").json()["name"] == "churn"
            assert 'funnel_model_info{model="churn"} 1.0' in theirs.get("/metrics").text
        named.kill(server=False)
    with redis.client() as direct:
        logs = {bytes(key).decode() for key in direct.keys("*:log")}
    assert logs == {"funnel:{logistic}:log", "funnel:{churn}:log"}
    assert (tmp_path / "other/data/checkpoints/churn").is_dir()


def test_a_twin_of_an_open_learner_is_halted_when_it_begins(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url, "features": None, "classes": None}
    with serving(tmp_path / "first", **options) as first, first.client() as client:
        others = options | {"features": 5, "classes": 4}
        other = ServiceProcess(tmp_path / "other", others, free_port()).start()
        assert role(other) == "standby"
        rows = {"rows": [{"x": k} for k in range(20)], "labels": ["a", "b"] * 10}
        client.post("/learn?wait=applied", json=rows).raise_for_status()
        with other.client() as theirs:
            wait_for(lambda: theirs.get("/health/ready").json()["learning"] == "halted")
            assert "features is 0 there" in theirs.get("/health/ready").json()["reason"]
        other.kill(server=False)


def test_a_twin_of_another_width_is_refused_while_the_labels_are_open(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url, "model": None, "classes": None}
    with serving(tmp_path / "first", **options) as first:
        others = options | {"features": 5, "classes": 4}
        other = ServiceProcess(tmp_path / "other", others, free_port())
        with pytest.raises(LogError, match="FUNNEL_FEATURES is 6 there and 5 here") as refusal:
            other.start()
        assert "CLASSES" not in str(refusal.value), "the labels decide on them"
        assert role(first) == "learner"


def test_a_standby_whose_folder_is_not_the_learners_is_refused_once_it_could_not_take_over(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url, "checkpoint_every_seconds": 600.0}
    with serving(tmp_path / "first", **options) as first, first.client() as client:
        learn(client, 0)
        early = ServiceProcess(tmp_path / "early", options, free_port()).start()
        folder = first.directory / "data/checkpoints/logistic"
        assert f"the learner keeps its checkpoints in {folder}, and this service" in early.log
        early.kill(server=False)
        digest(first)
        with redis.client() as direct:  # the log is trimmed up to the checkpoint
            wait_for(lambda: direct.xinfo_stream("funnel:{logistic}:cuts")["length"] == 1)
        late = ServiceProcess(tmp_path / "late", options, free_port())
        with pytest.raises(LogError, match=f"--data-dir, which is {folder} on "):
            late.start()
        twin = second(first).start()
        assert role(twin) == "standby"
        twin.kill(server=False)


def test_a_standby_with_other_settings_says_which_will_change(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url}
    with serving(tmp_path, **options) as first:
        others = options | {"batch_size": 10, "shadow": "adagrad", "label_ttl": "2h"}
        other = ServiceProcess(tmp_path, others, free_port()).start()
        assert role(other) == "standby"
        other.kill(server=False)
        assert "it goes on with its own settings: " in first.log  # both write one file
        for change in (
            "FUNNEL_BATCH_SIZE is 20 there and 10 here",
            "FUNNEL_SHADOW is empty there and adagrad here",
            "FUNNEL_LABEL_TTL is 1h there and 2h here",
        ):
            assert change in first.log


@pytest.mark.parametrize("task", TASKS, indirect=True)
def test_a_killed_learner_is_replaced_at_once(
    pair: tuple[ServiceProcess, ServiceProcess], tmp_path: Path, task: str
) -> None:
    first, other = pair
    first.kill(server=False)
    wait_for(lambda: role(other) == "learner", seconds=5)
    with other.client() as client:
        learn(client, 3, task)
    assert digest(other) == uninterrupted(tmp_path / "alone", 4, task)
    first.start()
    assert role(first) == "standby"


def test_a_learner_that_ends_in_order_hands_over(
    pair: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    first, other = pair
    assert first.terminate() == 0
    wait_for(lambda: role(other) == "learner", seconds=5)
    with other.client() as client:
        learn(client, 3)
    assert digest(other) == uninterrupted(tmp_path / "alone", 4)


def test_a_stopped_learner_that_wakes_changes_nothing(
    pair: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    first, other = pair
    with first.client() as client:
        client.post("/learn", content=a_batch(3).to_bytes(), headers=SAFETENSORS)
        os.kill(first.process.pid, signal.SIGSTOP)
    began = time.monotonic()
    wait_for(lambda: role(other) == "learner", seconds=10)
    assert time.monotonic() - began > 0.3  # it held the lock: only the lease ran out
    with other.client() as client:
        for k in range(4, 6):
            learn(client, k)
    before = digest(other)
    os.kill(first.process.pid, signal.SIGCONT)
    wait_for(lambda: role(first) == "standby")
    assert "learning may have passed to another service" in first.log
    assert digest(other) == before == uninterrupted(tmp_path / "alone", 6)
    with other.client() as client:
        learn(client, 6)
        version = client.get("/model").json()["model_version"]
    digest(other)
    with first.client() as client:
        wait_for(lambda: client.get("/model").json()["model_version"] == version)


def test_callers_that_wait_for_a_learner_without_lease_are_answered(
    pair: tuple[ServiceProcess, ServiceProcess],
) -> None:
    first, other = pair
    os.kill(first.process.pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as senders, first.client() as client:
        body = a_batch(9, 3).to_bytes()
        asked = [
            senders.submit(client.post, "/learn?wait=applied", content=body, headers=SAFETENSORS),
            senders.submit(client.post, "/checkpoint"),
        ]
        wait_for(lambda: role(other) == "learner", seconds=10)
        os.kill(first.process.pid, signal.SIGCONT)
        assert {future.result(10).status_code for future in asked} <= {202, 503}


def test_a_service_that_slept_through_a_takeover_learns_on_from_its_checkpoint(
    pair: tuple[ServiceProcess, ServiceProcess], tmp_path: Path
) -> None:
    first, other = pair
    os.kill(first.process.pid, signal.SIGSTOP)
    wait_for(lambda: role(other) == "learner", seconds=10)
    with other.client() as client:
        for k in range(3, 9):
            learn(client, k)
            digest(other)  # the log is trimmed to the last three
    assert other.terminate() == 0
    os.kill(first.process.pid, signal.SIGCONT)
    wait_for(lambda: role(first) == "learner")
    with first.client() as client:
        learn(client, 9)
    assert digest(first) == uninterrupted(tmp_path / "alone", 10)


def test_a_learner_that_lost_the_log_says_that_it_stands_by(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with redis.client() as direct:
            for user in ("one", "two"):
                direct.execute_command("ACL", "SETUSER", user, "on", "nopass", "~*", "&*", "+@all")
            url = redis.url.replace("://", "://one:x@")
            with serving(tmp_path, **SMALL, redis_url=url) as first:
                with first.client() as client:
                    learn(client, 0)
                elsewhere = first.options | {"redis_url": url.replace("one", "two")}
                other = ServiceProcess(first.directory, elsewhere, free_port()).start()
                try:
                    before = len(first.log)
                    direct.execute_command("ACL", "SETUSER", "one", "off")
                    direct.execute_command("CLIENT", "KILL", "USER", "one")
                    wait_for(lambda: role(other) == "learner", seconds=10)
                    direct.execute_command("ACL", "SETUSER", "one", "on")
                    wait_for(lambda: role(first) == "standby")
                    with first.client() as client:
                        assert "funnel_checkpoint_age" not in client.get("/metrics").text
                    other.kill(server=False)
                    wait_for(lambda: role(first) == "learner", seconds=10)
                    with first.client() as client:
                        learn(client, 1)
                    said = first.log[before:]
                    assert "passed to another" not in said, "it had resigned by itself"
                finally:
                    if other.process.is_alive():
                        other.kill(server=False)
    finally:
        redis.kill()


def test_a_folder_that_cannot_be_read_stops_no_learner_and_is_named(
    pair: tuple[ServiceProcess, ServiceProcess], redis: RedisProcess
) -> None:
    first, other = pair
    folder = first.directory / "data/checkpoints/logistic"
    folder.rename(folder.with_name("away"))
    folder.touch()
    why = "the checkpoints cannot be read: [Errno 20] Not a directory"
    with other.client() as client:

        def stands_by() -> bool:
            ready = client.get("/health/ready").json()
            return ready["learning"] == "standby" and why in ready["reason"]

        wait_for(stands_by)
        redis.kill()
        redis.start()
        wait_for(lambda: "going on with the model in memory" in first.log)
        with first.client() as learner:
            learn(learner, 3)
        wait_for(lambda: why in client.get("/health/ready").json()["reason"])
        assert "log cannot be reached: the checkpoints" not in first.log + other.log
        assert other.log.count("standing by with an older model") <= 2
        folder.unlink()
        folder.with_name("away").rename(folder)
        wait_for(lambda: client.get("/health/ready").json()["reason"] == ANOTHER_LEARNS)
    digest(first)
    assert (role(first), role(other)) == ("learner", "standby")


def test_a_service_that_cannot_read_its_checkpoints_leaves_the_lease_to_one_that_can(
    tmp_path: Path, redis: RedisProcess
) -> None:
    options = SMALL | {"redis_url": redis.url}
    first = ServiceProcess(tmp_path / "first", options).start()
    with first.client() as client:
        learn(client, 0)
    digest(first)
    blind = ServiceProcess(tmp_path / "blind", options)
    shutil.copytree(first.directory, blind.directory)
    blind.start()
    sighted = ServiceProcess(tmp_path / "sighted", options)
    shutil.copytree(first.directory, sighted.directory)
    sighted.start()
    try:
        [path] = (blind.directory / "data/checkpoints/logistic").glob("*.safetensors")
        path.rename(path.with_name("away"))
        path.mkdir()
        path.with_name(path.name.replace("checkpoint-0", "checkpoint-9")).mkdir()
        wait_for(lambda: "cannot be read" in blind.log)
        first.kill(server=False)
        wait_for(lambda: role(sighted) == "learner", seconds=20)
        assert role(blind) == "standby"
        assert blind.log.count("is skipped") == 2
    finally:
        for service in (first, blind, sighted):
            if service.process.is_alive():
                service.kill(server=False)


def test_a_lease_that_cannot_be_released_halts_no_trainer(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with redis.client() as direct:
        direct.execute_command("ACL", "SETUSER", "one", "on", "nopass", "~*", "&*", "+@all", "-del")
    options = SMALL | {"redis_url": redis.url.replace("://", "://one:x@")}
    with serving(tmp_path / "first", **options) as first:
        with first.client() as client:
            learn(client, 0)
        digest(first)
        shutil.copytree(first.directory, tmp_path / "blind")
        with serving(tmp_path / "blind", **options) as blind, blind.client() as client:
            [path] = (blind.directory / "data/checkpoints/logistic").glob("*.safetensors")
            path.rename(path.with_name("away"))
            path.with_name(path.name.replace("checkpoint-0", "checkpoint-9")).mkdir()
            first.kill(server=False)
            wait_for(lambda: "the lease was not given back" in blind.log)
            assert "cannot be read" in client.get("/health/ready").json()["reason"]
            next(path.parent.glob("checkpoint-9*")).rmdir()
            path.with_name("away").rename(path)
            learn_when_it_can(client)


def learn_when_it_can(client: httpx.Client) -> None:
    def is_learned() -> bool:
        body = a_batch(1).to_bytes()
        return client.post("/learn", content=body, headers=SAFETENSORS).status_code == 202

    wait_for(is_learned)


def test_an_embedded_log_outlives_the_learner_that_started_it(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as first:
        with first.client() as client:
            for k in range(3):
                learn(client, k)
        other = second(first).start()
        try:
            assert role(other) == "standby"
            assert first.terminate() == 0
            wait_for(lambda: role(other) == "learner", seconds=20)
            with other.client() as client:
                learn(client, 3)
            assert digest(other) == uninterrupted(tmp_path / "alone", 4)
            assert other.terminate() == 0
            assert other.server_pid() is None
        finally:
            if other.process.is_alive():
                other.kill()


@pytest.mark.slow
def test_the_learner_is_killed_again_and_again(tmp_path: Path) -> None:
    """No acknowledged example is lost, none counts twice, and the bits are the same."""
    batches = 150
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        first = ServiceProcess(tmp_path, SMALL | {"redis_url": redis.url})
        both = (first, second(first))
        ended = relay(both, map(a_batch, range(batches)), kills=5)
        for service in both:
            service.kill(server=False)
    finally:
        redis.kill()
    assert ended.examples == 20 * batches
    assert ended.sha256 == uninterrupted(tmp_path / "alone", batches)


def test_a_learner_whose_device_hangs_leaves_the_lease_to_the_standby(tmp_path: Path) -> None:
    hangs = tmp_path / "hangs"
    redis = RedisProcess(tmp_path / "redis").start()
    options = SMALL | {"model": "tests.support.states:Hanging", "redis_url": redis.url}
    first = ServiceProcess(tmp_path, options, environment={"HANGING": str(hangs)}).start()
    other = ServiceProcess(tmp_path, options, free_port()).start()
    try:
        with first.client() as client:
            learn(client, 0)
            hangs.touch()
            client.post("/learn", content=a_batch(1).to_bytes(), headers=SAFETENSORS)
            features = {"features": a_batch(2).features.tolist()}
            assert client.post("/predict", json=features).json()["model_version"] == 1
        wait_for(lambda: role(other) == "learner", seconds=30)
        with other.client() as client:
            wait_for(lambda: client.get("/model").json()["model_version"] == 2)
        hangs.unlink()
        wait_for(lambda: role(first) == "standby")
    finally:
        for service in (first, other):
            service.kill(server=False)
        redis.kill()
