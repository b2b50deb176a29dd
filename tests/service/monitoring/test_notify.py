"""The webhook posts to a real server."""

import asyncio
import base64
import hmac
import json
import platform
import time
from dataclasses import replace
from email.message import Message

import pytest
from pydantic import SecretStr

from service.fold.drift.events import Event
from service.fold.drift.monitor import Monitor
from service.log.position import EntryId, Position
from service.monitoring.history import History
from service.monitoring.notify import TRIES, DriftNews, Notice, Webhook
from service.process import SystemClock
from service.settings import SettingsError, load_settings
from tests.support.servers import answering

EVENT = Event(1, "adwin", "worse", 400, 4, 0.9, 0.5, None, Position(EntryId(1_500, 0)))
SHOWN = {
    "id": 1, "detector": "adwin", "direction": "worse", "examples": 400, "model_version": 4,
    "accuracy_before": 0.9, "accuracy_after": 0.5, "recovery_examples": None, "position": "1500-0",
    "time": 1.5, "kind": "drift", "model": "churn", "host": platform.node(),
}  # fmt: skip


DRIFT = Notice(EVENT, "drift")


async def failures_of(
    url: str, notice: Notice = DRIFT, secret: str = "", form: str = "auto"
) -> int:
    """Post a notice, wait until it is posted or given up, and return the failures."""
    failures = 0

    def failed() -> None:
        nonlocal failures
        failures += 1

    webhook = Webhook(SecretStr(url), failed, "churn", SecretStr(secret), form, 0.01)
    task = asyncio.create_task(webhook.run())
    webhook.post(notice)
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


@pytest.mark.parametrize(
    ("secret", "key"),
    [("hush", b"hush"), ("whsec_" + base64.b64encode(b"\0hush").decode(), b"\0hush")],
)
def test_a_signature_covers_id_time_and_body_and_each_try_has_one_id(
    secret: str, key: bytes
) -> None:
    began = int(time.time())
    headers: list[Message] = []
    with answering(503, 200, headers=headers) as (url, bodies):
        assert asyncio.run(failures_of(url, secret=secret)) == 0
    assert len(bodies) == 2
    for found, body in zip(headers, bodies, strict=True):
        at, name = found["webhook-timestamp"], found["webhook-id"]
        assert began <= int(at) <= time.time()
        assert name == "churn-1-1500-0-drift"
        signed = hmac.digest(key, f"{name}.{at}.".encode() + body, "sha256")
        assert found["webhook-signature"] == f"v1,{base64.b64encode(signed).decode()}"


def test_without_a_secret_nothing_is_signed() -> None:
    headers: list[Message] = []
    with answering(200, headers=headers) as (url, _):
        asyncio.run(failures_of(url))
    assert headers[0]["webhook-signature"] is None


@pytest.mark.parametrize(
    ("notice", "words"),
    [
        (DRIFT, "adwin sees a change for the worse after 400 examples: accuracy 90.0% → 50.0%"),
        (
            Notice(replace(EVENT, detector="excess_loss"), "drift"),
            "excess_loss sees a change for the worse after 400 examples: "
            "loss higher against the floor's, accuracy 90.0% → 50.0%",
        ),
        (
            Notice(replace(EVENT, recovery_examples=1_200), "recovery"),
            "recovered 1,200 examples after the drift at 400",
        ),
    ],
)
def test_slack_gets_a_sentence(notice: Notice, words: str) -> None:
    with answering(200) as (url, bodies):
        asyncio.run(failures_of(url, notice, form="slack"))
    assert json.loads(bodies[0]) == {"text": f"churn on {platform.node()}: {words}"}


def test_a_drift_and_its_recovery_are_notified_once_each_and_none_of_a_replay() -> None:
    drift, found = Monitor(), []
    news = DriftNews(History(SystemClock()), found.append)
    drift.events = (EVENT,)
    drift.counts[(EVENT.detector, EVENT.direction)] = 1
    news.notify(drift)
    news.notify(drift)
    drift.events = (replace(EVENT, recovery_examples=700),)
    news.notify(drift)
    news.notify(drift)
    assert [notice.kind for notice in found] == ["drift", "recovery"]
    later = DriftNews(History(SystemClock()), found.append)
    later.skip(drift)
    later.notify(drift)
    assert len(found) == 2


def test_a_secret_that_is_no_base64_is_refused_and_not_shown() -> None:
    with pytest.raises(SettingsError, match=r"DRIFT_WEBHOOK_SECRET: give base64 after whsec_") as e:
        load_settings({"drift_webhook_secret": "whsec_?hush"})
    assert "hush" not in str(e.value)


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

        webhook = Webhook(SecretStr("http://127.0.0.1:70000/"), failed, "m", pause_seconds=0.01)
        task = asyncio.create_task(webhook.run())
        webhook.post(DRIFT)
        webhook.post(DRIFT)
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
