"""The webhook posts to a real server."""

import asyncio
import json

import pytest
from pydantic import SecretStr

from service.fold.drift.events import Event
from service.log.position import EntryId, Position
from service.monitoring.notify import TRIES, Webhook
from service.settings import SettingsError, load_settings
from tests.support.servers import answering

EVENT = Event(1, "adwin", "worse", 400, 4, 0.9, 0.5, None, Position(EntryId(1_500, 0)))
SHOWN = {
    "id": 1, "detector": "adwin", "direction": "worse", "examples": 400, "model_version": 4,
    "accuracy_before": 0.9, "accuracy_after": 0.5, "recovery_examples": None, "position": "1500-0",
    "time": 1.5,
}  # fmt: skip


async def failures_of(url: str) -> int:
    """Post one event, wait until it is posted or given up, and return the failures."""
    failures = 0

    def failed() -> None:
        nonlocal failures
        failures += 1

    webhook = Webhook(SecretStr(url), failed, pause_seconds=0.01)
    task = asyncio.create_task(webhook.run())
    webhook.post(EVENT)
    await asyncio.wait_for(webhook.settled(), 10)
    task.cancel()
    return failures


@pytest.mark.parametrize(
    ("statuses", "tries", "failures"),
    [((204,), 1, 0), ((503, 503, 200), 3, 0), ((503,), TRIES, 1), ((302, 200), 1, 1)],
)
def test_it_retries_gives_up_and_follows_no_redirect(
    statuses: tuple[int, ...], tries: int, failures: int, caplog: pytest.LogCaptureFixture
) -> None:
    with answering(*statuses) as (url, bodies), caplog.at_level("INFO"):
        assert asyncio.run(failures_of(url)) == failures
    assert [json.loads(body) for body in bodies] == [SHOWN] * tries
    assert "secret" not in caplog.text


def test_without_a_usable_proxy_events_are_given_up_in_one_line_each(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert asyncio.run(failures_of("http://hook.invalid/secret")) == 1
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("no drift event will be posted: the proxy socks5://127.0.0.1:9 of the")
    assert second.endswith("did not get a drift event: its proxy cannot be used")
    assert "secret" not in caplog.text


def test_a_webhook_on_this_machine_is_not_posted_through_a_proxy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    with answering(204) as (url, bodies):
        assert asyncio.run(failures_of(url)) == 0
    assert len(bodies) == 1


def test_an_exception_while_posting_does_not_stop_the_next_event() -> None:
    async def run() -> tuple[int, bool]:
        failures = 0

        def failed() -> None:
            nonlocal failures
            failures += 1

        webhook = Webhook(SecretStr("http://127.0.0.1:70000/"), failed, pause_seconds=0.01)
        task = asyncio.create_task(webhook.run())
        webhook.post(EVENT)
        webhook.post(EVENT)
        await asyncio.wait_for(webhook.settled(), 10)
        ended = task.done()
        task.cancel()
        return failures, ended

    assert asyncio.run(run()) == (2, False)


@pytest.mark.parametrize("url", ["ftp://host/x", "no-address", "http://host:70000/"])
def test_another_scheme_is_refused_and_not_shown(url: str) -> None:
    with pytest.raises(SettingsError, match="DRIFT_WEBHOOK") as found:
        load_settings({"drift_webhook": url})
    assert url not in str(found.value)
