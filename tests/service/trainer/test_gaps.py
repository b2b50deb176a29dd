"""A log that lost entries is refused, or learning halts, until an operator accepts the gap."""

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis

from service.log.errors import LogError
from service.log.position import TOP
from tests.support.clients import CUTS, LOG, SMALL, digest, learn
from tests.support.harness import SAFETENSORS, RedisProcess, ServiceProcess, serving, wait_for
from tests.support.states import a_batch


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisProcess]:
    process = RedisProcess(tmp_path / "redis").start()
    yield process
    process.kill()


Harm = Callable[[Redis], Any]
GAPS: dict[str, tuple[Harm, str]] = {
    "flushed": (lambda r: r.flushall(), "another log"),
    "cut to one by a producer": (
        lambda r: [r.xadd(LOG, {"x": "y"}), r.xadd(LOG, {"x": "y"}, maxlen=1, approximate=False)],
        "gone",
    ),
    "filled up by the highest id": (
        lambda r: r.xadd(LOG, {"x": "y"}, id="18446744073709551615-18446744073709551615"),
        "full",
    ),
}


@pytest.mark.parametrize("gap", GAPS)
def test_a_gap_is_refused_until_it_is_accepted(
    tmp_path: Path, redis: RedisProcess, gap: str
) -> None:
    harm, message = GAPS[gap]
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service:
        with service.client() as client:
            for k in range(3):
                learn(client, k)
            digest(client)
        service.kill()
        with redis.client() as direct:
            harm(direct)
        with pytest.raises(LogError, match=message) as caught:
            service.start()
        assert "--accept-gap" in str(caught.value)
        service.options["accept_gap"] = True
        service.start()
        assert "gap accepted" in service.log
        with service.client() as client:
            learn(client, 3)
            learned = client.get("/model").json()["examples_learned"]
            assert learned == 80
            before = digest(client)
        service.kill()
        service.options["accept_gap"] = False
        service.start()
        with service.client() as client:
            assert digest(client) == before
            learn(client, 4)


def test_an_entry_deleted_from_among_others_halts_until_that_is_accepted(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service:
        with service.client() as client:
            for k in range(3):
                learn(client, k)
            digest(client)
        service.kill()
        with redis.client() as direct:
            sent = [direct.xadd(LOG, {"batch": a_batch(k).to_bytes()}) for k in range(3, 6)]
            direct.xdel(LOG, sent[1])
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/health/ready").json()["learning"] == "halted")
            reason = client.get("/health/ready").json()["reason"]
            assert "deleted before they were learned" in reason
            assert "--accept-gap" in reason
            assert client.post("/checkpoint").json()["error"]["code"] == "learning_halted"
        service.kill()
        service.options["accept_gap"] = True
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 100)
            learn(client, 6)
            before = digest(client)
        service.kill()
        service.options["accept_gap"] = False
        service.start()
        with service.client() as client:
            assert digest(client) == before
            learn(client, 7)
            assert client.get("/model").json()["examples_learned"] == 140


@pytest.mark.parametrize("newer", [0, 1, 5])
def test_after_a_log_lost_its_end_learning_goes_on_and_nothing_counts_twice(
    tmp_path: Path, redis: RedisProcess, newer: int
) -> None:
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service:
        with service.client() as client:
            for k in range(3):
                learn(client, k)
            shutil.copytree(tmp_path / "redis", tmp_path / "backup")
            for k in range(3, 5):
                learn(client, k)
            digest(client)
        service.kill()
        redis.kill()
        shutil.rmtree(tmp_path / "redis")
        (tmp_path / "backup").rename(tmp_path / "redis")
        redis.start()
        with redis.client() as direct:
            for k in range(newer):
                direct.xadd(LOG, {"batch": a_batch(10 + k).to_bytes()})
        service.options["accept_gap"] = True
        if newer < 2:  # else as many as were ever learned: found out when it has read them
            service.options["accept_gap"] = False
            with pytest.raises(LogError, match="--accept-gap"):
                service.start()
            service.options["accept_gap"] = True
        service.start()
        with service.client() as client:
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 100 + 20 * newer)
            learn(client, 20)
            assert client.get("/model").json()["examples_learned"] == 120 + 20 * newer


def test_a_new_model_takes_what_a_trimmed_log_still_has(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with serving(tmp_path / "old", **SMALL, redis_url=redis.url) as service:
        with service.client() as client:
            for k in range(6):
                learn(client, k)
                digest(client)
        service.terminate()
    with redis.client() as direct:
        kept = direct.xlen(LOG)
        assert kept < 6
        direct.xadd(LOG, {"batch": a_batch(6).to_bytes()})
    new = ServiceProcess(tmp_path / "new", SMALL | {"redis_url": redis.url})
    with pytest.raises(
        LogError, match="no checkpoint, but the log was learned up to cut 7"
    ) as said:
        new.start()
    assert "Is DATA_DIR mounted" in str(said.value)
    assert "--accept-gap would begin with an empty model" in str(said.value)
    new.options["accept_gap"] = True
    new.start()
    with new.client() as client:
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 20 * (kept + 1))
        before = digest(client)
    new.kill()
    new.options["accept_gap"] = False
    new.start()
    with new.client() as client:
        learn(client, 7)
        assert client.get("/model").json()["examples_learned"] == 20 * (kept + 2)
        assert digest(client) != before
    new.kill()


def test_where_only_cuts_were_trimmed_the_missing_checkpoints_are_named(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """So it is while a large entry lies across all checkpoints."""
    with serving(tmp_path / "old", **SMALL, redis_url=redis.url) as old:
        with old.client() as client:
            for k in range(3):
                learn(client, k)
        assert old.terminate() == 0
    with redis.client() as direct:
        direct.xtrim(CUTS, minid="3-0", approximate=False)
    with pytest.raises(LogError, match="Is DATA_DIR mounted"):
        ServiceProcess(tmp_path / "new", SMALL | {"redis_url": redis.url}).start()


def test_missing_cuts_are_refused_and_a_new_log_goes_on(
    tmp_path: Path, redis: RedisProcess
) -> None:
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service:
        with service.client() as client:
            digest(client)
            for k in range(3):
                learn(client, k)
        service.kill()
        with redis.client() as direct:
            (first, _), *_ = direct.xrange(CUTS)
            direct.xdel(CUTS, first)
        with pytest.raises(LogError, match=r"cut 1 is missing.*delete funnel:\{logistic\}:log"):
            service.start()
        with redis.client() as direct:
            direct.delete(LOG, CUTS)
        service.options["accept_gap"] = True
        service.start()
        with service.client() as client:
            learn(client, 3)
            assert client.get("/model").json()["examples_learned"] == 20


def test_a_log_erased_under_a_running_service_halts_learning_but_not_prediction(
    tmp_path: Path,
    redis: RedisProcess,
) -> None:
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service, service.client() as client:
        learn(client, 0)
        with redis.client() as direct:
            direct.flushall()
        wait_for(lambda: client.get("/health/ready").json()["learning"] == "halted")
        assert "another log" in client.get("/health/ready").json()["reason"]
        refused = client.post("/learn", content=a_batch(1).to_bytes(), headers=SAFETENSORS)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "learning_halted"
        assert client.post("/checkpoint").json()["error"]["code"] == "learning_halted"
        features = {"features": a_batch(1).features.tolist()}
        assert client.post("/predict", json=features).status_code == 200


def test_an_entry_that_gets_the_highest_id_is_refused_and_never_learned(
    tmp_path: Path, redis: RedisProcess
) -> None:
    last = f"{TOP.milliseconds}-{TOP.sequence - 1}"
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service:
        with service.client() as client, redis.client() as direct:
            direct.xadd(LOG, {"batch": a_batch(0).to_bytes()}, id=last)
            body = a_batch(1, 7).to_bytes()
            refused = client.post("/learn", content=body, headers=SAFETENSORS)
            assert refused.status_code == 503
            assert "--accept-gap" in refused.json()["error"]["message"]
            wait_for(lambda: client.get("/health/ready").json()["learning"] == "halted")
        service.kill()
        service.options["accept_gap"] = True
        service.start()
        with service.client() as client:
            learn(client, 1)
            assert client.get("/model").json()["examples_learned"] in (20, 40)


def test_foreign_records_and_keys_halt_nothing_for_good(
    tmp_path: Path, redis: RedisProcess
) -> None:
    """They are named, no process ends, and learning continues once they are gone."""
    dead = LOG.replace(":log", ":dead")
    with serving(tmp_path, **SMALL, redis_url=redis.url) as service, redis.client() as direct:
        with service.client() as client:
            learn(client, 0)
            foreign = direct.xadd(CUTS, {"user": "7"})
            client.post("/learn", content=a_batch(1).to_bytes(), headers=SAFETENSORS)
            reason = waits_for(client, CUTS)
            assert foreign.decode() in reason
            carry_out(direct, reason)
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 40)
        service.kill()
        direct.set(dead, "x")
        with service.client() as client, ThreadPoolExecutor(1) as pool:
            starting = pool.submit(service.start)
            carry_out(direct, waits_for(client, dead))
            starting.result()
            learn(client, 2)
            assert client.get("/model").json()["examples_learned"] == 60


def waits_for(client: httpx.Client, key: str) -> str:
    """Wait until learning waits because of a key; return the reason."""

    def reason() -> str:
        try:
            health = client.get("/health/ready").json()
        except httpx.TransportError:  # it does not listen yet
            return ""
        return health["reason"] if health.get("learning") == "waiting" else ""

    wait_for(lambda: key in reason())
    return reason()


def carry_out(redis: Redis, reason: str) -> None:
    """Run the command in a reason."""
    [command] = re.findall("redis-cli (.*?)   ", reason)
    redis.execute_command(*shlex.split(command))
