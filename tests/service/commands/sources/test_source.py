"""`funnel source`: each message of a broker or a file is in the log once, whatever is killed.

The server of the log and that of NATS are real. Kafka is librdkafka's mock cluster.
"""

import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Protocol

import pytest

from service.log.keys import Keys
from streams.rows.fields import from_fields
from tests.support.brokers import MockKafka, NatsProcess
from tests.support.cli import funnel, start
from tests.support.harness import RedisProcess, free_port, serving, wait_for

_numbers = count()


def rows(first: int, last: int) -> list[bytes]:
    """Messages with one row each, whose column ``a`` numbers them."""
    return [
        json.dumps({"row": {"a": k, "plan": "basic"}, "label": "even" if k % 2 == 0 else "odd"})
        .encode() for k in range(first, last)
    ]  # fmt: skip


class Upstream(Protocol):
    """A source that a test fills."""

    url: str

    def send(self, contents: Sequence[bytes]) -> None: ...


@dataclass
class Topic:
    cluster: MockKafka
    name: str = field(default_factory=lambda: f"topic-{next(_numbers)}")

    @property
    def url(self) -> str:
        return self.cluster.url(self.name)

    def send(self, contents: Sequence[bytes]) -> None:
        for partition in range(3):
            self.cluster.send(self.name, partition, contents[partition::3])


@dataclass
class Stream:
    server: NatsProcess
    name: str = field(default_factory=lambda: f"stream-{next(_numbers)}")

    @property
    def url(self) -> str:
        return self.server.url(self.name)

    def send(self, contents: Sequence[bytes]) -> None:
        self.server.send(self.name, contents)


@dataclass
class File:
    path: Path

    @property
    def url(self) -> str:
        return str(self.path)

    def send(self, contents: Sequence[bytes]) -> None:
        with self.path.open("ab") as file:
            file.write(b"".join(content + b"\n" for content in contents))


@pytest.fixture(scope="module")
def kafka() -> MockKafka:
    return MockKafka()


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsProcess]:
    server = NatsProcess(tmp_path_factory.mktemp("nats")).start()
    yield server
    server.kill()


@pytest.fixture
def topic(kafka: MockKafka) -> Topic:
    return Topic(kafka)


@pytest.fixture
def stream(nats: NatsProcess) -> Stream:
    return Stream(nats)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "rows.ndjson")


@pytest.fixture(params=["topic", "stream", "file"])
def upstream(request: pytest.FixtureRequest) -> Upstream:
    found: Upstream = request.getfixturevalue(request.param)
    return found


@dataclass
class Log:
    """The log of one model, and sources that carry into it."""

    server: RedisProcess
    model: str
    directory: Path
    stack: ExitStack

    def source(self, url: str, *options: str, **variables: str) -> ForkServerProcess:
        process = start(
            "source", url, "--to", self.server.url, "--model", self.model, *options,
            out=self.out, err=self.directory / "err", **variables,
        )  # fmt: skip
        self.stack.callback(process.kill)
        return process

    def end(self, process: ForkServerProcess) -> str:
        """Stop a source with SIGTERM, and return what it writes then."""
        assert process.pid is not None
        self.out.write_text("")
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == 0
        return self.out.read_text()

    @property
    def out(self) -> Path:
        return self.directory / "out"

    @property
    def err(self) -> str:
        path = self.directory / "err"
        return path.read_text() if path.exists() else ""

    def __len__(self) -> int:
        with self.server.client() as redis:
            return int(redis.xlen(Keys(self.model).log))

    def holds(self, messages: int) -> None:
        wait_for(lambda: len(self) >= messages)

    def entries(self) -> list[dict[bytes, bytes]]:
        with self.server.client() as redis:
            return [fields for _, fields in redis.xrange(Keys(self.model).log)]

    def places(self) -> dict[str, list[int]]:
        """The offsets that are in the log, by partition."""
        found: dict[str, list[int]] = {}
        for fields in self.entries():
            partition, _, offset = fields[b"source"].decode().rpartition("@")
            found.setdefault(partition, []).append(int(offset))
        return found

    def holds_each_once(self, messages: int) -> None:
        """Check that the log has the rows that `rows` has made, each once, in order."""
        self.holds(messages)
        found = Counter(
            from_fields(fields).chunks[0].columns.column("a")[0].as_py()
            for fields in self.entries()
        )
        assert found == Counter(range(messages))
        for offsets in self.places().values():
            assert offsets == sorted(set(offsets))


@pytest.fixture
def log(server: RedisProcess, model: str, tmp_path: Path) -> Iterator[Log]:
    with ExitStack() as stack:
        yield Log(server, model, tmp_path, stack)


def test_each_message_is_in_the_log_once_however_often_the_source_is_killed(
    upstream: Upstream, log: Log
) -> None:
    rng, after = random.Random(0), [0]
    upstream.send(rows(0, 2_000))
    while after[-1] < 2_000:
        process, enough = log.source(upstream.url), after[-1] + rng.randrange(1, 500)
        log.holds(min(enough, 2_000))
        process.kill()
        process.join()
        after.append(len(log))
    assert len(after) > 2, "one source carried all before it was killed"
    upstream.send(rows(2_000, 2_010))
    process = log.source(upstream.url)
    log.holds_each_once(2_010)
    assert log.end(process) == "10 messages with 10 examples\n"


def test_two_sources_at_once_never_append_an_offset_twice(upstream: Upstream, log: Log) -> None:
    upstream.send(rows(0, 600))
    both = [log.source(upstream.url) for _ in range(2)]
    upstream.send(rows(600, 1_200))
    log.holds_each_once(1_200)
    upstream.send(rows(1_200, 1_210))
    log.holds_each_once(1_210)
    assert all(process.is_alive() for process in both)


def test_a_source_that_starts_again_goes_on_after_the_last_offset(
    upstream: Upstream, log: Log
) -> None:
    upstream.send(rows(0, 30))
    first = log.source(upstream.url)
    log.holds(30)
    assert log.end(first) == "30 messages with 30 examples\n"
    upstream.send(rows(30, 35))
    second = log.source(upstream.url)
    log.holds_each_once(35)
    assert log.end(second) == "5 messages with 5 examples\n"


def test_a_log_that_is_killed_loses_and_doubles_nothing(topic: Topic, tmp_path: Path) -> None:
    server = RedisProcess(tmp_path / "own").start()
    with ExitStack() as stack:
        log = Log(server, "m", tmp_path, stack)
        stack.callback(server.kill)
        topic.send(rows(0, 900))
        log.source(topic.url)
        wait_for(lambda: len(log))
        server.kill()
        topic.send(rows(900, 1_200))
        server.start()
        log.holds_each_once(1_200)
        assert "trying again: the log" in log.err


def test_a_broker_that_is_killed_loses_and_doubles_nothing(tmp_path: Path, log: Log) -> None:
    nats = NatsProcess(tmp_path / "own").start()
    log.stack.callback(nats.kill)
    nats.send("orders", rows(0, 300))
    log.source(nats.url("orders"))
    log.holds(300)
    nats.kill()
    wait_for(lambda: "trying again" in log.err)
    nats.start()
    nats.send("orders", rows(300, 600))
    log.holds_each_once(600)


def test_gaps_in_offsets_are_fine(kafka: MockKafka, nats: NatsProcess, log: Log) -> None:
    topic, stream = Topic(kafka), Stream(nats)
    one, two, three = rows(0, 3)
    kafka.send(topic.name, 1, [one, None, two, None, None])  # None removes a key
    kafka.commit(topic.name, [one, two])
    stream.send([one, two, two, three])
    for sequence in (2, 3):
        nats.remove(stream.name, sequence)
    log.source(topic.url)
    log.source(stream.url)
    log.holds(6)
    kafka.send(topic.name, 1, [three])
    log.holds(7)
    assert log.places() == {
        f"kafka:{topic.name}/0": [0, 2],
        f"kafka:{topic.name}/1": [0, 2, 5], f"nats:{stream.name}": [1, 4],
    }  # fmt: skip


def test_a_bad_message_is_a_dead_letter_and_the_rest_is_learned(
    topic: Topic, log: Log, tmp_path: Path
) -> None:
    own = {"redis_url": log.server.url, "name": log.model, "model": None, "batch_size": 2}
    with serving(tmp_path / "service", **own) as service, service.client() as client:
        bad = [b"no JSON", b'{"row": {"a": 1}}', b"", b'{"rows": [{"a": 1}], "labels": []}']
        topic.cluster.send(topic.name, 0, [*rows(0, 50), *bad, *rows(50, 100)])
        process = log.source(topic.url)
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 100)
        assert "100 examples, 4 could not be read" in log.end(process)
        letters = client.get("/dead").json()["letters"]
    assert [letter["reason"].partition(":")[0] for letter in reversed(letters)] == [
        "not JSON",
        "the field 'label' is missing; send {\"row\"",
        "the message is empty",
        "0 labels for 1 rows; send one a row",
    ]
    assert set(letters[0]["fields"]) == {"fault", "message", "source"}


def test_a_source_waits_while_as_much_waits_to_be_learned_as_may(topic: Topic, log: Log) -> None:
    topic.send(rows(0, 300))
    log.source(topic.url, FUNNEL_MAX_BACKLOG="120")
    wait_for(lambda: "waiting: about 120 examples wait to be learned" in log.err)
    assert len(log) == 120


def test_a_partition_begins_with_the_next_message_if_it_is_asked_to(topic: Topic, log: Log) -> None:
    topic.send(rows(0, 30))
    process = log.source(topic.url, "--from", "latest")
    with log.server.client() as redis:
        wait_for(lambda: redis.exists(Keys(log.model).sources))
    topic.send(rows(30, 33))
    log.holds(3)
    assert log.end(process) == "3 messages with 3 examples\n"
    assert set(map(tuple, log.places().values())) == {(10,)}


def test_messages_that_the_source_has_lost_are_named_unless_that_is_accepted(
    stream: Stream, log: Log
) -> None:
    stream.send(rows(0, 10))
    first = log.source(stream.url)
    log.holds(10)
    log.end(first)
    stream.send(rows(10, 15))
    stream.server.purge(stream.name)
    stream.send(rows(15, 20))
    common = (stream.url, "--to", log.server.url, "--model", log.model)
    ran = funnel("source", *common)
    assert (ran.returncode, len(log)) == (1, 10)
    assert "has lost offsets 11 to 15 before they were carried" in ran.stderr
    log.source(stream.url, "--accept-gap")
    log.holds(15)
    assert log.places() == {f"nats:{stream.name}": [*range(1, 11), *range(16, 21)]}


def test_a_stream_that_was_made_again_is_refused_until_it_has_another_name(
    stream: Stream, log: Log
) -> None:
    stream.send(rows(0, 10))
    log.end(_carried(log, stream, 10))
    stream.server.delete(stream.name)
    stream.send(rows(10, 13))
    ran = funnel("source", stream.url, "--to", log.server.url, "--model", log.model)
    assert ran.returncode == 1
    assert "ends at offset 3, but the log has it up to 10: it was made again" in ran.stderr
    log.source(stream.url, "--name", "second")
    log.holds_each_once(13)


def _carried(log: Log, upstream: Upstream, messages: int) -> ForkServerProcess:
    process = log.source(upstream.url)
    log.holds(messages)
    return process


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kafka://h:1/t"], "--to: name the log"),
        (["kafka://h:1", "--to", "redis://h"], "a source is kafka://host:9092/TOPIC"),
        (["amqp://h/q", "--to", "redis://h"], "a source is kafka://host:9092/TOPIC"),
        (["x.csv", "--to", "http://h"], "is neither redis://, rediss:// nor unix://"),
    ],
)
def test_what_is_no_source_or_no_log_is_refused(words: list[str], message: str) -> None:
    ran = funnel("source", *words)
    assert ran.returncode in (1, 2)
    assert message in ran.stderr


def test_the_properties_of_a_file_reach_librdkafka(topic: Topic, log: Log, tmp_path: Path) -> None:
    path = tmp_path / "client.properties"
    path.write_text("# comment\n\nclient.id = shop\nno.such.property = 1\n")
    common = (topic.url, "--to", log.server.url, "--config", str(path))
    ran = funnel("source", *common)
    assert ran.returncode == 2
    assert 'No such configuration property: "no.such.property"' in ran.stderr
    path.write_text("client.id = shop\nenable.auto.commit = true\n")
    topic.send(rows(0, 3))
    process = log.source(topic.url, "--config", str(path))
    log.holds_each_once(3)
    assert log.end(process) == "3 messages with 3 examples\n"


def test_a_topic_and_a_stream_that_are_not_there_are_named(topic: Topic, stream: Stream) -> None:
    log = f"redis://127.0.0.1:{free_port()}"
    for source, name in ((topic.url, topic.name), (stream.url, stream.name)):
        ran = funnel("source", source, "--to", log, "--model", "m")
        assert ran.returncode == 1
        assert repr(name) in ran.stderr
