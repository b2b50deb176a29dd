"""`funnel skip` and `funnel rollback` of a running service, and what its replays make of them."""

import signal
from pathlib import Path

import httpx

from tests.support.cli import funnel
from tests.support.clients import SMALL, digest, learn
from tests.support.harness import SAFETENSORS, ServiceProcess, serving
from tests.support.states import a_batch


def answers(client: httpx.Client) -> object:
    asked = {"features": a_batch(99).features.tolist()}
    return client.post("/predict", json=asked).raise_for_status().json()["probabilities"]


def answers_of(folder: Path, *seeds: int) -> object:
    """Return the answers of a service that has learned these batches alone."""
    with serving(folder, **SMALL) as service, service.client() as client:
        for seed in seeds:
            learn(client, seed)
        return answers(client)


def entry_of(client: httpx.Client, seed: int) -> str:
    body = a_batch(seed).to_bytes()
    found = client.post("/learn?wait=applied", content=body, headers=SAFETENSORS)
    return str(found.raise_for_status().json()["entry"])


def version(client: httpx.Client) -> int:
    return int(client.get("/model").json()["model_version"])


def restarted(service: ServiceProcess) -> str:
    """Return the digest after a kill and a restart."""
    service.kill()
    service.start()
    with service.client() as client:
        return digest(client)


def test_an_entry_is_skipped_and_the_model_goes_back(tmp_path: Path) -> None:
    with serving(tmp_path / "own", **SMALL) as service:
        with service.client() as client:
            entries = [entry_of(client, seed) for seed in range(6)]
            ran = funnel("skip", entries[2], "--to", service.url)
            assert (ran.returncode, version(client)) == (2, 6)
            assert "20 examples in a batch will be skipped" in ran.stdout
            assert "--yes: nobody can be asked here" in ran.stderr
            ran = funnel("skip", entries[2], "--to", service.url, "--yes")
            assert ran.returncode == 0, ran.stderr
            assert "the model is version 8, as cut 8 records, without 20 examples" in ran.stdout
            assert (version(client), client.get("/model").json()["examples_learned"]) == (8, 100)
            learn(client, 6)
            skipped, learned = answers(client), digest(client)
        assert skipped == answers_of(tmp_path / "other", 0, 1, 3, 4, 5, 6)
        assert restarted(service) == learned
        with service.client() as client:
            refused = client.post("/rollback", json={"version": 7, "dry_run": True})
            assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_archived")
            ran = funnel("rollback", "4", "--to", service.url, "--yes")
            assert ran.returncode == 0, ran.stderr
            commands = client.get("/model").json()["commands"]
            assert [one["command"] for one in commands] == ["rebuild", "rebuild"]
            assert version(client) == commands[-1]["cut"] == 10
            status = funnel("status", "--to", service.url).stdout
            assert "rebuilt    as version 10, by anonymous at " in status
            learn(client, 7)
            back, learned = answers(client), digest(client)
        assert back == answers_of(tmp_path / "another", 0, 1, 3, 7)
        assert restarted(service) == learned
        assert service.terminate(signal.SIGTERM) == 0
    ran = funnel("replay", "--from", str(tmp_path / "own/data"))
    assert f"sha256 {learned}" in ran.stdout, ran.stderr
