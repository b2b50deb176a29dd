"""`funnel status`, `predict` and `dead`, which ask a running service."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from redis import Redis

from tests.support import cli
from tests.support.harness import ServiceProcess, free_port, serving, wait_for

KEY = "hush"
HEADER = {"Authorization": f"Bearer {KEY}"}
ROWS = "plan,age,label\nbasic,31,stay\nvip,52,go\nbasic,27,stay\n"


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"schema": "auto", "batch_size": 3, "table_bits": 8, "api_key": KEY}
    with serving(tmp_path_factory.mktemp("rows"), **options) as service:
        with service.client(**HEADER) as client:
            kind = {"Content-Type": "text/csv"}
            client.post(
                "/learn?wait=applied", content=ROWS.encode(), headers=kind
            ).raise_for_status()
        yield service


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"features": 2, "classes": 3, "batch_size": 2}
    with serving(tmp_path_factory.mktemp("dense"), **options) as service:
        yield service


@pytest.fixture(scope="module")
def of_numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    options = {"features": 2, "task": "quantile:0.1,0.5,0.9"}
    with serving(tmp_path_factory.mktemp("numbers"), **options) as service:
        yield service


def funnel(*arguments: str, key: str = "") -> "subprocess.CompletedProcess[str]":
    keys = {"FUNNEL_PREDICT_KEY": "", "FUNNEL_API_KEY": key} if key else {}
    return cli.funnel(*arguments, **keys)


def test_status_of_a_service_that_learned(of_rows: ServiceProcess) -> None:
    ran = funnel("status", "--to", of_rows.url, key=KEY)
    assert (ran.returncode, ran.stderr) == (0, "")
    shown = dict(line.split(maxsplit=1) for line in ran.stdout.splitlines() if line[0] != " ")
    assert shown["status"] == "ready"
    assert (shown["role"], shown["condition"]) == ("learner", "learning")
    assert shown["model"] == "logistic, multiclass, of rows"
    assert (shown["version"], shown["examples"]) == ("1", "3")
    assert shown["accuracy"].endswith("% of all")
    assert shown["backlog"] == "0 examples"
    assert shown["drift"] == "no event"


@pytest.mark.parametrize(
    ("task", "what"),
    [("regression", "a mean absolute error of "), ("quantile:0.1,0.9", "a mean pinball loss of ")],
)
def test_status_shows_the_errors_of_numbers_of_all_learners(
    tmp_path: Path, task: str, what: str
) -> None:
    options = {"model": "logistic", "task": task, "features": 3, "shadow": "adagrad"}
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(300, 3))
    body = {"features": inputs.tolist(), "labels": inputs.sum(axis=1).tolist()}
    with serving(tmp_path, **options, max_wait_ms=10) as service, service.client() as client:
        client.post("/learn?wait=applied", json=body).raise_for_status()
        wait_for(lambda: client.get("/model").json()["numbers"].get("adagrad", {}).get("total"))
        shown = funnel("status", "--to", service.url).stdout.splitlines()
    assert [line.split()[0] for line in shown if what in line] == ["error", "shadow"]
    assert any(line.startswith(f"shadow     adagrad: {what}") for line in shown)


def test_status_of_no_service_is_not_ready_with_status_1() -> None:
    ran = funnel("status", "--to", f"http://127.0.0.1:{free_port()}")
    assert (ran.returncode, ran.stderr) == (1, "")
    assert ran.stdout.startswith("not ready: no service answers at http://127.0.0.1:")


def test_status_tells_a_standby_from_a_learner(dense: ServiceProcess) -> None:
    with serving(dense.directory, **dense.options) as standby:
        ran = funnel("status", "--to", standby.url)
        assert ran.returncode == 0
        assert "standby" in ran.stdout
        assert funnel("status", "--learning", "--to", standby.url).returncode == 1
        assert funnel("status", "--learning", "--to", dense.url).returncode == 0


def write(path: Path) -> Path:
    """Write the rows without labels, in the format of a file's name."""
    columns = {"plan": ["basic", "vip", None], "age": [30.0, 50.0, 20.0]}
    table = pa.table(columns)
    match path.suffix:
        case ".csv":
            path.write_text("plan,age\nbasic,30\nvip,50\n,20\n")
        case ".ndjson":
            rows = [
                dict(zip(columns, values, strict=True))
                for values in zip(*columns.values(), strict=True)
            ]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".parquet":
            pa.parquet.write_table(table, path)
        case ".arrow":
            with pa.ipc.new_file(str(path), table.schema) as file:
                file.write_table(table)
    return path


@pytest.mark.parametrize("ending", [".csv", ".ndjson", ".parquet", ".arrow"])
def test_predictions_of_a_file_are_those_of_its_rows(
    ending: str, of_rows: ServiceProcess, tmp_path: Path
) -> None:
    path = write(tmp_path / f"questions{ending}")
    ran = funnel("predict", str(path), "--batch-size", "2", "--to", of_rows.url, key=KEY)
    assert (ran.returncode, ran.stderr) == (0, "")
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    rows = [{"plan": "basic", "age": 30}, {"plan": "vip", "age": 50}, {"age": 20}]
    with of_rows.client(**HEADER) as client:
        expected = client.post("/predict", json={"rows": rows}).raise_for_status().json()
    assert [one["label"] for one in found] == expected["labels"]
    for one, theirs in zip(found, expected["probabilities"], strict=True):
        assert one["probabilities"] == pytest.approx(theirs, abs=1e-6)


def test_a_column_of_labels_may_be_in_the_file_and_csv_has_a_line_a_row(
    of_rows: ServiceProcess, tmp_path: Path
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(ROWS)
    ran = funnel("predict", str(path), "--format", "csv", "--to", of_rows.url, key=KEY)
    header, *lines = ran.stdout.splitlines()
    assert header == "label,probability"
    assert [line.partition(",")[0] for line in lines] == ["stay", "go", "stay"]
    assert all(0.5 <= float(line.partition(",")[2]) <= 1 for line in lines)


def test_dense_features_are_all_columns_in_their_order(
    dense: ServiceProcess, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("a,b,label\n1,2,0\n3,4.5,1\n")
    ran = funnel("predict", str(path), "--to", dense.url)
    assert ran.returncode == 0, ran.stderr
    with dense.client() as client:
        asked = {"features": [[1, 2], [3, 4.5]]}
        expected = client.post("/predict", json=asked).raise_for_status().json()
    found = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [one["label"] for one in found] == expected["labels"]
    np.testing.assert_allclose(
        [one["probabilities"] for one in found], expected["probabilities"], atol=1e-6
    )


def test_quantiles_are_columns(of_numbers: ServiceProcess, tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("a,b\n1,2\n")
    ran = funnel("predict", str(path), "--format", "csv", "--to", of_numbers.url)
    assert ran.returncode == 0, ran.stderr
    header, line = ran.stdout.splitlines()
    assert header == "value,quantile 0.1,quantile 0.5,quantile 0.9"
    assert len(line.split(",")) == 4


UNFIT = {
    "a missing value": ("a,b\n1,2\n3,\n", "column 'b' has a missing value"),
    "a word": ("a,b\n1,x\n3,y\n", "column 'b' has 'x'"),
    "too few columns": ("a\n1\n", "the model takes 2 dense features, and the file has 1 columns"),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_rows_that_do_not_fit_are_one_line(
    fault: str, dense: ServiceProcess, tmp_path: Path
) -> None:
    text, message = UNFIT[fault]
    path = tmp_path / "rows.csv"
    path.write_text(text)
    ran = funnel("predict", str(path), "--to", dense.url)
    assert (ran.returncode, ran.stdout) == (1, "")
    [line] = ran.stderr.splitlines()
    assert message in line


def test_a_refused_row_is_named_by_its_place_in_the_file(
    of_rows: ServiceProcess, tmp_path: Path
) -> None:
    path = tmp_path / "rows.ndjson"
    path.write_text('{"age": 1}\n{"age": 2}\n{"age": 3}\n{"age": "old"}\n')
    ran = funnel("predict", str(path), "--batch-size", "3", "--to", of_rows.url, key=KEY)
    assert ran.returncode == 1
    assert ran.stderr.startswith("funnel: row 4: the service answered 422: ")


def test_a_wrong_key_is_named(of_rows: ServiceProcess) -> None:
    ran = funnel("dead", "--to", of_rows.url, key="wrong")
    assert ran.returncode == 1
    assert ran.stderr.startswith("funnel: the service answered 401: send the header Authorization")


def test_dead_letters_have_an_entry_and_a_reason_in_words(dense: ServiceProcess) -> None:
    assert funnel("dead", "--to", dense.url).stdout == "no dead letters\n"
    with Redis(unix_socket_path=str(dense.directory / "data/log/valkey.sock")) as redis:
        entry = redis.xadd("funnel:{logistic}:log", {"f0": 1, "f1": 2, "label": 0})
    assert isinstance(entry, bytes)
    wait_for(lambda: bool(httpx.get(f"{dense.url}/dead").json()["letters"]))
    ran = funnel("dead", "--to", dense.url)
    reason = "no field 'batch' or 'json', only 'f0', 'f1', 'label'"
    assert ran.returncode == 0
    assert ran.stdout.endswith(f" UTC  entry {entry.decode()}: {reason}\n")
    [letter] = map(json.loads, funnel("dead", "--json", "--to", dense.url).stdout.splitlines())
    assert (letter["begin"], letter["end"]) == (entry.decode(), entry.decode())
    assert (letter["reason"], letter["examples"]) == (reason, None)
    assert letter["fields"] == ["f0", "f1", "label"]


def test_the_newest_dead_letters_come_first_and_count_bounds_them(dense: ServiceProcess) -> None:
    with Redis(unix_socket_path=str(dense.directory / "data/log/valkey.sock")) as redis:
        ids = [redis.xadd("funnel:{logistic}:log", {"batch": f"poison {k}"}) for k in range(3)]
    url, last = f"{dense.url}/dead", bytes(ids[-1]).decode()
    wait_for(lambda: httpx.get(url).json()["letters"][:1] and last == _first(url))
    assert len(httpx.get(f"{url}?count=2").json()["letters"]) == 2
    times = [letter["time"] for letter in httpx.get(url).json()["letters"]]
    assert times == sorted(times, reverse=True)
    assert httpx.get(f"{url}?count=0").status_code == 422


def _first(url: str) -> str:
    begin: str = httpx.get(url).json()["letters"][0]["begin"]
    return begin
