"""Commands on files of rows: schema, compare and stream, and the service agrees with them."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest

from service.cli import main
from service.fold.schema.toml import from_toml
from tests.support.harness import serving, wait_for

OPTIONS = {"schema": "auto", "batch_size": 100, "max_wait_ms": 600_000}


def write(path: Path, seed: int, n: int, more: bool = False) -> Path:
    """Write rows; with more, the columns are in another order, with one more, and a label more."""
    rng = np.random.default_rng(seed)
    names = ["plan", "age", "at", "city"] + ["device"] * more
    names = names[::-1] if more else names
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*names, "outcome"])
        for k in range(n):
            row = {
                "plan": ("basic", "pro", "vip")[rng.integers(3)],
                "age": "" if rng.random() < 0.1 else f"{rng.normal(40, 10):.1f}",
                "at": f"2026-05-{1 + k % 28:02}T{rng.integers(24):02}:00:00Z",
                "city": f"city {rng.integers(50)}",
                "device": ("phone", "desk")[rng.integers(2)],
            }
            old = row["age"] != "" and float(row["age"]) > 50
            label = "stay" if row["plan"] == "vip" or old else "go"
            if more and row["device"] == "desk" and label == "go":
                label = "ask"
            writer.writerow([*(row[name] for name in names), label])
    return path


def accuracy_of(text: str) -> float:
    [found] = re.findall(r"Funnel \(auto\)\s+as served\s+(0\.\d+)", text)
    return float(found)


def test_a_schema_is_inferred_as_toml_that_can_be_declared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "shop.csv", 0, 200)
    assert main(["schema", str(path), "--kind", "city=text", "--drop", "age"]) == 0
    schema = from_toml(capsys.readouterr().out)
    kinds = {column.name: str(column.kind) for column in schema.columns}
    assert kinds == {"plan": "category", "at": "time", "city": "text"}
    assert schema.label == "outcome"
    assert set(schema.labels) == {"stay", "go"}


def test_compare_learns_strings_missing_values_and_times(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "shop.csv", 0, 1_500)
    peers = "majority,no-change,scikit-learn,vw,river-tree,adam"
    assert main(["compare", str(path), "--peers", peers]) == 0
    out, err = capsys.readouterr()
    assert "adam is skipped: it takes dense features alone" in err
    assert "rows keep their names, because" in err
    assert accuracy_of(out) > 0.85
    learners = ("most frequent label", "last known", "scikit-learn", "Vowpal Wabbit", "Hoeffding")
    for learner in learners:
        assert learner in out
    accuracies = [float(found) for found in re.findall(r"^\S.*?  (0\.\d{4})", out, re.M)]
    assert len(accuracies) == 6
    assert accuracies == sorted(accuracies, reverse=True)


def test_two_unlike_files_are_streamed_to_one_service_which_agrees_with_compare(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second file has its columns in another order, and a column and a label more."""
    first, second = write(tmp_path / "a.csv", 0, 2_000), write(tmp_path / "b.csv", 1, 3_000, True)
    assert main(["compare", str(first), "--peers", "majority"]) == 0
    offline = accuracy_of(capsys.readouterr().out)
    options = OPTIONS | {"model": None, "effort": "full"}
    with serving(tmp_path, **options) as service, service.client() as client:

        def learned(count: int) -> bool:
            return client.get("/model").json()["examples_learned"] == count

        def shown() -> float | None:
            return client.get("/model").json()["accuracy"]

        assert main(["stream", str(first), "--to", service.url]) == 0
        wait_for(lambda: learned(2_000))
        wait_for(lambda: shown() is not None and round(shown() or 0, 4) == offline)
        assert main(["stream", str(second), "--to", service.url]) == 0
        wait_for(lambda: learned(5_000))
        rows = [
            {"plan": "vip", "age": 30, "device": "desk"},
            {"age": 30, "device": "desk", "plan": "basic"},
            {"device": "phone", "plan": "basic", "age": 30},
        ]
        answer = client.post("/predict", json={"rows": rows}).raise_for_status().json()
        assert answer["labels"] == ["stay", "ask", "go"]


def test_rows_are_streamed_to_a_service_without_settings(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.csv", 0, 500)
    with serving(tmp_path, batch_size=100) as service, service.client() as client:
        assert main(["stream", str(path), "--to", service.url]) == 0
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 500)
        assert client.get("/model").json()["inputs"] == "rows"


@pytest.mark.parametrize("columns", [2, 784])
def test_a_file_of_numbers_goes_as_rows_where_nothing_is_learned_unless_it_fits(
    tmp_path: Path, columns: int
) -> None:
    path = tmp_path / "numbers.csv"
    lines = [",".join([*(f"c{k}" for k in range(columns)), "label"])]
    lines += [
        ",".join([*(str((k * n) % 7) for n in range(columns)), str(k % 2)]) for k in range(60)
    ]
    path.write_text("\n".join(lines) + "\n")
    with serving(tmp_path, max_wait_ms=20) as service, service.client() as client:
        assert main(["stream", str(path), "--to", service.url]) == 0
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 60)
        assert client.get("/model").json()["inputs"] == ("features" if columns == 784 else "rows")


def test_rows_are_streamed_into_the_log_too(tmp_path: Path) -> None:
    path = write(tmp_path / "shop.csv", 0, 500)
    with serving(tmp_path, batch_size=100) as service, service.client() as client:
        socket = service.directory / "data/log/valkey.sock"
        assert main(["stream", str(path), "--to", f"unix://{socket}"]) == 0
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 500)


def test_a_service_of_dense_features_is_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "shop.csv", 0, 100)
    with serving(tmp_path, features=4, classes=2) as service:
        assert main(["stream", str(path), "--to", service.url]) == 1
    assert "funnel serve --data-dir" in capsys.readouterr().err


def test_a_file_of_numbers_goes_as_rows_to_a_service_that_learns_rows(tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("a,b,label\n" + "".join(f"{k},{k % 3},{k % 2}\n" for k in range(200)))
    with serving(tmp_path, **OPTIONS | {"max_wait_ms": 20}) as service, service.client() as client:
        client.post("/learn", json={"row": {"a": 1, "b": 2}, "label": 0}).raise_for_status()
        assert main(["stream", str(path), "--to", service.url]) == 0
        wait_for(lambda: client.get("/model").json()["examples_learned"] == 201)


def test_weights_of_a_file_reach_funnel_and_its_peers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of ten rows, four have the right label and a weight of 3, six the other and no weight."""
    path = tmp_path / "mostly_wrong.csv"
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        file.write("plan,age,w,label\n")
        for k in range(1_000):
            plan, age = ("pro", "vip")[rng.integers(2)], rng.normal(40, 10)
            is_right = k % 10 in (0, 3, 5, 8)
            label = "stay" if (plan == "vip") == is_right else "go"
            file.write(f"{plan},{age:.1f},{3 * is_right},{label}\n")
    learned = []
    for options in (["--drop", "w"], ["--weight", "w"]):
        peers = ["--peers", "scikit-learn,vw,river-tree", "--batch-size", "40"]
        assert main(["compare", str(path), *peers, *options]) == 0
        lines = map(re.compile("  +").split, capsys.readouterr().out.splitlines())
        found = [line[2] for line in lines if len(line) > 4 and "a floor" not in line[0]][1:]
        learned.append(list(map(float, found)))
    plain, weighted = learned
    assert len(plain) == len(weighted) == 4
    assert min(plain) > 0.55
    assert max(weighted) < 0.45
    assert main(["compare", str(path), "--weight", "x"]) == 1
    assert "no column 'x'" in capsys.readouterr().err


WRONG = {
    "a kind": (["--kind", "age=float"], "must be COLUMN=KIND with one of number, category"),
    "a column": (["--kind", "years=number"], "has no column 'years'"),
    "a picture": (["--plot", "a.png"], "--plot draws streams of dense features alone"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_option_is_refused_by_name(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, message = WRONG[case]
    path = write(tmp_path / "shop.csv", 0, 100)
    try:
        status = main(["compare", str(path), *options])
    except SystemExit as end:
        status = int(end.code or 0)
    assert status != 0
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("examples", [1, 300])
def test_rows_of_one_label_are_refused_in_words(
    examples: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "one.csv"
    path.write_text("a,b,label\n" + "".join(f"{k},2,x\n" for k in range(examples)))
    assert main(["compare", str(path)]) == 1
    assert "all rows have the same label" in capsys.readouterr().err
