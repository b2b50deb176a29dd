"""Restart: the state comes back bit for bit, or the service says why it cannot."""

import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.log.errors import LogError
from service.trainer.checkpoint import DamagedError
from tests.support.clients import LOG, SMALL, digest, learn
from tests.support.harness import SAFETENSORS, RedisProcess, ServiceProcess, serving, wait_for
from tests.support.states import a_batch


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with serving(tmp_path, **SMALL) as running:
        yield running


def checkpoints(service: ServiceProcess) -> list[Path]:
    return sorted((service.directory / "data/checkpoints").rglob("*.safetensors"))


def test_a_state_is_replayed_from_the_log_alone(service: ServiceProcess) -> None:
    with service.client() as client:
        for k in range(5):
            learn(client, k)
    service.kill()
    assert checkpoints(service) == []
    service.start()
    with service.client() as client:
        assert client.get("/model").json()["examples_learned"] == 100
        replayed = digest(client)
        for k in range(5, 8):
            learn(client, k)
        after = digest(client)
    other = ServiceProcess(service.directory / "other", SMALL).start()
    try:
        with other.client() as client:
            for k in range(5):
                learn(client, k)
            assert digest(client) == replayed
            for k in range(5, 8):
                learn(client, k)
            assert digest(client) == after
    finally:
        other.kill()


def test_replay_discards_dead_entries(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with serving(tmp_path / "one", **SMALL, redis_url=redis.url) as service:
            with service.client() as client, redis.client() as direct:
                for k in range(4):
                    direct.xadd(LOG, {"batch": b"poison"})
                    learn(client, k)
                    direct.xadd(LOG, {"json": '{"features": [[NaN]], "labels": [0]}'})
            service.kill()
            assert checkpoints(service) == []
            service.start()
            with service.client() as client:
                wait_for(lambda: "funnel_dead_entries_total 8.0" in client.get("/metrics").text)
                replayed = digest(client)
        with serving(tmp_path / "other", **SMALL) as clean, clean.client() as client:
            for k in range(4):
                learn(client, k)
            assert digest(client) == replayed
    finally:
        redis.kill()


def test_learning_resumes_from_a_checkpoint_within_the_last_entry(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 0)
        learn(client, 1, 30, wait="")
        wait_for(lambda: client.get("/model").json()["model_version"] == 2)
        assert "+20" in client.post("/checkpoint").json()["position"]
        before = digest(client)
    service.kill()
    service.start()
    with service.client() as client:
        assert digest(client) == before
        learn(client, 2, 10)
        assert client.get("/model").json()["examples_learned"] == 60


def test_a_damaged_checkpoint_costs_only_a_longer_replay(service: ServiceProcess) -> None:
    with service.client() as client:
        for k in range(3):
            learn(client, k)
            before = digest(client)
    service.kill()
    newest = checkpoints(service)[-1]
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    service.start()
    assert f"{newest.name} is damaged and skipped" in service.log
    with service.client() as client:
        assert digest(client) == before


def test_without_a_good_checkpoint_it_does_not_start(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 0)
        digest(client)
    service.kill()
    for path in checkpoints(service):
        path.write_bytes(b"")
    with pytest.raises(DamagedError, match="backup"):
        service.start()


def test_a_checkpoint_of_another_model_is_refused(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 0)
        digest(client)
    service.kill()
    service.options["features"] = 7
    with pytest.raises(LogError, match="features is 6 there and 7 here"):
        service.start()


def test_a_log_that_was_begun_with_another_model_is_refused(service: ServiceProcess) -> None:
    with service.client() as client:
        learn(client, 0)
    service.kill()
    assert checkpoints(service) == []
    service.options["seed"] = 5
    with pytest.raises(LogError, match="the log is of another model: seed is 0 there and 5 here"):
        service.start()


def test_before_the_first_example_the_model_may_still_be_changed(service: ServiceProcess) -> None:
    assert service.terminate() == 0
    service.options["features"] = 7
    service.start()
    with service.client() as client:
        assert client.get("/model").json()["hyperparameters"]["features"] == 7


@pytest.mark.parametrize(
    "change", [{"lr": 0.3}, {"shadow": "adagrad,adam:0.01"}], ids=["rates", "shadows"]
)
def test_changed_hyperparameters_are_recorded_so_that_replay_agrees(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    digests = []
    for ending in (ServiceProcess.kill, ServiceProcess.terminate):
        with serving(tmp_path / ending.__name__, **SMALL, optimizer="funnel") as service:
            with service.client() as client:
                learn(client, 0)
            ending(service)
            service.options |= change
            service.start()
            with service.client() as client:
                learn(client, 1)
                shown = client.get("/model").json()["hyperparameters"]
                assert shown["lr"] == change.get("lr", 0.03)
                assert ",".join(shown["shadow"]) == change.get("shadow", "")
            ending(service)
            service.start()
            with service.client() as client:
                digests.append(digest(client))
    assert digests[0] == digests[1]


def test_a_copy_of_a_running_services_directory_is_a_backup(
    service: ServiceProcess, tmp_path: Path
) -> None:
    copy = ServiceProcess(tmp_path / "copy", service.options)
    with service.client() as client:
        for k in range(3):
            learn(client, k)
        digest(client)
        learn(client, 3)
        shutil.copytree(
            service.directory / "data",
            copy.directory / "data",
            ignore=shutil.ignore_patterns("*.sock", "*.pid"),
        )
        expected = digest(client)
    copy.start()
    try:
        with copy.client() as client:
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 80)
            assert digest(client) == expected
    finally:
        copy.kill()


def test_a_user_who_may_only_use_the_services_keys_is_enough(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with redis.client() as direct:
            direct.execute_command(
                "ACL", "SETUSER", "funnel", "on", ">p@ss", "~funnel:*", "+@all", "-@dangerous"
            )
        url = redis.url.replace("redis://", "redis://funnel:p%40ss@")
        with serving(tmp_path, **SMALL, redis_url=url) as service, service.client() as client:
            learn(client, 0)
            assert "does not show its state" in service.log
            assert "p@ss" not in service.log
            assert "p%40ss" not in service.log
    finally:
        redis.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(service: ServiceProcess, number: int) -> None:
    with service.client() as client:
        learn(client, 0)
        learn(client, 1, 7, wait="")
    assert service.terminate(number) == 0
    assert service.server_pid() is None
    assert len(checkpoints(service)) == 1
    service.start()
    with service.client() as client:
        assert client.get("/model").json()["examples_learned"] == 20
        learn(client, 2, 13)  # with the 7 a batch of 20: stopping cut nothing
        assert client.get("/model").json()["model_version"] == 2


def test_draining_answers_waiting_callers_and_refuses_new_ones(service: ServiceProcess) -> None:
    import threading

    answers: list[httpx.Response] = []

    def wait_in_vain() -> None:
        with service.client() as client:
            answers.append(
                client.post(
                    "/learn?wait=applied", content=a_batch(0, 3).to_bytes(), headers=SAFETENSORS
                )
            )

    waiting = threading.Thread(target=wait_in_vain)
    waiting.start()
    with service.client() as client:
        wait_for(lambda: "funnel_backlog_examples 3.0" in client.get("/metrics").text)
    assert service.terminate() == 0
    waiting.join(10)
    assert [a.status_code for a in answers] == [202]


def test_what_the_log_keeps_and_a_restart_repeats_is_bounded_in_bytes_at_any_rate(
    tmp_path: Path,
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    size = sum(map(len, (a_batch(0).to_bytes(), b"http", b"4294967295")))
    options = SMALL | {"redis_url": redis.url, "checkpoint_every_seconds": 3_600}
    options |= {"checkpoint_every_bytes": 9 * size}
    try:
        with (
            serving(tmp_path, **options) as service,
            service.client() as client,
            redis.client() as direct,
        ):
            for written in range(1, 6):
                for k in range(9):
                    learn(client, 10 * written + k, wait="")
                learn(client, 10 * written + 9)  # what is read ahead does not count as learned
                done = f'funnel_checkpoints_total{{result="ok"}} {written}.0'
                wait_for(lambda done=done: done in client.get("/metrics").text)
            wait_for(lambda: direct.xlen(LOG) <= 40)
            before = digest(client)
            service.kill()
            service.start()
            assert digest(client) == before
    finally:
        redis.kill()


def test_checkpoints_are_written_on_time_and_the_log_is_trimmed_before_them(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    options = SMALL | {"redis_url": redis.url, "checkpoint_every_seconds": 0.05, "archive": "off"}
    try:
        with (
            serving(tmp_path, **options) as service,
            service.client() as client,
            redis.client() as direct,
        ):
            for k in range(200):
                learn(client, k)
                if direct.xlen(LOG) < k - 10 and len(checkpoints(service)) == 3:
                    break
            else:
                pytest.fail("nothing was trimmed")
            before = digest(client)
            service.kill()
            service.start()
            assert digest(client) == before
    finally:
        redis.kill()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_an_orderly_end_leaves_no_process_and_no_scraps(service: ServiceProcess) -> None:
    pid = service.server_pid()
    assert pid is not None
    assert service.terminate() == 0
    assert not Path(f"/proc/{pid}").exists()
    assert not list((service.directory / "data").rglob(".writing-*"))
