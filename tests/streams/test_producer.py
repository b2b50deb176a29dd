"""The producer sends every batch once, and retries where that helps."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

from service.cli import main
from streams.batch import Batch
from streams.client.backoff import MAX_WAIT
from streams.client.transport import CONNECT_SECONDS
from streams.producer import (
    REMINDER_SECONDS,
    HTTPTarget,
    ProducerError,
    RedisTarget,
    RetryLaterError,
    make_target,
    produce,
)
from streams.sources.catalog import get
from tests.support.harness import RedisProcess, free_port
from tests.support.losing import losing_answers


class Answering(NamedTuple):
    url: str
    seen: list[tuple[str, bytes, str]]
    """Key, body and token of each request."""


@contextmanager
def answering(script: list[int], retry_after: str | None = None) -> Iterator[Answering]:
    """A server whose requests get these statuses in turn, then 202; 0 hangs up unanswered."""
    seen: list[tuple[str, bytes, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.headers["Idempotency-Key"], body, self.headers["Authorization"]))
            status = script.pop(0) if script else 202
            if status == 0:
                self.close_connection = True
                return
            self.send_response(status)
            if retry_after and status != 202:
                self.send_header("Retry-After", retry_after)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, *_: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Answering(f"http://127.0.0.1:{server.server_port}", seen)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_user_is_notified_of_a_service_that_stays_away() -> None:
    answers: list[str] = []
    with answering([503, 202, 0, 0, 503, 0]) as server, closing(HTTPTarget(server.url)) as target:
        sent = produce(get("sea", 200).batches(100), target, away=answers.append)
    assert (sent.examples, sent.retries) == (200, 5)
    assert answers == [f"{server.url} answered 503: {{}}"], "at the third try of the second batch"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://key:secret@host:1/path?token=secret", "https://host:1/path: "),
        ("redis://:secret@host:6379/0?password=secret", "redis://host:6379/0: "),
        ("unix://name:secret@/run/valkey.sock?db=1", "unix:///run/valkey.sock: "),
    ],
)
def test_an_address_is_shown_without_its_secrets(
    url: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    with closing(make_target(url)) as target, pytest.raises(RetryLaterError) as caught:
        target.send(next(get("sea", 10).batches(10)), "key")
    assert str(caught.value).startswith(shown)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["http", "redis"])
def test_the_user_is_notified_at_once_of_an_address_where_nobody_answers(scheme: str) -> None:
    url = f"{scheme}://name:secret@127.0.0.1:{free_port()}"
    notices: list[tuple[int, str]] = []
    waits: list[float] = []

    def notified(reason: str) -> None:
        notices.append((len(waits), reason))

    with closing(make_target(url)) as target, pytest.raises(ProducerError) as caught:
        produce(
            get("sea", 100).batches(100), target, away=notified, give_up_seconds=0.1,
            sleep=waits.append,
        )  # fmt: skip
    [(tries, reason)] = notices
    assert tries == 0, "before it waits"
    assert reason.startswith(url.replace("name:secret@", "") + ": ")
    assert "refused" in reason
    assert str(caught.value) == f"gave up after 0.1 s; last answer: {reason}"


def test_the_user_is_reminded_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("streams.producer.time", SimpleNamespace(monotonic=lambda: now[0]))
    notices: list[float] = []

    def wait(seconds: float) -> None:
        now[0] += seconds

    class Absent:
        def send(self, batch: Batch, key: str) -> None:
            raise RetryLaterError("nobody answers", is_absent=True)

        def close(self) -> None:
            return

    with pytest.raises(ProducerError, match="gave up after 120 s"):
        produce(
            get("sea", 100).batches(100), Absent(), away=lambda _: notices.append(now[0]),
            sleep=wait,
        )  # fmt: skip
    assert notices[0] == 0
    gaps = [later - before for before, later in pairwise(notices)]
    assert all(REMINDER_SECONDS <= gap <= REMINDER_SECONDS + MAX_WAIT for gap in gaps)
    assert notices[-1] > 120 - REMINDER_SECONDS - 2 * MAX_WAIT


def test_an_address_that_swallows_connections_is_noticed() -> None:
    """A listener whose queue is full takes no more, and does not refuse them."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)
                one.connect_ex(address)
            with closing(HTTPTarget(f"http://127.0.0.1:{address[1]}")) as target:
                began = time.monotonic()
                with pytest.raises(RetryLaterError) as caught:
                    target.send(next(get("sea", 10).batches(10)), "key")
            assert caught.value.is_absent
            assert time.monotonic() - began < 4 * CONNECT_SECONDS
        finally:
            for one in waiting:
                one.close()


@pytest.mark.parametrize("url", ["http://", "https:///learn", "localhost:8000"])
def test_an_address_without_a_host_is_refused(url: str) -> None:
    with pytest.raises(ProducerError):
        make_target(url)


def test_a_busy_service_is_tried_again_under_the_same_key() -> None:
    stream = get("sea", 500)
    counts: list[int] = []
    with answering([202, 503, 0, 429, 202, 408]) as server:
        with closing(HTTPTarget(server.url, "secret")) as target:
            sent = produce(stream.batches(100), target, name="run", progress=counts.append)
        keys = [key for key, _, _ in server.seen]
        assert keys == [f"run-{k}" for k in (0, 1, 1, 1, 1, 2, 2, 3, 4)]
        assert (sent.examples, sent.retries, sum(counts)) == (500, 4, 500)
        bodies = {key: body for key, body, _ in server.seen}
        assert list(bodies.values()) == [b.to_bytes() for b in stream.batches(100)]
        assert all(body == bodies[key] for key, body, _ in server.seen)
        assert {token for _, _, token in server.seen} == {"Bearer secret"}


def test_it_waits_as_long_as_the_service_asks() -> None:
    with answering([503], retry_after="1") as server, closing(HTTPTarget(server.url)) as target:
        began = time.monotonic()
        produce(get("sea", 100).batches(100), target, name="run")
        assert time.monotonic() - began >= 1


def test_waits_double_up_to_the_longest() -> None:
    waits: list[float] = []
    with answering([503] * 12) as server, closing(HTTPTarget(server.url)) as target:
        produce(get("sea", 100).batches(100), target, name="run", sleep=waits.append)
    assert len(waits) == 12
    assert all(0.05 * 2**k <= wait <= 0.1 * 2**k for k, wait in enumerate(waits[:5]))
    assert all(MAX_WAIT / 2 <= wait <= MAX_WAIT for wait in waits[6:])


@pytest.mark.parametrize("status", [200, 301, 307])
def test_an_answer_other_than_202_is_not_an_acknowledgement(status: int) -> None:
    with (
        answering([status]) as server,
        closing(HTTPTarget(server.url)) as target,
        pytest.raises(ProducerError, match=str(status)),
    ):
        produce(get("sea", 100).batches(100), target, name="run")


def test_a_refusal_is_final_and_shown() -> None:
    with answering([422]) as server, closing(HTTPTarget(server.url)) as target:
        with pytest.raises(ProducerError, match="422"):
            produce(get("sea", 300).batches(100), target, name="run")
        assert len(server.seen) == 1


def test_the_producer_gives_up_on_a_service_that_stays_away() -> None:
    with (
        closing(HTTPTarget("http://127.0.0.1:9")) as target,
        pytest.raises(ProducerError, match=r"gave up after 0\.3 s"),
    ):
        produce(get("sea", 100).batches(100), target, give_up_seconds=0.3)


def test_the_rate_is_kept() -> None:
    with answering([]) as server, closing(HTTPTarget(server.url)) as target:
        began = time.monotonic()
        produce(get("sea", 1_000).batches(100), target, rate=1_000.0, name="run")
        assert 0.85 < time.monotonic() - began < 3


def test_redis_gets_the_same_bytes(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()
    try:
        stream = get("sea", 250)
        with closing(make_target(redis.url, "mlp")) as target:
            sent = produce(stream.batches(100), target)
        assert sent.examples == 250
        with redis.client() as direct:
            found = [fields[b"batch"] for _, fields in direct.xrange("funnel:{mlp}:log")]
        assert found == [b.to_bytes() for b in stream.batches(100)]
        redis.kill()
        with closing(RedisTarget(redis.url, "mlp")) as target, pytest.raises(RetryLaterError):
            target.send(next(stream.batches(10)), "key")
    finally:
        redis.kill()


def test_an_entry_whose_answer_is_lost_is_not_sent_again_by_redis_py(tmp_path: Path) -> None:
    redis = RedisProcess(tmp_path).start()
    try:
        [batch] = get("sea", 10).batches(10)
        with (
            losing_answers(redis.port) as url,
            closing(RedisTarget(url, "model")) as target,
            pytest.raises(RetryLaterError),
        ):
            target.send(batch, "key")
        with redis.client() as direct:
            assert direct.xlen("funnel:{model}:log") == 1
    finally:
        redis.kill()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(ProducerError, match="ftp"):
        make_target("ftp://host")


@pytest.mark.parametrize(
    ("keys", "token"),
    [
        ({}, None),
        ({"API": "all"}, "Bearer all"),
        ({"API": "all", "LEARN": ""}, "Bearer all"),
        ({"API": "all", "LEARN": "less"}, "Bearer less"),
        ({"LEARN": "less"}, "Bearer less"),
    ],
)
def test_the_command_sends_the_key_with_the_fewest_rights(
    keys: dict[str, str], token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("API", "LEARN"):
        monkeypatch.delenv(f"FUNNEL_{name}_KEY", raising=False)
    for name, key in keys.items():
        monkeypatch.setenv(f"FUNNEL_{name}_KEY", key)
    with answering([]) as server:
        assert main(["stream", "sea", "--to", server.url, "--examples", "100"]) == 0
    assert [given for _, _, given in server.seen] == [token]


def test_the_command_sends_and_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    with answering([]) as server:
        assert main(["stream", "sea", "--to", server.url, "--examples", "250"]) == 0
        assert len(server.seen) == 3
    assert "250 examples in" in capsys.readouterr().out


def test_a_dead_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"127.0.0.1:{free_port()}"
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", f"http://user:secret@{proxy}")
    batch = Batch(np.zeros((1, 1), np.float32), np.zeros(1, np.int64))
    target = make_target("http://funnel.example:8000")
    with closing(target), pytest.raises(RetryLaterError) as caught:
        target.send(batch, "key")
    message = str(caught.value)
    assert f"through the proxy http://{proxy} of the environment" in message
    assert "secret" not in message
