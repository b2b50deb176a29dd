"""A client learns, predicts and labels at a real service."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from funnel import (
    AsyncClient,
    Client,
    FunnelError,
    InvalidExamples,
    Unauthorized,
    Unreachable,
    UnsupportedType,
)
from streams.client.calls import AddressError
from tests.support.harness import ServiceProcess, free_port, serving

ROWS = [{"plan": "basic", "age": 41}, {"plan": "vip", "age": None}]
WORDS = ["churn", "stay"]


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with serving(tmp_path_factory.mktemp("rows"), model=None, max_wait_ms=20) as service:
        yield service


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    shape = {"features": 3, "classes": 2}
    with serving(tmp_path_factory.mktemp("dense"), max_wait_ms=20, **shape) as service:
        yield service


@contextmanager
def losing_the_first_answer(port: int) -> Iterator[tuple[str, list[bytes]]]:
    """Yield the address of a proxy that hangs up on the first answer to /learn, and what came."""
    seen: list[bytes] = []

    def asks(client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while asked := client.recv(1 << 20):
                seen.append(asked)
                server.sendall(asked)

    def serve(client: socket.socket) -> None:
        with (
            suppress(OSError),
            client,
            socket.create_connection(("127.0.0.1", port)) as server,
        ):
            threading.Thread(target=asks, args=(client, server), daemon=True).start()
            while answer := server.recv(1 << 20):
                if b'"entry"' in answer and len([x for x in seen if b"POST /learn" in x]) == 1:
                    client.shutdown(socket.SHUT_RDWR)
                    return
                client.sendall(answer)

    def accept() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", seen
        listening.shutdown(socket.SHUT_RDWR)


def test_words_as_labels_come_back_as_words(of_rows: ServiceProcess) -> None:
    with Client(of_rows.url) as client:
        learned = client.learn(ROWS * 50, WORDS * 50, wait=True)
        assert (learned.accepted, len(learned.entries)) == (100, 1)
        assert learned.model_version is not None
        found = client.predict(ROWS)
        assert found.labels == WORDS
        assert found.classes is not None
        assert set(WORDS) <= set(found.classes)
        assert found.probabilities is not None
        assert found.probabilities.shape == (2, len(found.classes))
        np.testing.assert_allclose(found.probabilities.sum(1), 1, atol=1e-5)
        assert client.learn({"plan": "vip", "age": 3}, "stay").accepted == 1, "one row"
        assert {"churn", "stay"} <= set(client.schema()["labels"])
        assert client.model()["inputs"] == "rows"


def test_frames_carry_times_categories_and_missing_values(of_rows: ServiceProcess) -> None:
    frame = pd.DataFrame(
        {
            "plan": pd.Categorical(["basic", "vip", None] * 40),
            "age": [41, np.nan, 3] * 40,
            "size": pd.Categorical([1, 2, 1] * 40),
            "at": pd.to_datetime(["2026-05-01T08:30", None, "2026-05-02T00:00"] * 40),
            "outcome": ["churn", "stay", "churn"] * 40,
        }
    )
    with Client(of_rows.url) as client:
        assert client.learn(frame, "outcome", wait=True).accepted == 120
        kinds = {column["name"]: column["kind"] for column in client.schema()["columns"]}
        assert kinds["at"] == "time"
        assert "outcome" not in kinds
        asked = frame.drop(columns="outcome")
        expected = client.predict(asked)
        for same in (pl.from_pandas(asked), pa.Table.from_pandas(asked, preserve_index=False)):
            assert client.predict(same).labels == expected.labels
        polars = pl.from_pandas(frame)
        labels = polars["outcome"]
        assert client.learn(polars.drop("outcome"), labels, weights=[1.0] * 120).accepted == 120


def test_a_lost_answer_is_asked_for_again_and_learned_once(dense: ServiceProcess) -> None:
    x, y = np.eye(3), [0, 1, 1]
    with losing_the_first_answer(dense.port) as (url, seen), Client(url) as client:
        before = client.model()["examples_learned"]
        assert client.learn(x, y, wait=True).accepted == 3
        assert len([one for one in seen if b"POST /learn" in one]) == 2
        assert client.learn(x, y, wait=True).accepted == 3
        assert client.model()["examples_learned"] == before + 6


def test_dense_features_come_from_arrays_tensors_and_lists(dense: ServiceProcess) -> None:
    with Client(dense.url) as client:
        x = torch.eye(3, dtype=torch.bfloat16)
        assert client.learn(x, torch.tensor([0, 1, 1]), weights=np.ones(3), wait=True).accepted == 3
        found = client.predict(np.eye(3))
        assert found.probabilities is not None
        assert found.probabilities.shape == (3, 2)
        assert found.classes == [0, 1]
        lists = client.predict([[1, 0, 0], [0, 1, 0], [0, 0, 1]])
        assert lists.labels == found.labels
        assert len(client.predict(np.zeros(3))) == 1


def test_labels_come_later_by_id(dense: ServiceProcess, of_rows: ServiceProcess) -> None:
    with Client(dense.url) as client:
        asked = client.predict(np.eye(3), ids=["a", "b", 3])
        assert asked.ids == ["a", "b", 3]
        found = client.label(["a", "b", 3, "nobody"], [0, 1, 1, 0], wait=True)
        assert found.results == ["joined", "joined", "joined", "waiting"]
        tracked = client.predict(np.eye(3), track=True)
        assert tracked.ids is not None
        assert client.label(tracked.ids, np.array([0, 1, 1]), wait=True).results == ["joined"] * 3
    with Client(of_rows.url) as client:
        client.learn(ROWS * 2, WORDS * 2, wait=True)
        frame = pd.DataFrame({"order": ["x", "y"], "plan": ["basic", "vip"]})
        assert client.predict(frame, ids="order").ids == ["x", "y"]
        assert client.label("x", "stay", wait=True).results == ["joined"]


def test_large_inputs_are_split_and_stay_in_order(dense: ServiceProcess) -> None:
    n = 100_000
    x = np.zeros((n, 3), np.float32)
    x[:, 0] = np.linspace(0, 1, n)
    with Client(dense.url) as client:
        found = client.predict(x)
        one_by_one = client.predict(x[::9_999])
        assert found.probabilities is not None
        assert one_by_one.probabilities is not None
        assert len(found) == n
        np.testing.assert_allclose(
            found.probabilities[::9_999], one_by_one.probabilities, atol=1e-6
        )
        learned = client.learn(x, np.arange(n) % 2)
        assert learned.accepted == n
        assert len(learned.entries) == 2
        numbers = [int(entry.partition("-")[0]) for entry in learned.entries]
        assert numbers == sorted(numbers)


def test_an_error_names_the_example_in_all_of_the_call(dense: ServiceProcess) -> None:
    labels = np.zeros(70_000, np.int64)
    labels[69_999] = 5
    with Client(dense.url) as client:
        with pytest.raises(InvalidExamples, match=r"label 5 is outside 0…1") as caught:
            client.learn(np.zeros((70_000, 3), np.float32), labels)
        error = caught.value
        assert (error.code, error.status, error.field) == ("invalid", 422, "labels")
        assert (error.index, error.accepted) == (69_999, 65_536)
        assert isinstance(error, FunnelError)
        with pytest.raises(UnsupportedType):
            client.learn(pd.DataFrame({"a": [1]}), [0])
        with pytest.raises(InvalidExamples, match="2 labels for 3 examples"):
            client.learn(np.eye(3), [0, 1])
        with pytest.raises(InvalidExamples, match="finite"):
            client.predict([{"a": float("inf"), "b": None}])


def test_requests_larger_than_the_service_takes_are_halved(tmp_path: Path) -> None:
    shape = {"features": 3, "classes": 2}
    with (
        serving(tmp_path, max_body_bytes=4_000, **shape) as service,
        Client(service.url) as client,
    ):
        learned = client.learn(np.zeros((1_000, 3), np.float32), [0, 1] * 500)
        assert learned.accepted == 1_000
        assert len(learned.entries) > 4


def test_each_request_has_the_key_that_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"api_key": "admin", "learn_key": "teach", "predict_key": "read"}
    x = np.eye(3)
    with serving(tmp_path, features=3, classes=2, max_wait_ms=20, **keys) as service:
        with Client(service.url, learn_key="teach", predict_key="read") as client:
            client.learn(x, [0, 1, 1], wait=True)
            client.predict(x, ids=["a", "b", "c"])
            assert client.label(["a"], [0], wait=True).results == ["joined"]
        with Client(service.url, api_key="wrong") as client, pytest.raises(Unauthorized) as caught:
            client.predict(x)
        assert caught.value.status == 401
        monkeypatch.setenv("FUNNEL_API_KEY", "admin")
        with Client(service.url) as client:
            assert len(client.predict(x)) == 3


def test_an_absent_service_is_tried_until_the_timeout() -> None:
    with Client(f"http://127.0.0.1:{free_port()}", timeout=0.5) as client:
        assert not client.ready()
        began = time.monotonic()
        with pytest.raises(Unreachable) as caught:
            client.learn(np.eye(3), [0, 1, 1])
        assert time.monotonic() - began < 5
        assert (caught.value.code, caught.value.status) == ("unreachable", None)
        with pytest.raises(Unreachable):
            client.wait_until_ready(0.1)
    with pytest.raises(AddressError):
        Client("localhost:8000")


def test_a_client_waits_until_the_service_is_ready(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, {"features": 3, "classes": 2})
    with Client(service.url) as client:
        starting = threading.Thread(target=service.start)
        starting.start()
        try:
            assert client.wait_until_ready(60)
        finally:
            starting.join()
            service.kill()


def test_the_asynchronous_client_does_the_same(dense: ServiceProcess) -> None:
    async def run() -> None:
        async with AsyncClient(dense.url) as client:
            assert await client.wait_until_ready(10)
            learned = await client.learn(np.eye(3), [0, 1, 1], wait=True)
            assert learned.model_version is not None
            found = await asyncio.gather(*(client.predict(np.eye(3)) for _ in range(4)))
            assert [len(one) for one in found] == [3] * 4
            await client.predict(np.eye(3), ids=["p", "q", "r"])
            assert (await client.label(["p"], [0], wait=True)).results == ["joined"]
            assert (await client.model())["inputs"] == "features"
            with pytest.raises(InvalidExamples):
                await client.learn(np.eye(3), [0, 1, 9])

    asyncio.run(run())
