"""All families are the default, and nothing that exists is stranded by that."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from service.families import named
from service.fold.networks import ModelError
from service.settings import load_settings
from streams.producer import HTTPTarget, make_target, produce
from tests.support.harness import RedisProcess, ServiceProcess, free_port, serving, wait_for
from tests.support.states import a_batch

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 20}
UNNAMED = SMALL | {"model": None}


def model_of(service: ServiceProcess) -> dict[str, Any]:
    with service.client() as client:
        found: dict[str, Any] = client.get("/model").json()
    return found


def send(service: ServiceProcess, count: int) -> None:
    target = HTTPTarget(service.url, "")
    produce((a_batch(k) for k in range(count)), target)
    target.close()
    wait_for(lambda: model_of(service)["examples_learned"] >= 20 * count)


def test_a_new_log_and_data_folder_begin_with_all_families(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with serving(tmp_path, **UNNAMED, redis_url=redis.url) as service:
            assert model_of(service)["model"] == "auto"
            make_target(redis.url).send(a_batch(0), "one")
            wait_for(lambda: model_of(service)["examples_learned"] == 20)
        with Redis.from_url(redis.url) as client:
            assert client.exists("funnel:{auto}:log")
    finally:
        redis.kill()
    assert (tmp_path / "data/checkpoints/auto").exists()


def test_a_data_folder_of_logistic_keeps_its_model(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL) as service:
        send(service, 3)
        service.terminate()
    with serving(tmp_path, **UNNAMED) as service:
        found = model_of(service)
        assert (found["model"], found["examples_learned"]) == ("logistic", 60)
        assert "FUNNEL_MODEL is not set" in service.log
        send(service, 4)
    with serving(tmp_path, **SMALL | {"model": "auto"}) as service:
        assert model_of(service)["examples_learned"] == 0


def test_a_log_of_logistic_keeps_its_model_and_its_producers(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        make_target(redis.url, "logistic").send(a_batch(0), "one")
        with serving(tmp_path, **UNNAMED, redis_url=redis.url) as service:
            make_target(redis.url).send(a_batch(1), "two")
            wait_for(lambda: model_of(service)["examples_learned"] == 40)
            assert model_of(service)["model"] == "logistic"
    finally:
        redis.kill()


def test_all_families_go_on_when_a_log_of_logistic_appears_in_their_server(
    tmp_path: Path,
) -> None:
    redis = RedisProcess(tmp_path / "redis").start()
    try:
        with serving(tmp_path, **UNNAMED, redis_url=redis.url) as service:
            send(service, 2)
            service.terminate()
        make_target(redis.url, "logistic").send(a_batch(0), "a producer of Funnel 0.1")
        with serving(tmp_path, **UNNAMED, redis_url=redis.url) as service:
            found = model_of(service)
            assert (found["model"], found["examples_learned"]) == ("auto", 40)
    finally:
        redis.kill()


@pytest.mark.parametrize("lost", [[], ["checkpoints"]], ids=["checkpoints", "only a log"])
def test_no_setting_puts_an_empty_model_in_the_place_of_all_families(
    tmp_path: Path, lost: list[str]
) -> None:
    with serving(tmp_path, **UNNAMED) as service:
        send(service, 2)
        service.terminate()
    for name in lost:
        shutil.rmtree(tmp_path / "data" / name)
    unfit = UNNAMED | {"batch_size": 1_000_000}
    with pytest.raises(ModelError, match="lower FUNNEL_BATCH_SIZE"), serving(tmp_path, **unfit):
        pass


def test_the_start_waits_for_the_log_that_decides_the_model(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path / "redis", port=free_port())
    service = ServiceProcess(tmp_path, UNNAMED | {"redis_url": redis.url})
    starting = threading.Thread(target=service.start)
    starting.start()
    try:
        wait_for(lambda: (tmp_path / "service.log").exists() and "the start waits" in service.log)
        with service.client() as client:
            assert client.get("/health/live").status_code == 200
            answer = client.get("/health/ready")
            assert answer.status_code == 503
            assert "the log cannot be reached" in answer.json()["error"]["message"]
        redis.start()
        starting.join()
        assert model_of(service)["model"] == "auto"
        service.terminate()
    finally:
        redis.kill()


def test_a_start_that_waits_for_the_log_can_be_stopped(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, UNNAMED | {"redis_url": "redis://127.0.0.1:1"})

    def start() -> None:
        with pytest.raises(RuntimeError, match="the service died"):
            service.start()

    starting = threading.Thread(target=start)
    starting.start()
    wait_for(lambda: (tmp_path / "service.log").exists() and "the start waits" in service.log)
    assert service.terminate() == 0
    starting.join()


@pytest.mark.parametrize(
    "options",
    [{"optimizer": "sgd"}, {"features": 10_001}, {"classes": 1_001},
     {"features": 6, "classes": 500, "batch_size": 5_000}, {"batch_size": 10_000},
     {"schema": "auto", "max_classes": 1_001}, {"device": "meta"}],
    ids=str,
)  # fmt: skip
def test_settings_that_all_families_do_not_fit_mean_logistic_as_before(
    options: dict[str, Any],
) -> None:
    assert named(load_settings(options)).model == "logistic"


@pytest.mark.parametrize(
    "options",
    [{}, {"schema": "auto"}, {"task": "regression", "classes": 5_000}, {"hidden": "8,4"}],
    ids=str,
)
def test_other_settings_mean_all_families(options: dict[str, Any]) -> None:
    assert named(load_settings(options)).model == "auto"
    assert named(load_settings(options | {"model": "mlp"})).model == "mlp"
