"""The service's learner compared with its peers, and `funnel compare` as a user runs it."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from service.cli import main
from service.commands.comparisons.comparison import (
    examples_shown,
    interval,
    median_recovery,
    recoveries_of,
    table,
)
from service.commands.comparisons.evaluation import Run, Served, standardized
from service.commands.comparisons.picture import save, set_title
from service.commands.comparisons.tally import SHOWN, Tally, scores_of
from service.settings import load_settings
from streams.batch import concatenate
from streams.peers.peers import PEERS, Peer
from streams.prequential import prequential
from streams.sources.catalog import get


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("optimizer", ["pool", "funnel", "adam"])
def test_the_accuracy_is_that_of_the_service(optimizer: str) -> None:
    served = Served(load_settings({"model": "logistic", "optimizer": optimizer, "device": "cpu"}))
    outcomes = prequential(served, get("abrupt", 3_000, "digits").batches(100))
    summary = served.state.served.scores.read()
    assert (summary.scored, summary.correct) == (3_000, outcomes.sum())
    assert summary.rolling_accuracy == pytest.approx(outcomes[-1_000:].mean())


def test_peers_get_the_inputs_of_the_services_model() -> None:
    """Plain SGD on the prepared batches is the service with FUNNEL_OPTIMIZER=sgd."""
    batches = list(get("labels", 6_600, "digits").batches(100))
    served = Served(
        load_settings({"model": "logistic", "optimizer": "sgd", "lr": 0.03, "device": "cpu"})
    )
    ours = prequential(served, batches)
    peer = PEERS["sgd"].settings["lr 0.03"](get("labels", 6_600, "digits"), 0)
    assert (prequential(peer, standardized(batches)) == ours).mean() > 0.999


def test_standardized_batches_are_clamped_and_do_not_depend_on_later_ones() -> None:
    batches = list(get("rbf", 2_000).batches(100))
    found = concatenate(list(standardized(batches)))
    assert np.abs(found.features).max() <= 5
    assert np.abs(found.features[1_000:].mean(axis=0)).max() < 0.5
    first = concatenate(list(standardized(batches[:5])))
    np.testing.assert_array_equal(first.features, found.features[:500])


def outcomes(*parts: tuple[int, float]) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Return right answers at given rates, evenly spread."""
    drawn = [np.arange(n) % 100 < 100 * rate for n, rate in parts]
    return np.concatenate(drawn)


def test_the_table_shows_funnel_losing_where_it_does() -> None:
    stream = get("labels", 12_000)
    funnel = Run("Funnel", "as served", 0, [outcomes((6_000, 0.8), (3_000, 0.2), (3_000, 0.6))])
    peer = Run("SGD", "lr 1", 6, [outcomes((6_000, 0.8), (1_000, 0.4), (5_000, 0.7))])
    head, first, second = table([funnel, peer], stream.shifts).splitlines()
    assert "recovery" in head
    assert first.split("  ")[0] == "SGD"
    assert first.split()[-1] == "1,000"
    assert "lr 1 (best of 6)" in first
    assert second.split("  ")[0] == "Funnel"
    assert second.split()[-1] == "never"


def test_an_interval_is_students() -> None:
    assert interval([1.0, 2.0, 3.0]) == pytest.approx(4.302653 / math.sqrt(3))
    assert math.isnan(interval([1.0]))


def test_recovery_is_the_median_over_seeds_and_shifts() -> None:
    fast = np.array([0.9] * 60 + [0.1] * 10 + [0.9] * 50)
    slow = np.array([0.9] * 60 + [0.1] * 30 + [0.9] * 30)
    assert recoveries_of([[fast, slow, slow]], [0, 6_000]) == [[1_000, 3_000, 3_000]]
    assert median_recovery([1_000, 3_000, 3_000]) == 3_000
    assert recoveries_of([[fast], [slow - 0.1]], [0, 6_000]) == [[1_000], [None]]
    assert median_recovery([None]) == math.inf
    assert examples_shown(median_recovery([None])) == "never"
    assert examples_shown(median_recovery([])) == "–"


COMPARE = ["compare", "labels", "--source", "digits", "--examples", "8100", "--device", "cpu"]


def test_compare_of_a_stream_that_shifts_prints_recoveries_and_draws_a_picture(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(PEERS, "gone", Peer("Gone", {}, "no_such_module"))
    picture = tmp_path / "compare.png"
    options = ["--peers", "sgd,gone", "--seeds", "2", "--families", "linear"]
    assert main([*COMPARE, *options, "--plot", str(picture)]) == 0
    out, errors = capsys.readouterr()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "gone is skipped: needs no_such_module" in errors
    assert "8,100 examples, 2 seeds, @100 (labels come in batches of 100)\n" in out
    assert "Funnel (auto)" in out
    assert "SGD" in out
    assert "±" in out
    assert "recovery" in out
    assert "Recovery is the median" in out
    assert "100%" in errors


def test_a_file_with_signs_of_formulas_in_its_name_has_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    file = tmp_path / "a$_{b$.csv"
    file.write_text("a,label\n" + 20 * "1,0\n2,1\n")
    options = ["--peers", "sgd", "--seeds", "1", "--plot=~/picture.png"]
    assert main(["compare", str(file), *options]) == 0
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["plain.csv", "a$_{b$.csv"])
def test_a_file_has_no_recovery_and_any_name(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, picture = tmp_path / name, tmp_path / "p.png"
    path.write_text("a,label\n" + "1,0\n2,1\n" * 500)
    assert main(["compare", str(path), "--peers", "sgd", "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "Accuracy is prequential" in out
    head = out.partition("learner ")[2].splitlines()[0]
    scores = ["log", "loss", "AUC", "balanced", "rare", "recall", "ECE"]
    assert head.split() == ["setting", "accuracy", *scores]
    assert "Recovery is" not in out
    assert "–" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$_{$", "x\udcff", "two\nlines", "\\frac"])
def test_a_picture_has_any_title(name: str, tmp_path: Path) -> None:
    figure = Figure()
    set_title(figure.subplots(), name)
    save(figure, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_model_below_a_floor_is_said_in_the_first_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels have nothing to do with the features, and 8 % are 1."""
    rng = np.random.default_rng(0)
    lines = [
        f"{x:.3f},{int(y < 0.08)}"
        for x, y in zip(rng.normal(size=2_000), rng.random(2_000), strict=True)
    ]
    path = tmp_path / "churn.csv"
    path.write_text("a,label\n" + "\n".join(lines) + "\n")
    options = ["--peers", "sgd,vw", "--optimizer", "sgd", "--lr", "30", "--device", "cpu"]
    assert main(["compare", str(path), *options]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Funnel (sgd) is below the floor majority: accuracy ")
    rows = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert {"majority, a floor", "no_change, a floor", "Funnel (sgd)"} <= rows.keys()
    assert rows["majority, a floor"][-3:-1] == ["0.500", "0.000"]
    assert "–" not in next(line for line in out.splitlines() if line.startswith("Vowpal Wabbit"))


def test_runs_can_be_compared_by_auc_where_a_class_is_rare(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A setting that is the best by accuracy may know nothing of a class of 8 %."""
    options = ["churn", "--examples", "6000", "--peers", "scikit-learn,vw", "--seeds", "2"]
    assert main(["compare", *options, "--by", "auc"]) == 0
    out = capsys.readouterr().out
    head, *lines = out.partition("learner ")[2].partition("\n\n")[0].splitlines()
    assert head.endswith("recovery")
    aucs = [float(re.findall(r"\d\.\d{4}", line)[-4]) for line in lines]
    assert len(aucs) == 5
    assert aucs == sorted(aucs, reverse=True)
    assert aucs[-1] < 0.53 < 0.6 < aucs[0]
    assert "settings by AUC" in out
    assert "until the AUC of" in out


def test_more_classes_than_two_have_no_auc(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPARE, "--by", "auc"]) == 2
    assert "--by auc is for two classes, but there are 10" in capsys.readouterr().err
    assert main(["compare", "orders", "--examples", "500", "--by", "auc"]) == 2
    assert "there are 3" in capsys.readouterr().err


def test_a_half_that_is_rounded_says_nothing_of_the_label() -> None:
    """In fp32 the half of a mixture may be a little less, for the label that is right as well."""
    tally, labels = Tally(2), np.arange(1_000) % 2
    probabilities = np.full((1_000, 2), np.float32(0.49999997), np.float64)
    tally.add(np.zeros(1_000, np.int64), probabilities, labels)
    found = tally.read()
    assert found["auc"] == 0.5
    assert found["ece"] < 1e-3


def test_what_is_compared_is_what_the_service_answers() -> None:
    """Its answers are calibrated, and the fold scores them as `calibrated`."""
    stream = get("segments", 2_000)
    settings = load_settings({"features": 18, "classes": 7, "device": "cpu"})
    served, tally = Served(settings), Tally(7)
    prequential(served, stream.batches(100), observe=tally.add)
    assert served.state.calibration is not None
    known = scores_of(served.state.calibration.scores, SHOWN)
    assert tally.read() == pytest.approx(known, rel=1e-5)


def test_a_model_above_the_floors_has_no_such_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMPARE, "--peers", "", "--examples", "3000"]) == 0
    assert capsys.readouterr().out.startswith("labels: 3,000 examples")


def test_what_a_file_holds_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(",a,kind\n0,0.3,no\n1,0.30000000000000004,No\n")
    assert main(["compare", str(path), "--peers", ""]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "mine.csv: 2 examples, 1 features, 'kind' of 2 classes (numbered by this file alone: "
        "0 = No, 1 = no)",
        "mine.csv: column 1 (no name) counts the rows and is not learned",
        "mine.csv: column 'a': float32 keeps 1 of 2 different values; 0.3 and 0.30000000000000004 "
        "become one",
        "mine.csv: 'No' and 'no' in 'kind' are different classes",
    ]


def test_compare_runs_the_optimizer_that_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--peers", "", "--optimizer", "adam", "--lr", "0.01", "--examples", "500"]
    assert main([*COMPARE, *arguments]) == 0
    assert "Funnel (adam)" in capsys.readouterr().out


def test_the_error_for_an_unknown_peer_lists_the_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*COMPARE, "--peers", "adamm"])
    assert ended.value.code == 2
    assert "no peer 'adamm'; there are adagrad" in capsys.readouterr().err
