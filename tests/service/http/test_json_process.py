"""Large JSON bodies are decoded in other processes, with the same bytes and the same refusals."""

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import orjson
import pytest

from service.http.codecs import json, ndjson
from service.http.codecs.codec import MAX_EXAMPLES, Examples
from service.http.codecs.rows import CSV, LEARN_ROWS, Named, Packed
from service.http.json_process import JSONProcess, JSONProcessError, JSONProcesses
from streams.batch import InvalidBatchError, TooManyError
from streams.json_batch import from_json
from streams.rows.entry import from_bytes, to_bytes
from streams.rows.rows import Rows
from tests.support.harness import processes_naming, serving, wait_for

WIDTH, CLASSES = 784, 10
ROWS = np.random.default_rng(0).random((40, WIDTH)).tolist()
READER = "service.http.json_process"
NO_MORE_MEMORY = (1, 1)
"""Limit of the address space, soft and hard; a process keeps the memory that it has."""


def body(rows: list[list[float]] = ROWS) -> bytes:
    found = orjson.dumps({"features": rows, "labels": [3] * len(rows)})
    assert len(found) > json.MAX_IN_PROCESS
    return found


def here(raw: bytes) -> Examples:
    """Return the examples as this process decodes them."""
    return json.EXAMPLES.decode(raw, WIDTH, CLASSES)


@pytest.fixture
def processes() -> Iterator[JSONProcesses]:
    processes = JSONProcesses()
    yield processes
    processes.close()


def test_another_process_decodes_the_same_batch(processes: JSONProcesses) -> None:
    assert here(body()) == Examples(len(ROWS), from_json(body()).to_bytes())
    assert processes.decode(json.EXAMPLES, body(), WIDTH, CLASSES) == here(body())
    lines = b"\n".join(orjson.dumps({"features": row, "label": 3}) for row in ROWS)
    assert processes.decode(ndjson.EXAMPLES, lines, WIDTH, CLASSES) == here(body())
    assert len(processes.idle) == 1, "the second body found the process of the first"


def test_a_refusal_keeps_its_field_and_index_and_spares_the_process(
    processes: JSONProcesses,
) -> None:
    bad = [*ROWS[:7], ROWS[7][:-1], *ROWS[8:]]
    with pytest.raises(InvalidBatchError, match="has 783 features, expected 784") as caught:
        processes.decode(json.EXAMPLES, body(bad), WIDTH, CLASSES)
    assert (caught.value.field, caught.value.index) == ("features", 7)
    with pytest.raises(InvalidBatchError, match="label 3 is outside") as caught:
        processes.decode(json.EXAMPLES, body(), WIDTH, 3)
    assert (caught.value.field, caught.value.index) == ("labels", 0)
    with pytest.raises(TooManyError, match="send several requests"):
        processes.decode(json.EXAMPLES, body([[0.5]] * (MAX_EXAMPLES + 1)), 1, CLASSES)
    assert processes.decode(json.EXAMPLES, body(), WIDTH, CLASSES) == here(body())
    assert len(processes.idle) == 1


def test_a_process_that_was_killed_while_idle_is_replaced(processes: JSONProcesses) -> None:
    process = JSONProcess()
    process._process.kill()
    process._process.wait()
    processes.idle.append(process)
    assert processes.decode(json.EXAMPLES, body(), WIDTH, CLASSES) == here(body())
    assert process not in processes.idle


def test_a_process_that_dies_of_a_body_is_replaced(processes: JSONProcesses) -> None:
    process, larger = JSONProcess(), body(ROWS * 25)
    process.decode(json.EXAMPLES, body(), WIDTH, CLASSES)
    resource.prlimit(process._process.pid, resource.RLIMIT_AS, NO_MORE_MEMORY)
    processes.idle.append(process)
    with pytest.raises(JSONProcessError):
        processes.decode(json.EXAMPLES, larger, WIDTH, CLASSES)
    assert processes.decode(json.EXAMPLES, larger, WIDTH, CLASSES) == here(larger)


def test_rows_come_back_as_the_log_takes_them_with_what_the_schema_checks(
    processes: JSONProcesses,
) -> None:
    named, codec = Named(None, "w", "label"), LEARN_ROWS[CSV]
    table = b"plan,age,w,label\n" + b"pro,41.5,2,stay\nvip,,1,7\n" * 3_000
    packed = processes.decode(codec, table, 0, 0, options=named.to_bytes())
    assert isinstance(packed, Packed)
    found = codec.decode(table, 0, 0)
    assert isinstance(found, Rows)
    assert packed.payload == to_bytes(named.apart(found))
    assert len(packed) == len(from_bytes(packed.payload)) == 6_000
    assert (packed.types, packed.labels) == ({"plan": "s", "age": "f"}, ["stay", "7"])
    many = b"age,w,label\n" + b"".join(b"1,1,%d\n" % k for k in range(1_001))
    packed = processes.decode(codec, many, 0, 0, options=named.to_bytes())
    assert isinstance(packed, Packed)
    assert packed.labels is None
    for options, message in (
        (Named("x", None, "label"), "no column 'x' that holds their labels"),
        (Named(None, "plan", "label"), "must be numbers"),
    ):
        with pytest.raises(InvalidBatchError, match=message):
            processes.decode(codec, table, 0, 0, options=options.to_bytes())
    assert len(processes.idle) == 1


def test_closing_ends_the_processes() -> None:
    processes = JSONProcesses()
    processes.decode(json.EXAMPLES, body(), WIDTH, CLASSES)
    (process,) = processes.idle
    processes.close()
    assert not process.is_alive()


def test_the_processes_end_with_a_service_that_is_killed(tmp_path: Path) -> None:
    before = processes_naming(READER)
    with serving(tmp_path) as service, service.client() as client:
        answer = client.post("/learn", content=body(), headers={"Content-Type": "application/json"})
        assert answer.status_code == 202, answer.text
        started = processes_naming(READER) - before
        assert started
        service.kill()
    wait_for(lambda: not started & processes_naming(READER))


def test_a_body_of_which_its_process_dies_may_be_sent_again(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.client() as client:
        client.headers["Content-Type"] = "application/json"
        assert client.post("/learn", content=body()).status_code == 202
        for reader in processes_naming(READER) & children(service.process.pid):
            resource.prlimit(reader, resource.RLIMIT_AS, NO_MORE_MEMORY)
        refused = client.post("/learn", content=body(ROWS * 25))
        assert refused.status_code == 503, refused.text
        assert refused.json()["error"]["code"] == "reader_lost"
        assert "Retry-After" in refused.headers
        assert client.post("/learn", content=body(ROWS * 25)).status_code == 202
        assert 'funnel_rejected_total{code="reader_lost"} 1.0' in client.get("/metrics").text


def test_a_service_survives_the_death_of_an_idle_process(tmp_path: Path) -> None:
    with serving(tmp_path) as service, service.client() as client:
        client.headers["Content-Type"] = "application/json"
        answer = client.post("/learn", content=body())
        assert answer.status_code == 202, answer.text
        for reader in processes_naming(READER) & children(service.process.pid):
            os.kill(reader, signal.SIGKILL)
            wait_for(lambda reader=reader: has_ended(reader))
        answer = client.post("/learn", content=body())
        assert answer.status_code == 202, answer.text


def has_ended(process: int) -> bool:
    """Return whether a process can be waited for by its parent, or was; Linux only.

    Its command line is empty sooner, while its files are still open. Its first thread has ended
    sooner, too, while its parent has to wait for the others.
    """
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        threads = len([*Path(f"/proc/{process}/task").iterdir()])
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z" and threads == 1


def children(parent: int) -> set[int]:
    """Return the processes that a process has started; Linux only."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return {int(child) for found in lists for child in found.read_text().split()}
