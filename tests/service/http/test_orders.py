"""`POST /pause`, `/resume` and `/promote`: recorded, kept over restarts, replayed bit for bit."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.cli import environment
from tests.support.harness import SAFETENSORS, ServiceProcess, serving, wait_for
from tests.support.states import a_batch

SMALL = {"features": 6, "classes": 3, "batch_size": 20, "max_wait_ms": 600_000}
KEYS = {"api_key": "ops:hush-one, ann:hush-two"}
OPS, ANN = ({"Authorization": f"Bearer {key}"} for key in ("hush-one", "hush-two"))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with serving(tmp_path, **SMALL) as running:
        yield running


def send(client: httpx.Client, seed: int, wait: str = "?wait=applied") -> httpx.Response:
    body = a_batch(seed).to_bytes()
    return client.post(f"/learn{wait}", content=body, headers=SAFETENSORS).raise_for_status()


def order(client: httpx.Client, name: str) -> int:
    answer = client.post(f"/{name}")
    assert answer.status_code == 202, answer.text
    return int(answer.json()["cut"])


def condition(client: httpx.Client) -> str:
    answer = client.get("/health/ready")
    assert answer.status_code == 200
    return str(answer.json()["learning"])


def learned(client: httpx.Client) -> int:
    return int(client.get("/health/ready").json()["learned"])


def test_a_pause_serves_and_accepts_and_learns_nothing_until_it_is_resumed(
    service: ServiceProcess, tmp_path: Path
) -> None:
    with service.client() as client:
        send(client, 0)
        cut = order(client, "pause")
        wait_for(lambda: condition(client) == "paused")
        assert order(client, "pause") == cut, "it changes nothing"
        for seed in (1, 2):
            answer = send(client, seed)
            assert (answer.status_code, answer.json()["reason"]) == (202, "learning is paused")
        asked = {"features": a_batch(3).features.tolist()}
        assert client.post("/predict", json=asked).json()["model_version"] == 1
        wait_for(lambda: "funnel_paused 1.0" in client.get("/metrics").text)
        assert 'funnel_learning{condition="paused"} 1.0' in client.get("/metrics").text
        assert learned(client) == 20
        assert "paused by anonymous at " in client.get("/model").json()["reason"]
    service.kill()
    service.start()
    with service.client() as client:
        assert (condition(client), learned(client)) == ("paused", 20)
        assert client.post("/checkpoint").status_code == 201
    service.kill()
    service.start()  # the pause is in the checkpoint
    with service.client() as client:
        assert (condition(client), learned(client)) == ("paused", 20)
        assert order(client, "resume") == cut + 1
        wait_for(lambda: learned(client) == 60)
        assert condition(client) == "learning"
        commands = client.get("/model").json()["commands"]
        assert [(c["cut"], c["command"], c["by"]) for c in commands] == [
            (cut, "pause", "anonymous"), (cut + 1, "resume", "anonymous"),
        ]  # fmt: skip
        digest = client.post("/checkpoint").json()["sha256"]
    with serving(tmp_path / "alone", **SMALL) as other, other.client() as client:
        for seed in range(3):
            send(client, seed)
        assert client.post("/checkpoint").json()["sha256"] == digest


def test_what_is_recorded_is_repeated_with_its_pauses(service: ServiceProcess) -> None:
    with service.client() as client:
        for seed in range(3):
            send(client, 2 * seed)
            order(client, "pause")
            send(client, 2 * seed + 1, "")
            order(client, "resume")
        wait_for(lambda: learned(client) == 120)
    service.kill()
    service.start()
    with service.client() as client:
        assert (condition(client), learned(client)) == ("learning", 120)
        assert len(client.get("/model").json()["commands"]) == 6


def promote(client: httpx.Client, learner: str) -> httpx.Response:
    return client.post("/promote", json={"learner": learner})


def answers(client: httpx.Client, version: int) -> object:
    asked = {"features": a_batch(9).features.tolist()}
    found = client.post("/predict", json=asked).raise_for_status().json()
    assert found["model_version"] == version
    return found["probabilities"]


def test_a_promoted_shadow_answers_at_once_and_after_every_restart(tmp_path: Path) -> None:
    shadowed = SMALL | {"shadow": "adagrad,adam", "calibrate": False}
    with serving(tmp_path, **shadowed) as service:
        with service.client() as client:
            for seed in range(3):
                send(client, seed)
            wait_for(lambda: 'learner="adam"' in client.get("/metrics").text)
            original = answers(client, 3)
            answer = promote(client, "adam")
            assert answer.status_code == 202, answer.text
            cut = answer.json()["cut"]
            assert promote(client, "adam").json()["cut"] == cut, "it changes nothing"
            wait_for(lambda: answers(client, 3) != original)
            promoted = answers(client, 3)
            wait_for(lambda: 'learner="original"' in client.get("/metrics").text)
            assert 'learner="adam"' not in client.get("/metrics").text
            model = client.get("/model").json()
            assert (model["promoted"], model["hyperparameters"]["lr"]) == ("adam", 0.001)
            [command] = model["commands"]
            assert (command["command"], command["learner"], command["cut"]) == (
                "promote",
                "adam",
                cut,
            )
            exported = client.get("/model/export").raise_for_status().content
        service.kill()
        service.start()  # from the cuts
        with service.client() as client:
            assert answers(client, 3) == promoted
            assert client.get("/model/export").content == exported
            assert client.post("/checkpoint").status_code == 201
        service.kill()
        service.options["shadow"] = ""
        service.start()  # from the checkpoint, and no setting names the shadow
        with service.client() as client:
            wait_for(lambda: client.get("/model").json()["hyperparameters"]["shadow"] == [])
            assert answers(client, 3) == promoted
            refused = promote(client, "adagrad")
            assert (refused.status_code, refused.json()["error"]["code"]) == (
                422,
                "unknown_learner",
            )
            assert refused.json()["error"]["message"].endswith("only original, adam")
            ran = subprocess.run(
                [sys.executable, "-m", "service.cli", "promote", "original", "--to", service.url],
                capture_output=True, text=True, timeout=60, check=False, env=environment(),
            )  # fmt: skip
            assert (ran.returncode, ran.stderr) == (0, "")
            assert ran.stdout.startswith("original answers predictions, as cut ")
            wait_for(lambda: answers(client, 3) == original)
            assert promote(client, "adam").status_code == 422, "it has left with its promotion"


def test_a_service_that_promotes_has_the_digest_of_one_that_was_killed_in_between(
    tmp_path: Path,
) -> None:
    digests = set()
    for kills in (False, True):
        options = SMALL | {"shadow": "adam", "checkpoint_every_seconds": 600.0}
        with serving(tmp_path / str(kills), **options) as service:
            for seed, learner in enumerate(("adam", "original", "adam")):
                with service.client() as client:
                    send(client, 2 * seed)
                    assert promote(client, learner).status_code == 202
                if kills:
                    service.kill()
                    service.start()
                with service.client() as client:
                    send(client, 2 * seed + 1)
            with service.client() as client:
                digests.add(client.post("/checkpoint").json()["sha256"])
    assert len(digests) == 1


def test_a_shadow_that_is_better_is_promoted_if_that_is_the_setting(tmp_path: Path) -> None:
    slow = {"optimizer": "sgd", "lr": 1e-6, "shadow": "pool", "promote": "auto"}
    options = SMALL | slow | {"batch_size": 500}
    with serving(tmp_path, **options) as service, service.client() as client:
        seeds = iter(range(1_000_000))

        def is_promoted() -> bool:
            body = a_batch(next(seeds), 1_000).to_bytes()
            client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
            return str(client.get("/model").json()["promoted"]) == "pool"

        wait_for(is_promoted)
        [command] = client.get("/model").json()["commands"]
        assert (command["command"], command["by"]) == ("promote", "auto")
        assert promote(client, "original").status_code == 202
        wait_for(lambda: client.get("/model").json()["promoted"] == "")
        ended = time.monotonic() + 12
        while time.monotonic() < ended:  # more blocks than the promotion took
            assert not is_promoted(), "an operator has decided"


def test_a_promotion_leaves_a_pause_as_it_is(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, shadow="adam") as service:
        with service.client() as client:
            send(client, 0)
            order(client, "pause")
            assert promote(client, "adam").status_code == 202
            wait_for(lambda: client.get("/model").json()["promoted"] == "adam")
            assert condition(client) == "paused"
        service.kill()
        service.start()
        with service.client() as client:
            assert condition(client) == "paused"
            order(client, "resume")
            wait_for(lambda: condition(client) == "learning")


def test_the_name_of_the_key_is_recorded(tmp_path: Path) -> None:
    with serving(tmp_path, **SMALL, **KEYS) as service:
        with service.client(**OPS) as ops, service.client(**ANN) as ann:
            order(ops, "pause")
            order(ann, "resume")
            wait_for(lambda: len(ops.get("/model").json()["commands"]) == 2)
            assert [c["by"] for c in ann.get("/model").json()["commands"]] == ["ops", "ann"]
        for wrong in ("ops:hush-one", "ops", KEYS["api_key"]):
            with service.client(Authorization=f"Bearer {wrong}") as stranger:
                assert stranger.post("/pause").status_code == 401
        for command, line in (("pause", "learning is paused"), ("resume", "learning goes on")):
            ran = subprocess.run(
                [sys.executable, "-m", "service.cli", command, "--to", service.url],
                capture_output=True, text=True, timeout=60, check=False,
                env=environment() | {"FUNNEL_API_KEY": KEYS["api_key"]},
            )  # fmt: skip
            assert (ran.returncode, ran.stderr) == (0, "")
            assert ran.stdout.startswith(f"{line}, as cut ")
        assert "hush" not in service.log


def test_without_keys_only_this_machine_and_the_services_own_page_give_orders(
    service: ServiceProcess,
) -> None:
    with service.client() as client:
        for headers in (
            {"Origin": "https://evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Host": "evil.example"},
        ):
            assert client.post("/pause", headers=headers).status_code == 403
        assert client.post("/pause", headers={"Origin": service.url}).status_code == 202


def test_a_model_that_nothing_has_decided_yet_takes_no_orders(tmp_path: Path) -> None:
    with serving(tmp_path, batch_size=20) as service, service.client() as client:
        answer = client.post("/pause")
        assert (answer.status_code, answer.json()["error"]["code"]) == (409, "undecided")


def test_a_promoted_shadow_of_rows_answers_and_explains_with_its_own_table(tmp_path: Path) -> None:
    rows = [{"plan": f"p{k % 7}", "age": k % 50, "at": "2026-05-01"} for k in range(200)]
    body = {"rows": rows, "labels": [("stay", "go", "ask")[k % 7 // 3] for k in range(200)]}
    options = {"schema": "auto", "model": "logistic", "shadow": "adagrad:0.3", "batch_size": 20}

    def asked(client: httpx.Client) -> tuple[object, object, object]:
        found = client.post("/predict?explain=2", json={"rows": rows[:9]}).raise_for_status().json()
        matter = client.get("/features?top=3").raise_for_status().json()
        return found["probabilities"], found["explanations"], matter["features"]

    with serving(tmp_path, **options) as service:
        with service.client() as client:
            client.post("/learn?wait=applied", json=body).raise_for_status()
            before = asked(client)
            whole = client.post("/predict?names=false", json={"rows": rows[:9]})
            assert [len(row) for row in whole.raise_for_status().json()["probabilities"]] == [3] * 9
            assert promote(client, "adagrad:0.3").status_code == 202
            wait_for(lambda: client.get("/model").json()["promoted"] == "adagrad:0.3")
            wait_for(lambda: asked(client)[0] != before[0])
            after = asked(client)
            assert all(one != other for one, other in zip(before, after, strict=True))
        service.kill()
        service.start()
        with service.client() as client:
            assert asked(client) == after
