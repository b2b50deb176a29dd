"""Drift events of a running service: shown, kept over kill -9, posted."""

from pathlib import Path

from streams.catalog import get
from tests.service.harness import SAFETENSORS, serving, wait_for
from tests.service.test_webhook import answering


def test_a_turn_shows_is_posted_and_outlives_a_kill(tmp_path: Path) -> None:
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
        wait_for(lambda: len(bodies) == len(before))
        assert client.get("/drift?since=1").json()["events"] == before[1:]
        digest = client.post("/checkpoint").json()["sha256"]
        service.kill()
        service.start()
        assert client.get("/drift").json()["events"] == before
        assert client.post("/checkpoint").json()["sha256"] == digest
        assert len(bodies) == len(before)
