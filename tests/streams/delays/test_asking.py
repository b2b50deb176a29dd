"""A stream is asked over HTTP, and its labels follow by id when their time has come."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from streams.batch import Batch
from streams.delays.asking import ask
from streams.delays.delay import Delay
from streams.producer import HTTPTarget, NothingLearnedError, ProducerError, RetryLaterError
from tests.support.harness import ServiceProcess, serving, wait_for
from tests.support.metrics import sample, scrape

SEA = {"model": "logistic", "features": 3, "classes": 2, "batch_size": 50, "max_wait_ms": 10}


class Clock:
    """A clock that moves when somebody sleeps, and a note of what was sent when."""

    def __init__(self) -> None:
        self.now, self.sent = 100.0, list[tuple[str, float, list[str], list[object]]]()

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def time(self) -> float:
        return self.now


class Noting(HTTPTarget):
    """A target that notes what it gets, and answers 0; it knows nothing before a lesson."""

    def __init__(self, clock: Clock, lessons: int = 0, busy: int = 0) -> None:
        super().__init__("http://127.0.0.1:1")
        self.clock, self.lessons, self.busy = clock, lessons, busy

    def ask(self, batch: object, ids: Sequence[str]) -> list[object]:
        if self.busy:
            self.busy -= 1
            raise RetryLaterError("busy")
        if self.lessons:
            raise NothingLearnedError
        self.clock.sent.append(("ask", self.clock.now, [*ids], []))
        return [0] * len(ids)

    def learn(self, batch: object, key: str) -> None:
        self.lessons -= 1
        self.clock.sent.append(("learn", self.clock.now, [key], []))

    def label(
        self,
        ids: Sequence[str],
        labels: Sequence[object],
        weights: Sequence[float] | None,
        waits: bool = False,
    ) -> None:
        self.clock.sent.append(("label", self.clock.now, [*ids], [*labels]))


def batches(sizes: Sequence[int]) -> Iterator[Batch]:
    start = 0
    for n in sizes:
        yield Batch(np.zeros((n, 3), np.float32), np.arange(start, start + n) % 2)
        start += n


def test_a_label_comes_when_its_time_has_passed() -> None:
    clock = Clock()
    target = Noting(clock)
    delay = Delay.parse("0=3s,never")
    told = ask(
        batches([2, 2, 2]), target, delay, rate=1.0, name="s", sleep=clock.sleep, clock=clock.time
    )
    assert clock.sent == [
        ("ask", 100.0, ["s-0", "s-1"], []),
        ("ask", 102.0, ["s-2", "s-3"], []),
        ("label", 103.0, ["s-0"], [0]),
        ("ask", 104.0, ["s-4", "s-5"], []),
        ("label", 105.0, ["s-2"], [0]),
        ("label", 107.0, ["s-4"], [0]),
    ]
    assert (told.asked, told.labelled, told.missing, told.right) == (6, 3, 3, 3)
    assert "50.0% of the answers were right" in str(told)
    target.close()


def test_labels_that_are_counted_in_examples_come_before_the_next_batch() -> None:
    clock = Clock()
    with closing(Noting(clock)) as target:
        told = ask(batches([2, 2, 1]), target, Delay.parse("2"), name="s", clock=clock.time)
    assert [(kind, ids) for kind, _, ids, _ in clock.sent] == [
        ("ask", ["s-0", "s-1"]),
        ("label", ["s-0"]),
        ("ask", ["s-2", "s-3"]),
        ("label", ["s-1", "s-2"]),
        ("ask", ["s-4"]),
        ("label", ["s-3"]),
    ]
    assert told.missing == 1


def test_a_service_that_knows_nothing_is_taught_the_first_batches() -> None:
    clock = Clock()
    with closing(Noting(clock, lessons=1, busy=2)) as target:
        told = ask(
            batches([2, 2]), target, Delay.parse("0"), name="s", sleep=clock.sleep, clock=clock.time
        )
    assert [kind for kind, *_ in clock.sent] == ["learn", "ask", "label"]
    assert (told.taught, told.asked, told.labelled, told.retries) == (2, 2, 2, 0)
    assert "2 learned before the first answer" in str(told)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("asking"), **SEA) as running:
        yield running


def test_a_stream_with_delays_is_learned_by_a_service(
    service: ServiceProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    with service.client() as client:
        before = client.get("/model").json()["examples_learned"]
        for delay in ("100", "exp:20ms,0=never"):
            command = ["stream", "sea", "--to", service.url, "--examples", "400"]
            assert main([*command, "--delay", delay, "--batch-size", "50"]) == 0
        first, second = capsys.readouterr().out.splitlines()
        assert "400 examples asked, 301 labels came, 99 did not" in first
        labelled = 301 + int(second.split(" labels came")[0].split()[-1])
        wait_for(lambda: client.get("/model").json()["examples_learned"] == before + labelled)
        assert sample(scrape(client), "funnel_labels_total", result="joined") == labelled


def test_rows_with_delays_begin_a_service_without_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path, batch_size=50, max_wait_ms=10, effort="fast") as running:
        command = ["stream", "orders", "--to", running.url, "--examples", "300"]
        assert main([*command, "--delay", "100", "--batch-size", "50"]) == 0
        out = capsys.readouterr().out
        assert "250 examples asked, 50 learned before the first answer, 151 labels came" in out
        with running.client() as client:
            wait_for(lambda: client.get("/model").json()["examples_learned"] == 201)
            assert "id" not in [c["name"] for c in client.get("/schema").json()["columns"]]


def test_questions_need_a_key_that_may_ask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = {"learn_key": "may-learn", "predict_key": "may-predict", "api_key": "all"}
    with serving(tmp_path, **SEA, **keys) as running:
        command = ["stream", "sea", "--to", running.url, "--examples", "100", "--delay", "0"]
        monkeypatch.setenv("FUNNEL_LEARN_KEY", "may-learn")
        assert main(command) == 1
        assert "403" in capsys.readouterr().err
        monkeypatch.setenv("FUNNEL_PREDICT_KEY", "may-predict")
        assert main(command) == 0
        assert "100 labels came" in capsys.readouterr().out


def test_a_log_cannot_be_asked(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["stream", "sea", "--to", "redis://127.0.0.1:1", "--delay", "5"]
    assert main(command) == 2
    assert "needs --to http://" in capsys.readouterr().err


def test_what_a_service_refuses_ends_the_stream(service: ServiceProcess) -> None:
    wide = [Batch(np.zeros((2, 9), np.float32), np.zeros(2, np.int64))]
    with closing(HTTPTarget(service.url)) as target, pytest.raises(ProducerError, match="422"):
        ask(wide, target, Delay.parse("0"), name="wide")
